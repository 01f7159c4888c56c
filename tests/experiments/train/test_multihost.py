"""Several processes are one: the same parameters as one process, and nothing lost when one of them dies."""

import json
import os
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.experiments.data import tiny_data
from tests.experiments.train.runs import ROOT, records, sessions, state, steps

TRAIN = [
    *("train", "--config", "fashion_mnist", "--method", "gam", "--learning-rate", "0.01", "--model.name", "mlp"),
    *("--model.hidden", "16", "--batch-size", "16", "--epochs", "3", "--data.validation", "0.2", "--log-every", "2"),
]
RUN = "import sys; from experiments import main; sys.exit(main.main(sys.argv[1:]))"
GETS_A_SIGNAL = """
import os, signal, sys
from experiments import main
from experiments.train import programs

step = programs.Programs.step

def interrupted(self, state, batch, count):
    if count == 7:
        os.kill(os.getpid(), signal.{signal})
    return step(self, state, batch, count)

programs.Programs.step = interrupted
sys.exit(main.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of Fashion-MNIST's shape."""
    folder = tmp_path_factory.mktemp("data")
    tiny_data.prepare(folder, "fashion_mnist", {"train": 80, "test": 20}, "PNG")
    return folder


def start(program, folder, workdir, *arguments, devices, environment):
    """One process with so many devices."""
    variables = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    line = [sys.executable, "-c", program, *TRAIN, "--data.folder", str(folder), "--workdir", str(workdir), *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(line, cwd=ROOT, env=os.environ | variables | environment, **pipes)


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def two(programs, folder, workdir, *more):
    """Two processes with two devices each, parameters divided over all four; returns (status, errors) of both."""
    together = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    arguments = ["--devices.multihost", "--devices.fsdp", "4", "--devices.heartbeat-seconds", "10", *more]
    processes = [
        start(program, folder, workdir, *arguments, devices=2, environment=together | {"JAX_PROCESS_ID": str(i)})
        for i, program in enumerate(programs)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    return [(process.returncode, error) for process, error in zip(processes, errors, strict=True)]


@pytest.fixture(scope="module")
def uninterrupted(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("two") / "run"
    for status, errors in two([RUN, RUN], folder, workdir):
        assert status == 0, errors
    return workdir


def last_state(workdir, folder):
    path = workdir / "config.json"
    stored = json.loads(path.read_text())
    stored["config"]["data"]["folder"] = str(folder)
    path.write_text(json.dumps(stored))
    return state(workdir)


@pytest.mark.slow
def test_two_processes_of_two_devices_are_one_of_four(uninterrupted, folder, tmp_path):
    process = start(RUN, folder, tmp_path / "run", devices=4, environment={})
    errors = process.communicate()[1]
    assert process.returncode == 0, errors
    (one, scores), (two, scores_two) = (last_state(workdir, folder) for workdir in (tmp_path / "run", uninterrupted))
    assert one.step == two.step == 12
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)  # noqa: E731
    jax.tree.map(close, one.params, two.params)
    jax.tree.map(close, one.model_state, two.model_state)
    assert scores.keys() == scores_two.keys()
    for a, b in zip(records(tmp_path / "run"), records(uninterrupted), strict=True):
        assert a.keys() == b.keys()
        np.testing.assert_allclose(a.get("loss", a.get("test_loss")), b.get("loss", b.get("test_loss")), rtol=1e-5)


@pytest.mark.slow
def test_when_one_of_two_processes_dies_nothing_is_lost(uninterrupted, folder, tmp_path):
    (survivor, _), (died, _) = two([RUN, GETS_A_SIGNAL.format(signal="SIGKILL")], folder, tmp_path / "run")
    assert died == -signal.SIGKILL and survivor != 0
    assert max(steps(tmp_path / "run")) <= 4
    for status, errors in two([RUN, RUN], folder, tmp_path / "run"):
        assert status == 0, errors
    assert len(sessions(tmp_path / "run")) == 2
    assert records(tmp_path / "run") == records(uninterrupted)
    (a, _), (b, _) = (last_state(workdir, folder) for workdir in (tmp_path / "run", uninterrupted))
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow
def test_sigterm_to_one_of_two_stops_both_at_one_step(folder, tmp_path):
    """Slow for its 4000 steps: the processes agree on a step that neither has reached."""
    more = ("--epochs", "1000", "--eval-epochs", "100", "--log-every", "100")
    programs = [RUN, GETS_A_SIGNAL.format(signal="SIGTERM")]
    (one, said), (other, _) = two(programs, folder, tmp_path / "run", *more)
    assert one == other == 75, said
    (step,) = steps(tmp_path / "run")
    assert f"stopped at step {step} of 4000" in said and step > 7


@pytest.mark.slow
def test_a_mistake_of_one_process_stops_both(folder, tmp_path):
    (tmp_path / "run").write_text("")  # only the first process writes here, and cannot
    for status, errors in two([RUN, RUN], folder, tmp_path / "run"):
        assert status == 2
        assert "cannot write results" in errors or "stopped, because process 0 did" in errors
