"""One training run: what it saves is what was trained, whatever interrupts it, and mistakes are explained."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.checkpoint import restore
from experiments.config import DigitsConfig, UserError
from experiments.data import digits
from experiments.fit import Trainer, evaluate, loss_fn, prepare, train_step
from experiments.main import main
from experiments.optim import OptimConfig, build

ROOT = Path(__file__).parents[2]
SIZES = {"hidden": (8,), "batch_size": 20, "epochs": 5}
SMALL = [
    *("train", "--config", "digits", "--hidden", "8", "--batch-size", "20", "--epochs", "5"),
    *("--data.train-size", "40", "--seed", "3"),
]
SGD = OptimConfig(method="sgd", learning_rate=0.02, weight_decay=0.02, momentum=0.9)


def split():
    return digits(DigitsConfig(train_size=40), noise=0.3, seed=3)


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def edit_config(workdir, **changes):
    path = workdir / "config.json"
    stored = json.loads(path.read_text())
    stored["config"] |= changes
    path.write_text(json.dumps(stored))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished") / "sgd"
    assert main([*SMALL, "--method", "sgd", "--workdir", str(workdir)]) == 0
    return workdir


@pytest.fixture
def copied(finished, tmp_path):
    """A finished run, to spoil."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("method", ["sgd", "sam+gam"])
def test_the_last_checkpoint_is_the_run_that_compare_does(finished, tmp_path, method):
    workdir = finished
    if method != "sgd":
        workdir = tmp_path
        assert main([*SMALL, "--method", method, "--workdir", str(workdir)]) == 0
    run = restore(workdir)
    params, _ = Trainer(**SIZES).fit(run.config.optim, 3, split().train)
    jax.tree.map(np.testing.assert_array_equal, run.params, params)
    assert run.step == 10 and run.config.optim.method == method
    assert run.scores["test_accuracy"] == evaluate(params, split().test).accuracy
    jax.tree.map(np.testing.assert_array_equal, run.train, split().train)


def test_one_record_per_epoch_and_a_checkpoint_at_half_time(finished):
    assert [(record["epoch"], record["step"]) for record in metrics(finished)] == [(e, 2 * e) for e in range(1, 6)]
    for place, record in (("checkpoints/4", metrics(finished)[1]), (".", restore(finished).scores)):
        run = restore(finished / place)
        assert run.step == run.scores["step"] == record["step"]
        for part in ("train", "validation"):
            expected = evaluate(run.params, getattr(split(), part))
            assert (record[f"{part}_loss"], record[f"{part}_accuracy"]) == expected
    assert sorted(path.name for path in (finished / "checkpoints").iterdir()) == ["10", "4"]


def test_config_and_versions_lie_beside(finished):
    stored = json.loads((finished / "config.json").read_text())
    assert stored["config"]["seed"] == 3 and stored["config"]["optim"]["learning_rate"] == 0.02
    assert {"jax", "optax", "source"} <= stored["made_with"].keys()


def averaged_by_hand(epochs):
    """SWAD with its defaults (3, 6, 0.3) in NumPy, over iterates kept one by one; and the segments averaged."""
    data = split()
    tx = build(SGD, loss_fn, 2 * epochs)
    params, order = prepare(3, data.train, hidden=(8,), batch_size=20, epochs=epochs)
    state = tx.init(params)
    step = jax.jit(lambda params, state, chosen: train_step(tx, params, state, jax.device_put(data.train), chosen))
    segments, losses, start, threshold = [], [], None, 0.0
    for epoch in range(epochs):
        segments.append([])
        for chosen in order[2 * epoch : 2 * epoch + 2]:
            params, state = step(params, state, chosen)
            segments[-1].append(jax.tree.map(np.float64, params))
        losses.append(evaluate(params, data.validation).loss)
        if start is None and len(losses) >= 3 and losses[-3] == min(losses[-3:]):
            start, threshold = epoch - 2, 1.3 * np.mean(losses[-3:])
        elif start is not None and min(losses[-6:]) > threshold:
            raise AssertionError("the average ended, which this test does not expect")
    assert start is not None
    chosen = [params for segment in segments[start:] for params in segment]
    return jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *chosen), len(chosen)


def test_swad_saves_the_average_of_the_iterates(tmp_path):
    command = [*SMALL, "--method", "sgd", "--averaging", "swad", "--epochs", "120", "--workdir", str(tmp_path)]
    command += ["--learning-rate", "0.02"]
    assert main(command) == 0
    expected, count = averaged_by_hand(120)
    run = restore(tmp_path)
    assert run.scores["averaging_started"] and 2 < count < 240
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), run.params, expected)


DIE = """
import os, signal, sys
from experiments import main, store
write, left = os.write, int(sys.argv[1])

def interrupted(descriptor, line):
    global left
    left -= 1
    if left == 0:
        write(descriptor, line[:9])
        os.kill(os.getpid(), signal.SIGKILL)
    return write(descriptor, line)

store.os.write = interrupted
sys.exit(main.main(sys.argv[2:]))
"""


def test_a_killed_run_ends_in_the_same_files(finished, tmp_path):
    command = [*SMALL, "--method", "sgd", "--workdir", str(tmp_path)]
    died = subprocess.run([sys.executable, "-c", DIE, "4", *command], cwd=ROOT, capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL and "Traceback" not in died.stderr
    assert (tmp_path / "metrics.jsonl").read_bytes().count(b"\n") == 3
    (tmp_path / "checkpoints" / "10.orbax-checkpoint-tmp").mkdir()  # what a kill in a checkpoint leaves
    assert restore(tmp_path).step == 4
    assert main(command) == 0
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["10", "4"]
    for name in ("metrics.jsonl", "config.json"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()
    jax.tree.map(np.testing.assert_array_equal, restore(tmp_path).params, restore(finished).params)


def test_a_finished_run_prints_the_same_at_once(finished, capfd, monkeypatch):
    monkeypatch.setattr("experiments.loop._epoch", lambda *_, **__: pytest.fail("trained again"))
    before = (finished / "metrics.jsonl").read_bytes()
    assert main([*SMALL, "--method", "sgd", "--workdir", str(finished)]) == 0
    out, err = capfd.readouterr()
    assert f"test_loss {restore(finished).scores['test_loss']:.4g}" in out
    assert err == ""  # no progress bar, as this is no terminal
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_another_run_in_the_same_folder_is_refused(finished, capsys):
    assert main([*SMALL, "--method", "gam", "--workdir", str(finished)]) == 2
    printed = capsys.readouterr().err
    assert "config.optim.method: sgd there, gam now" in printed and "config.optim.gam_rho" in printed


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--method", "sgd", "--sam-rho", "0.1"], "'sgd' has no sam_rho: its .* learning_rate, weight_decay"),
        (["--method", "sam", "--sam-rho", "None"], "'sam' needs sam_rho"),
        (["--method", "gam", "--gam-rho", "-1"], "gam_rho must be .* got -1.0"),
        (["--method", "gamm"], "'gamm'"),
        (["--momentum", "1"], r"momentum must be in \[0, 1\), got 1.0"),
        (["--noise", "30"], r"noise must be a fraction in \[0, 1\], got 30.0"),
        (["--seed", "-1"], "seed must be at least 0, got -1"),
        (["--batch-size", "30"], "batch_size=30 and train_size=40"),
        (["--data.train-size", "1200"], "leave no validation set"),
        (["--averaging", "sawd"], "'sawd'"),
    ],
)
def test_mistakes_are_explained_before_a_folder_is_made(capsys, tmp_path, arguments, message):
    try:
        status = main([*SMALL, *arguments, "--workdir", str(tmp_path / "run")])
    except SystemExit as exit:
        status = exit.code
    printed = capsys.readouterr()
    assert status == 2 and re.search(message, re.sub(r"[\s│]+", " ", printed.out + printed.err))
    assert not list(tmp_path.iterdir())


def test_a_run_that_diverges_stops_and_says_where(capsys, tmp_path):
    command = [*SMALL, "--method", "sgd", "--learning-rate", "1e30", "--workdir", str(tmp_path)]
    assert main(command) == 2
    assert re.search(r"train_loss is (nan|inf) at step 2 \(epoch 1\).*No checkpoint", capsys.readouterr().err)


def test_a_full_disk_is_reported(capsys, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", full)
    assert main([*SMALL, "--method", "sgd", "--workdir", str(tmp_path)]) == 2
    assert re.search("cannot write checkpoint .*No space left", capsys.readouterr().err)


def test_what_is_not_a_checkpoint_is_refused(copied, tmp_path):
    (tmp_path / "empty").mkdir()
    for place, message in {
        tmp_path / "absent": "there is no folder .*absent",
        tmp_path / "empty": "not the --workdir of a training run",
        copied / "checkpoints" / "77": "there is no folder",
    }.items():
        with pytest.raises(UserError, match=message):
            restore(place)
    shutil.rmtree(copied / "checkpoints")
    with pytest.raises(UserError, match="holds no checkpoint"):
        restore(copied)
    (copied / "config.json").write_text('{"config": {"grid": 1}}')
    (copied / "checkpoints" / "10").mkdir(parents=True)
    with pytest.raises(UserError, match="is not a run of this version's `train`"):
        restore(copied)
    (copied / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json is not readable as JSON"):
        restore(copied)


def test_a_checkpoint_of_another_network_names_the_leaves(copied):
    edit_config(copied, hidden=[9])
    with pytest.raises(UserError, match=r"\[0\]\['weight'\]: float32\[64, 8\] in the checkpoint, float32\[64, 9\]"):
        restore(copied)
    edit_config(copied, hidden=[8, 8])
    with pytest.raises(UserError, match=r"\[2\]\['bias'\]: absent in the checkpoint, float32\[10\] in the network"):
        restore(copied)


def test_a_checkpoint_of_other_data_is_refused(copied):
    edit_config(copied, seed=4)
    with pytest.raises(UserError, match="the data or the network are not those that it was trained with"):
        restore(copied)


def test_a_damaged_checkpoint_is_named(copied):
    damaged = [path for path in (copied / "checkpoints" / "10" / "params").rglob("*") if path.is_file()]
    for path in damaged:
        path.write_bytes(b"")
    with pytest.raises(UserError, match="checkpoint .*10 is damaged or not a checkpoint"):
        restore(copied)
    assert restore(copied / "checkpoints" / "4").step == 4
