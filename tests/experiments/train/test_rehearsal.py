"""A pod in small: ImageNet's files, two processes of four devices, a kill in the middle; the numbers of one process.

All that `imagenet_vit_b16` has is on, and its options, but for bfloat16, which would make more of the rounding of sums
over processes; the network, the images and the run are small.
"""

import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from experiments.data.prepare import prepare
from tests.experiments.data import tiny_data
from tests.experiments.data.test_prepare_imagenet import TRAIN as TRAIN_SIZE
from tests.experiments.data.test_prepare_imagenet import VALIDATION, write_archives
from tests.experiments.train.runs import ROOT, records, sessions, state, steps
from tests.experiments.train.test_multihost import RUN, free_port

pytestmark = pytest.mark.slow
TRAIN = [
    *("train", "--config", "imagenet_vit_b16", "--method", "gam", "--devices.fsdp", "4"),
    *("--model.width", "0.125", "--model.depth", "2", "--data.image-size", "32", "--data.validation", str(1 / 6)),
    *("--model.dtype", "float32", "--data.workers", "0", "--batch-size", "16", "--epochs", "4", "--eval-epochs", "2"),
    *("--log-every", "4", "--checkpoints.every", "5"),
    *("--loss", "sigmoid", "--label-smoothing", "0.1", "--averaging", "ema", "--ema-decay", "0.9"),
]
"""Twenty steps in four epochs."""
GONE = """
import os, signal, sys
from experiments import main
from experiments.train import programs

step = programs.Programs.step

def dying(self, state, batch, count):
    if count == 12:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, state, batch, count)

programs.Programs.step = dying
sys.exit(main.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module", params=["stand-in", pytest.param("prepare", marks=pytest.mark.prepare)])
def place(request, tmp_path_factory):
    """With photographs in ``data``, 80 of them to train on, and more to evaluate on than whole batches have."""
    place = tmp_path_factory.mktemp("rehearsal")
    if request.param == "prepare":
        pytest.importorskip("tensorflow", reason="the builders of tfds need it: pip install '.[prepare]'")
        write_archives(place)
        prepare("imagenet", place / "data", place, trust_archives=True)
    else:
        tiny_data.prepare(place / "data", "imagenet", {"train": TRAIN_SIZE, "validation": VALIDATION}, "JPEG")
    return place


def launched(program, place, name, processes):
    """Runs a program in so many processes with eight devices together; returns (status, errors) of each."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={8 // processes}"
    common = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(place / "compiled")}
    common |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": str(processes)}
    line = [sys.executable, "-c", program, *TRAIN, "--data.folder", str(place / "data"), "--workdir", str(place / name)]
    line += ["--devices.multihost"] if processes > 1 else []
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [
        subprocess.Popen(line, cwd=ROOT, env=os.environ | common | {"JAX_PROCESS_ID": str(i)}, **pipes)
        for i in range(processes)
    ]
    errors = [process.communicate(timeout=300)[1] for process in started]
    return [(process.returncode, error) for process, error in zip(started, errors, strict=True)]


def test_two_killed_processes_end_as_one(place):
    statuses = [status for status, _ in launched(GONE, place, "two", 2)]
    assert -signal.SIGKILL in statuses and 0 not in statuses  # the other one may notice before its own time comes
    for status, errors in [*launched(RUN, place, "two", 2), *launched(RUN, place, "one", 1)]:
        assert status == 0, errors
    first, second = (session["step"] for session in sessions(place / "two"))
    assert first == 0 and second in (5, 10)  # whether the last one before the kill was whole is a matter of time
    assert steps(place / "two") == [10, 15, 20]

    for workdir in (place / "one", place / "two"):
        path = workdir / "config.json"
        stored = json.loads(path.read_text())
        stored["config"]["data"]["folder"] = str(place / "data")
        path.write_text(json.dumps(stored))
    one, two = (records(place / name) for name in ("one", "two"))
    assert [record["step"] for record in one] == [4, 5, 8, 10, 10, 12, 15, 16, 20, 20]
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() & {"loss", "test_loss", "validation_loss", "gam_grad_norm", "gam_first_order_flatness"}:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-5, err_msg=f"{name} at step {a['step']}")
    (one, scores), (two, scores_two) = (state(place / name) for name in ("one", "two"))
    assert one.step == two.step == 20 and scores.keys() == scores_two.keys()
    worst = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), one.params, two.params)
    assert max(jax.tree.leaves(worst)) < 1e-4  # of keys' biases, whose gradients are rounding that Adam scales up
    np.testing.assert_allclose(scores["test_loss"], scores_two["test_loss"], rtol=1e-5)
