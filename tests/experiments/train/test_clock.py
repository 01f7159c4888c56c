"""What the metrics say of time, of the hardware and of memory; and what is slow is said at the start."""

import json
import types

import jax
import jax.numpy as jnp
import pytest

from experiments.common.hlo import parse
from experiments.measure.cost.chips import CHIPS, peak_flops
from experiments.train import clock, programs
from experiments.train.clock import Clock
from tests.experiments.train.runs import SMALL, train, use_convnet


@pytest.fixture
def seconds(monkeypatch):
    """A clock that a test sets."""
    now = types.SimpleNamespace(value=0.0)
    monkeypatch.setattr(clock, "time", types.SimpleNamespace(perf_counter=lambda: now.value))
    return now


def test_times_of_steps_and_the_share_of_the_peak(seconds):
    def slowly():
        while True:
            seconds.value += 0.5
            yield "batch"

    found = Clock(batch_size=10, peak_flops=8.0)
    batches = slowly()
    for flops in (2.0, 6.0):
        assert found.wait_for(batches, flops) == "batch"
        seconds.value += 1.5
    expected = {"seconds": 4.0, "input_seconds": 1.0, "step_seconds": 2.0, "images_per_second": 5.0, "mfu": 0.25}
    assert found.times() == expected
    found.wait_for(batches, None)
    assert found.times() == {"seconds": 0.5, "input_seconds": 0.5, "step_seconds": 0.5, "images_per_second": 20.0}
    assert "mfu" not in _one_step(Clock(10, None), batches)


def _one_step(found, batches):
    found.wait_for(batches, 1.0)
    return found.times()


def test_peaks_are_those_of_the_chips():
    assert peak_flops("TPU v5 lite") == CHIPS["v5e"].flops == 197e12
    assert peak_flops("TPU v5p") == peak_flops("TPU v5") == 459e12
    assert peak_flops("cpu") is None


@pytest.mark.parametrize("device, expected", [(None, "compiled"), ({"peak_bytes_in_use": 5}, 5), ({}, "compiled")])
def test_memory_is_measured_or_that_of_the_program(monkeypatch, device, expected):
    devices = [types.SimpleNamespace(memory_stats=lambda: device), types.SimpleNamespace(memory_stats=lambda: {})]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    found = object.__new__(programs.Programs)
    found._method = types.SimpleNamespace(peak_bytes="compiled")
    assert found.memory() == {"peak_memory_bytes": expected}


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_a_record_has_them_but_for_the_peak_of_a_cpu(tmp_path):
    assert train(tmp_path, "--steps", "2", "--log-every", "1") == 0
    first, second = (line for line in lines(tmp_path) if line["kind"] == "train")
    assert first.keys() == second.keys() and "mfu" not in first
    assert first["step_seconds"] == pytest.approx(16 / first["images_per_second"])
    parameters = 64 * 8 + 8 + 8 * 10 + 10
    assert first["peak_memory_bytes"] > 4 * (2 + 8) * parameters  # with momentum, and what SWAD keeps


def test_convolutions_in_loops_are_found():
    kernel = jnp.ones((3, 3, 2, 2))

    def blur(x, _=None):
        return jax.lax.conv(x, kernel.transpose(3, 2, 0, 1), (1, 1), "SAME"), None

    def count(fn):
        return parse(jax.jit(fn).lower(jnp.ones((1, 2, 8, 8))).compile().as_text()).looped("convolution")

    assert count(lambda x: blur(x)[0]) == 0
    assert count(lambda x: jax.lax.scan(blur, x, length=3)[0]) == 1
    assert count(lambda x: jax.lax.cond(x.sum() > 0, lambda x: blur(x)[0], jnp.sin, x)) == 1


@pytest.mark.parametrize("groups, said", [("2", True), ("1", False)])
def test_what_the_cpu_is_slow_at_is_said(tmp_path, monkeypatch, capsys, groups, said):
    use_convnet(monkeypatch)
    command = [*SMALL, "--model.name", "resnet20", "--steps", "1", "--groups", groups]
    command[command.index("--model.hidden") : command.index("--model.hidden") + 2] = []
    assert train(tmp_path, command=command) == 0
    warning = "convolutions of the step stand in the loop of --groups 2, where XLA runs them up to 60 times slower"
    assert (warning in capsys.readouterr().err) == said


def test_a_run_of_before_an_option_was_there_goes_on(tmp_path):
    assert train(tmp_path, "--steps", "1") == 0
    place = tmp_path / "config.json"
    stored = json.loads(place.read_text())
    for name in ("mixup", "loss", "ema_decay"):
        del stored["config"][name]
    del stored["config"]["optim"]["clip"]
    place.write_text(json.dumps(stored))
    assert train(tmp_path, "--steps", "1") == 0
    stored["config"]["seed"] = 4
    place.write_text(json.dumps(stored))
    assert train(tmp_path, "--steps", "1") == 2
