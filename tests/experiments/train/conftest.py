"""What makes whole runs quick to repeat: our own code is read once, and only the first run of a module draws."""

import functools

import pytest

from experiments.common import provenance


@pytest.fixture(scope="module", autouse=True)
def _read_once():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(provenance, "_code", functools.cache(provenance._code))
        yield


@pytest.fixture(autouse=True)
def _draw_nothing(monkeypatch):
    """The fixtures of a module run before this, and draw."""
    monkeypatch.setattr("experiments.train.run.draw_curves", lambda *_: None)
