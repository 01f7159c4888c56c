"""A checkpoint that is not what was saved is set aside; what cannot be saved is refused in one line."""

import asyncio
import gc
import itertools
import json
import re
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common.errors import UserError
from experiments.train.checkpoint import open_checkpoints, read_checkpoints
from experiments.train.metrics import open_metrics
from tests.experiments.train.runs import SMALL, refused, train_elsewhere

STATE = {"params": jnp.arange(5.0), "opt_state": jnp.ones(3, jnp.int32)}
SCORES = {"step": 2, "test_accuracy": 0.5}


def state_of(step):
    return {name: leaf * step for name, leaf in STATE.items()}


@pytest.fixture
def workdir(tmp_path):
    """A folder with the checkpoints 1 and 2."""
    with open_checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state_of(step), SCORES, None)
    return tmp_path


def restored(workdir):
    """The last good checkpoint, and what was said on the way to it."""
    said = []
    with open_checkpoints(workdir, keep=2) as checkpoints:
        found = checkpoints.restore_last(jax.eval_shape(lambda: STATE), said.append)
    assert found is not None
    return *found, said


def edit_record(workdir, edit):
    path = workdir / "checkpoints" / "2" / "record" / "metadata"
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))


def without(name):
    return lambda record: {field: value for field, value in record.items() if field != name}


def changed(**changes):
    return lambda record: record | {name: change(record[name]) for name, change in changes.items()}


RECORDS = {
    "no checksums": without("checksums"),
    "no scores": without("scores"),
    "a checksum too few": changed(checksums=lambda sums: sums[:-1]),
    "a checksum too many": changed(checksums=lambda sums: [*sums, 1]),
    "checksums of another type": changed(checksums=str),
    "one checksum of another type": changed(checksums=lambda sums: [*sums[:-1], None]),
    "one wrong checksum": changed(checksums=lambda sums: [sums[0] ^ 1, *sums[1:]]),
    "scores of another type": changed(scores=list),
    "a flipped bit in a score": changed(scores=lambda scores: scores | {"test_accuracy": 0.5000000000000001}),
    "a flipped bit in a score's name": changed(scores=lambda scores: {"step": 2, "test_accurac8": 0.5}),
    "a flipped bit in a field's name": lambda record: {name.replace("_c", "_s"): v for name, v in record.items()},
    "null": lambda record: None,
    "a list": lambda record: [record],
    "nested": lambda record: record | {"checksums": [record["checksums"]] * 2},
}


@pytest.mark.parametrize("kind", RECORDS)
def test_a_damaged_record_is_set_aside_with_its_checkpoint(workdir, kind):
    edit_record(workdir, RECORDS[kind])
    state, scores, (said,) = restored(workdir)
    assert re.search(r"checkpoint \S+/2 is damaged.*; set aside, and going on from the one before", said)
    np.testing.assert_array_equal(state["params"], state_of(1)["params"])
    assert scores == SCORES and (workdir / "damaged" / "2").is_dir()


def test_a_record_from_before_scores_had_a_checksum_is_read(workdir):
    edit_record(workdir, without("scores_checksum"))
    state, scores, said = restored(workdir)
    assert not said and scores == SCORES
    np.testing.assert_array_equal(state["params"], state_of(2)["params"])


@pytest.mark.parametrize("name", ["[1]", "a*", "b?"])
def test_a_folder_that_orbax_would_take_for_a_pattern_is_refused_before_it_is_made(tmp_path, capsys, name):
    character = re.escape(next(letter for letter in name if letter in "[*?"))
    message = rf"checkpoints cannot lie in a folder with '{character}' in its path"
    assert re.search(message, refused(capsys, *SMALL, "--workdir", str(tmp_path / name / "run")))
    assert not list(tmp_path.iterdir())
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=message), read_checkpoints(tmp_path / name):
        pass


@pytest.mark.parametrize("text", ["null", "[]", "3", '{"config": null}', '{"config": [1]}'])
def test_a_config_that_is_no_object_is_named_and_not_compared(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError) as raised, open_metrics(tmp_path, {"a": {"b": 1}}):
        pass
    assert f"config.json holds {json.loads(text)}, expected an object" in str(raised.value)
    assert "absent" not in str(raised.value)


REFUSING = """
import resource, sys
import orbax.checkpoint as ocp
from experiments import main

save, largest = ocp.CheckpointManager.save, int(sys.argv[1])

def refused(*args, **kwargs):
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
    return save(*args, **kwargs)

ocp.CheckpointManager.save = refused
sys.exit(main.main(sys.argv[2:]))
"""


@pytest.mark.parametrize("largest", [0, pytest.param(16000, marks=pytest.mark.slow)])  # no file, not the arrays
def test_a_disk_that_refuses_a_checkpoint_is_one_line(tmp_path, largest):
    arguments = ("--method", "plain", "--averaging", "none", "--model.hidden", "128", "--steps", "4")
    run = train_elsewhere(REFUSING, tmp_path, *arguments, before=[str(largest)])
    place = re.escape(str(tmp_path / "checkpoints"))
    assert run.returncode == 2
    message = (
        rf"Training SGD, .*\nerror: cannot write a checkpoint to {place}: File too large. No checkpoint was saved\n"
    )
    assert re.fullmatch(message, run.stderr), run.stderr


def test_what_a_refused_write_leaves_behind_is_silent(workdir, monkeypatch, caplog):
    def late():
        raise TimeoutError("completed 2/4 futures but timed out after -3100.00 seconds")

    with open_checkpoints(workdir, keep=2) as checkpoints, warnings.catch_warnings(record=True) as warned:
        with monkeypatch.context() as patched, pytest.raises(UserError, match=r"-3100.00 seconds \(was the clock"):
            patched.setattr(checkpoints._manager, "wait_until_finished", late)
            checkpoints.wait()
        warnings.warn("coroutine 'save' was never awaited", RuntimeWarning, stacklevel=1)
        loop = asyncio.new_event_loop()
        loop.create_future().set_exception(ValueError("nobody asks for it"))
        loop.close()
        gc.collect()
    assert not warned and not caplog.records


def test_a_clock_that_jumps_disturbs_nothing(tmp_path, monkeypatch):
    real, jumps = time.time, itertools.cycle([0.0, 1e5, -1e5, 3e6])
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    with open_checkpoints(tmp_path, keep=4) as checkpoints:
        for step in range(1, 5):
            checkpoints.save(step, state_of(step), SCORES, None)
            checkpoints.wait()
        assert checkpoints.steps() == [1, 2, 3, 4]
