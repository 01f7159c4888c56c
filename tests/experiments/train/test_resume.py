"""Whatever stops a run, the same command goes on and ends in the same files, to the last bit."""

import os
import re
import shutil
import signal

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments.common.provenance import provenance
from experiments.train import programs
from tests.experiments.train.runs import assert_same, records, sessions, state, steps, train, train_elsewhere


@pytest.fixture(scope="module", autouse=True)
def _compile_once(tmp_path_factory):
    """All runs here, also those in processes of their own, are of the same programs."""
    place = str(tmp_path_factory.mktemp("compiled"))
    kept = {
        "jax_compilation_cache_dir": place,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in kept}
    with pytest.MonkeyPatch.context() as patched:
        for name, value in kept.items():
            jax.config.update(name, value)
            patched.setenv(name.upper(), str(value))
        compilation_cache.reset_cache()
        yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished") / "run"
    assert train(workdir) == 0
    return workdir


KILL = """
import os, signal, sys
import orbax.checkpoint as ocp
from experiments import main
from experiments.train import programs

where, count = sys.argv[1], int(sys.argv[2])

def dying(function, after):
    def wrapped(*args, **kwargs):
        global count
        count -= 1
        if count == 0 and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        if count == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return wrapped

if where == "after a step":
    programs.Programs.step = dying(programs.Programs.step, after=True)
elif where == "while arrays are written":  # which happens in the background when save returns
    ocp.CheckpointManager.save = dying(ocp.CheckpointManager.save, after=True)
else:  # all is written, but has not its name yet
    os.rename = dying(os.rename, after=False)
sys.exit(main.main(sys.argv[3:]))
"""


def killed(workdir, where, count):
    died = train_elsewhere(KILL, workdir, before=[where, str(count)])
    assert died.returncode == -signal.SIGKILL and "Traceback" not in died.stderr, died.stderr
    assert 16 not in steps(workdir)


def test_a_kill_changes_nothing(finished, tmp_path):
    killed(tmp_path, "while arrays are written", 2)
    assert train(tmp_path) == 0
    assert_same(tmp_path, finished)
    (first, second) = [record["step"] for record in sessions(tmp_path)]
    assert first == 0 and second in (4, 8)  # which of the checkpoints were whole is a matter of time


@pytest.mark.slow
def test_three_kills_change_nothing(finished, tmp_path):
    for where, count in (("after a step", 7), ("while arrays are written", 2), ("before the rename", 2)):
        killed(tmp_path, where, count)
    assert train(tmp_path) == 0
    assert_same(tmp_path, finished)
    started = [record["step"] for record in sessions(tmp_path)]  # how many checkpoints were whole is a matter of time
    assert len(started) == 4 and started == sorted(started) and {*started} <= {0, 4, 8, 12}


@pytest.fixture(autouse=True)
def _listen_to_ctrl_c():
    """A shell that starts the tests in the background makes them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt(monkeypatch, step, sent=signal.SIGTERM):
    """Makes the run get a signal during a step."""
    original = programs.Programs.step

    def interrupted(self, state, batch, count):
        state = original(self, state, batch, count)
        if count + 1 == step:
            os.kill(os.getpid(), sent)
        return state

    monkeypatch.setattr(programs.Programs, "step", interrupted)


def test_sigterm_saves_at_once_and_says_so(finished, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        interrupt(patched, 6)
        assert train(tmp_path) == 75
    assert "stopped at step 6 of 16: the same command goes on" in capsys.readouterr().err
    assert steps(tmp_path) == [4, 6]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert train(tmp_path) == 0
    assert [record["step"] for record in sessions(tmp_path)] == [0, 6]
    assert_same(tmp_path, finished)


def test_ctrl_c_loses_what_came_after_the_last_checkpoint(finished, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        interrupt(patched, 11, signal.SIGINT)
        assert train(tmp_path) == 130
    assert train(tmp_path) == 0
    assert [record["step"] for record in sessions(tmp_path)] == [0, 8]
    assert_same(tmp_path, finished)


def test_a_finished_run_prints_the_same_at_once(finished, capfd, monkeypatch):
    monkeypatch.setattr(programs.Programs, "step", lambda *_: pytest.fail("trained again"))
    before = (finished / "metrics.jsonl").read_bytes()
    assert train(finished) == 0
    out, err = capfd.readouterr()
    assert f"test_loss {state(finished)[1]['test_loss']:.4g}" in out
    assert err.startswith("Training GAM, mlp, digits") and err.count("\n") == 1  # no bar, as this is no terminal
    assert (finished / "metrics.jsonl").read_bytes() == before


def data_files(folder):
    """Where most of the arrays are; orbax may keep a second copy, which it does not read."""
    files = [path for path in (folder / "state").rglob("d/*") if path.is_file()]
    largest = max(path.stat().st_size for path in files)
    return [path for path in files if path.stat().st_size == largest]


def flip_a_bit(folder):
    for path in data_files(folder):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data)


def cut(folder):
    for path in data_files(folder):
        path.write_bytes(b"")


DAMAGE = {
    "a flipped bit": flip_a_bit,
    "a cut file": cut,
    "no arrays": lambda folder: shutil.rmtree(folder / "state"),
    "no record": lambda folder: shutil.rmtree(folder / "record"),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_taken(finished, tmp_path, capsys, kind):
    shutil.copytree(finished, tmp_path / "run")
    DAMAGE[kind](tmp_path / "run" / "checkpoints" / "16")
    assert train(tmp_path / "run") == 0
    printed = " ".join(capsys.readouterr().err.split())
    assert re.search(r"checkpoint \S+/16 is damaged.*; set aside, and going on from the one before", printed)
    assert (tmp_path / "run" / "damaged" / "16").is_dir()
    assert [record["step"] for record in sessions(tmp_path / "run")] == [0, 12]
    assert_same(tmp_path / "run", finished)


def test_other_versions_are_said_and_recorded(finished, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        interrupt(patched, 6)
        assert train(tmp_path) == 75
    monkeypatch.setattr("experiments.train.metrics.provenance", lambda: provenance() | {"jax": "0.0.1"})
    assert train(tmp_path) == 0
    assert re.search(r"going on with other versions than before: jax \S+ -> 0.0.1\n", capsys.readouterr().err)
    assert sessions(tmp_path)[-1]["made_with"]["jax"] == "0.0.1"


def test_checkpoints_within_an_epoch(finished, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        interrupt(patched, 7, signal.SIGINT)
        assert train(tmp_path, "--checkpoints.every", "3") == 130
    assert train(tmp_path, "--checkpoints.every", "3") == 0
    assert [record["step"] for record in sessions(tmp_path)] == [0, 6]
    assert records(tmp_path) == records(finished)


def test_the_latest_the_middle_the_last_and_the_best_are_kept(tmp_path):
    arguments = ("--method", "plain", "--averaging", "none", "--seed", "4", "--learning-rate", "0.6", "--epochs", "8")
    assert train(tmp_path, *arguments, "--checkpoints.keep", "1") == 0
    scores = {record["step"]: record["validation_accuracy"] for record in records(tmp_path, "evaluation")}
    best = max(scores, key=lambda step: scores[step])
    assert best not in (16, 32) and steps(tmp_path) == sorted({16, 32, best})
