"""A checkpoint that is called good is good; and scores, sums and what is kept are those that they should be."""

import os
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.train import checkpoint, programs
from experiments.train.checkpoint import open_checkpoints
from tests.experiments.train.runs import records, state, steps, train

PLAIN = ("--method", "plain", "--averaging", "none")


def spoil(monkeypatch, step, part, then=lambda: None):
    """Makes a part of the state NaN after a step, without any loss to tell it."""
    original = programs.Programs.step

    def spoiling(self, state, batch, count):
        state = original(self, state, batch, count)
        if count + 1 == step:
            then()
            state = state._replace(**{part: jax.tree.map(lambda leaf: leaf * np.float32(np.nan), getattr(state, part))})
        return state

    monkeypatch.setattr(programs.Programs, "step", spoiling)


def assert_finite(workdir):
    for step in steps(workdir):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state(workdir, step)[0]))


@pytest.mark.parametrize("part", ["params", "opt_state"])
def test_the_last_finite_checkpoint_is_kept_and_named(tmp_path, monkeypatch, capsys, part):
    spoil(monkeypatch, 7, part)
    message = rf"{part}\S+ .*not finite after step 7, and training stopped: .* The last good checkpoint is \S+/6\n"
    for _ in range(2):  # the same command is told the same
        assert train(tmp_path, *PLAIN, "--checkpoints.every", "1", "--checkpoints.keep", "1") == 2
        assert re.search(message, capsys.readouterr().err)
        assert 6 in steps(tmp_path) and 7 not in steps(tmp_path)
    assert_finite(tmp_path)


def test_sigterm_saves_nothing_that_is_not_finite(tmp_path, monkeypatch, capsys):
    spoil(monkeypatch, 6, "params", then=lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert train(tmp_path, *PLAIN) == 2
    assert re.search(r"not finite after step 6, .* The last good checkpoint is \S+/4\n", capsys.readouterr().err)
    assert steps(tmp_path) == [4]


def test_a_checkpoint_of_nan_from_before_is_set_aside(tmp_path, monkeypatch):
    said, good = [], {"params": jnp.ones(3), "averaging": jnp.full(2, jnp.nan)}
    with monkeypatch.context() as patched, open_checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(1, good, {}, None)
        patched.setattr(checkpoint, "not_finite", lambda *_: [])
        checkpoints.save(2, good | {"params": jnp.array([1.0, jnp.inf, 1.0])}, {}, None)
    with open_checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.restore_last(jax.eval_shape(lambda: good), said.append) is not None
        assert checkpoints.steps() == [1]
    assert re.search(r"/2 is of a run that had diverged: params not finite; set aside", said[0])


def test_the_best_checkpoint_is_that_of_the_validation_set(tmp_path, monkeypatch):
    scripted = {"validation": iter([0.1, 0.9, 0.3, 0.4, 0.5, 0.6]), "test": iter([0.9, 0.1, 0.2, 0.3, 0.1, 0.1])}

    def evaluate(self, params, model_state, *parts):
        return {f"{part}_{name}": value for part in parts for name, value in found(part).items()}

    def found(part):
        return {"loss": 1.0, "accuracy": next(scripted[part]) if part in scripted else 0.0}

    def last_of_all(self, state):
        scripted.clear()
        return state.params, state.model_state

    monkeypatch.setattr(programs.Programs, "evaluate", evaluate)
    monkeypatch.setattr(programs.Programs, "result", last_of_all)
    assert train(tmp_path, *PLAIN, "--epochs", "6", "--checkpoints.keep", "1") == 0
    assert steps(tmp_path) == [8, 12, 24]  # the best, half-time and the last
    best = state(tmp_path, 24)[1]
    assert best["best_epoch"] == 2 and best["best_epoch_test_accuracy"] == 0.1


def test_a_record_is_of_the_steps_since_the_one_before(tmp_path):
    losses = {}
    for every in (1, 2):
        assert train(tmp_path / str(every), *PLAIN, "--steps", "4", "--log-every", str(every)) == 0
        losses[every] = [record["loss"] for record in records(tmp_path / str(every), "train")]
    np.testing.assert_allclose(np.reshape(losses[1], (2, 2)).mean(1), losses[2], rtol=1e-6)


@pytest.mark.parametrize("large", [True, False])
def test_what_may_compile_for_minutes_is_said(tmp_path, monkeypatch, capsys, large):
    monkeypatch.setattr("experiments.train.run._LARGE", 0 if large else 10**4)
    assert train(tmp_path, *PLAIN, "--steps", "1") == 0
    said = r"compiling the training step of .* on mlp, 0.0 million parameters: this may take minutes\n"
    assert bool(re.search(said, capsys.readouterr().err)) == large
