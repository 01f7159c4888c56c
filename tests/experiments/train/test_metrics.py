"""Every number is written once, as JSON and for TensorBoard, whatever was killed in between."""

import json

import jax.numpy as jnp
import optax
import pytest
from tensorboardX.proto.event_pb2 import Event

import gam_jax
from experiments.common.errors import UserError
from experiments.train.metrics import Metrics, diagnostics, open_metrics


def record(kind, step, **values):
    return {"kind": kind, "step": step, "epoch": step / 4} | values


def evaluation(step, validation, test):
    return record("evaluation", step, validation_accuracy=validation, test_accuracy=test)


def board(workdir):
    """What the TensorBoard files hold: an event is its length (8 bytes), a checksum (4), the event, a checksum (4)."""
    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            data = data[16 + length :]
    return found


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_numbers_are_the_same_in_json_and_in_tensorboard(tmp_path):
    first, second = record("train", 3, loss=0.25, gam_grad_norm=1.5), record("evaluation", 4, test_accuracy=0.75)
    with open_metrics(tmp_path, {}) as metrics:
        metrics.write(first)
        metrics.write(second)
    assert lines(tmp_path) == [first, second]
    assert board(tmp_path) == [
        ("train/loss", 3, 0.25),
        ("train/gam_grad_norm", 3, 1.5),
        ("evaluation/test_accuracy", 4, 0.75),
    ]


def test_a_record_is_on_disk_at_once(tmp_path):
    with open_metrics(tmp_path, {}) as metrics:
        metrics.write(record("train", 3, loss=0.25))
        assert len(lines(tmp_path)) == 1 and board(tmp_path) == [("train/loss", 3, 0.25)]


def test_a_full_disk_is_reported(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="cannot write for TensorBoard: .*No space left on device; the same command"):
        with open_metrics(tmp_path, {}) as metrics:
            monkeypatch.setattr("os.fsync", full)
            metrics.write(record("train", 3, loss=0.25))


def test_what_was_recorded_before_a_kill_is_not_written_again(tmp_path):
    for loss in (0.25, 99.0):
        with open_metrics(tmp_path, {}) as metrics:
            metrics.write(record("train", 3, loss=loss))
            metrics.write(record("evaluation", 3, test_loss=loss))
        for path in (tmp_path / "tensorboard").glob("events.*"):  # they are called after the second
            path.rename(path.with_name(f"{loss}"))
    assert [(line["kind"], line["step"]) for line in lines(tmp_path)] == [("train", 3), ("evaluation", 3)]
    assert [value for _, _, value in board(tmp_path)] == [0.25, 0.25]


def test_every_session_is_recorded_even_at_the_same_step(tmp_path):
    said = []
    for name in ("a", "b"):
        with open_metrics(tmp_path, {}) as metrics:
            metrics.begin_session(0, {"command": name}, said.append)
    assert [(line["step"], line["session"], line["command"]) for line in lines(tmp_path)] == [(0, 0, "a"), (0, 1, "b")]
    assert said == []


def test_the_best_epoch_is_the_first_of_the_highest_score(tmp_path):
    with open_metrics(tmp_path, {}) as metrics:
        assert metrics.best_epoch("validation_accuracy") == {}
        for each in (
            evaluation(4, 0.5, 0.9),
            evaluation(8, 0.7, 0.6),
            evaluation(12, 0.7, 0.8),
            evaluation(16, 0.6, 1.0),
        ):
            metrics.write(each)
        best = metrics.best_epoch("validation_accuracy")
    assert best == {"best_epoch": 2.0, "best_epoch_validation_accuracy": 0.7, "best_epoch_test_accuracy": 0.6}


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.train.metrics.is_first", lambda: False)
    with open_metrics(tmp_path / "run", {}) as metrics:
        metrics.write(record("train", 3, loss=0.25))
        assert metrics.records == [] and isinstance(metrics, Metrics)
    assert not list(tmp_path.iterdir())


def test_diagnostics_are_those_of_each_link_by_its_name():
    def loss_fn(params):
        return jnp.sum(params**4)

    params = jnp.array([1.0, 2.0])
    tx = optax.chain(gam_jax.sam(loss_fn, 0.1), gam_jax.gam(loss_fn, 0.2, 0.5), optax.sgd(0.1, 0.9))
    gradient = 4 * params**3
    _, state = tx.update(gradient, tx.init(params), params)
    found = diagnostics(state, ("sam", "gam"))
    assert found["sam_grad_norm"] == pytest.approx(float(jnp.linalg.norm(gradient)), rel=1e-6)
    assert found["gam_first_order_flatness"] == pytest.approx(0.2 * found["gam_perturbed_grad_norm"], rel=1e-6)
    assert {name.split("_")[0] for name in found} == {"sam", "gam"}
    assert all(isinstance(value, float) for value in found.values())
    assert diagnostics(optax.sgd(0.1).init(params), ()) == {}
