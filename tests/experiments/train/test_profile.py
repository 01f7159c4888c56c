"""A trace of three steps, in the folder of the run."""

import contextlib
import json

import jax
import pytest

from experiments.train.profile import profiled
from tests.experiments.train.runs import train


@pytest.fixture
def watched(monkeypatch):
    """The calls that begin and end a trace, in their order, in place of traces."""
    seen = []

    @contextlib.contextmanager
    def trace(folder):
        seen.append(folder)
        try:
            yield
        finally:
            seen.append("end")

    monkeypatch.setattr(jax.profiler, "trace", trace)
    return seen


def test_the_tenth_to_twelfth_call_are_traced(tmp_path, watched):
    with profiled(lambda number: watched.append(number) or number, tmp_path) as step:
        assert [step(number) for number in range(1, 15)] == [*range(1, 15)]
    assert watched == [*range(1, 10), tmp_path, 10, 11, 12, "end", 13, 14]


def test_a_run_that_ends_before_ends_the_trace(tmp_path, watched):
    with pytest.raises(RuntimeError), profiled(lambda number: watched.append(number), tmp_path) as step:
        for number in range(1, 12):
            step(number)
        raise RuntimeError
    assert watched[-4:] == [tmp_path, 10, 11, "end"]


@pytest.mark.slow
def test_a_run_writes_a_trace_if_asked_to_and_is_the_same_run(tmp_path):
    assert train(tmp_path / "with", "--profile") == 0
    assert list((tmp_path / "with" / "profile").rglob("*.xplane.pb"))
    assert "profile" not in json.loads((tmp_path / "with" / "config.json").read_text())["config"]
    assert train(tmp_path / "without", "--steps", "1") == 0
    assert not (tmp_path / "without" / "profile").exists()
