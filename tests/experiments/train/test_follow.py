"""The top Hessian eigenvalue followed by the trainer: what it is, that it changes nothing, that no stop loses it."""

import contextlib
import json

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from experiments.train import curves
from experiments.train.config import TrainConfig
from experiments.train.setup import set_up
from experiments.train.step import make_measured_loss
from tests.experiments.train.runs import assert_same, records, refused, state, train

FOLLOW = ("--method", "plain", "--averaging", "none", "--eigenvalue-every", "4")


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("followed") / "run"
    assert train(workdir, *FOLLOW) == 0
    return workdir


def test_it_is_the_eigenvalue_of_the_first_batch(followed):
    found = records(followed, "curvature")
    assert [record["step"] for record in found] == [4, 8, 12, 16]
    config = TrainConfig.of(followed, json.loads((followed / "config.json").read_text())["config"])
    setup, (last, _) = set_up(config), state(followed)
    batch = next(iter(setup.pipeline.evaluation("train")))
    assert len(batch.label) == 16 and batch.weight.all()
    loss = make_measured_loss(setup.model, setup.pipeline.data_set)
    flat, unravel = ravel_pytree(last.params)
    gradient = jax.grad(lambda w: loss(unravel(w), batch, last.model_state))
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(flat.size, 3)))[0]
    product = jax.jit(lambda v: jax.jvp(gradient, (flat,), (v,))[1])
    for _ in range(60):  # subspace iteration
        basis = np.linalg.qr(np.stack([product(column.astype(np.float32)) for column in basis.T], 1))[0]
    top = np.linalg.eigvalsh(basis.T @ np.stack([product(v.astype(np.float32)) for v in basis.T], 1))[-1]
    assert found[-1]["top_eigenvalue"] == pytest.approx(top, rel=0.05)
    assert found[-1]["top_eigenvalue"] == float(last.followed.value) and found[-1]["residual"] < 0.3 * top


def test_it_changes_nothing_else(followed, tmp_path):
    assert train(tmp_path / "run", *FOLLOW[:-2]) == 0
    found = [records(workdir, "train", "evaluation") for workdir in (tmp_path / "run", followed)]
    for record in (*found[0], *found[1]):
        record.pop("peak_memory_bytes", None)  # the eigenvector lies in the state
    assert found[0] == found[1] and records(tmp_path / "run", "curvature") == []
    (plain, _), (with_it, _) = state(tmp_path / "run"), state(followed)
    jax.tree.map(np.testing.assert_array_equal, plain._replace(followed=with_it.followed), with_it)
    assert plain.followed == ()


def test_a_run_that_was_stopped_goes_on_with_it(followed, tmp_path, monkeypatch):
    asked = iter([False] * 6 + [True])
    with monkeypatch.context() as patched:
        patched.setattr("experiments.train.run._stop_signal", lambda: _asks(asked))
        assert train(tmp_path / "run", *FOLLOW) == 75
    assert train(tmp_path / "run", *FOLLOW) == 0
    assert records(tmp_path / "run", "curvature") == records(followed, "curvature")
    assert_same(followed, tmp_path / "run")


@contextlib.contextmanager
def _asks(answers):
    yield lambda step: next(answers)


def test_the_picture_has_the_edge_of_stability(followed, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(curves, "save", lambda figure, path: drawn.append(figure) or path)
    every = [json.loads(line) for line in (followed / "metrics.jsonl").read_text().splitlines()]
    curves.draw_curves(every, "title", tmp_path / "curves.png", 3.8)
    lines = {line.get_label(): line.get_ydata() for line in drawn[0].axes[-1].lines}
    found = records(followed, "curvature")
    np.testing.assert_allclose(lines["top Hessian eigenvalue"], [record["top_eigenvalue"] for record in found])
    np.testing.assert_allclose(lines["3.8 / learning rate"], [3.8 / record["learning_rate"] for record in found])
    curves.draw_curves([r for r in every if r["kind"] != "curvature"], "title", tmp_path / "curves.png", 3.8)
    assert len(drawn[1].axes) == len(drawn[0].axes) - 1


def test_zero_is_refused(capsys, tmp_path):
    assert "eigenvalue_every must be at least 1, got 0" in refused(
        capsys,
        "train",
        "--config",
        "digits",
        "--method",
        "plain",
        "--eigenvalue-every",
        "0",
        "--workdir",
        str(tmp_path),
    )
