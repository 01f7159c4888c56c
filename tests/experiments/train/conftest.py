"""What makes whole runs quick to repeat: a program is compiled once, and only the first run of a module draws."""

import functools

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments.common import provenance

_CACHE = {
    "jax_compilation_cache_dir": None,
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


@pytest.fixture(scope="session")
def compiled_before(tmp_path_factory):
    """Where compiled programs lie, for this process and those that it starts."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module", autouse=True)
def _compile_once(compiled_before):
    before = {name: getattr(jax.config, name) for name in _CACHE}
    with pytest.MonkeyPatch.context() as patched:
        for name, value in (_CACHE | {"jax_compilation_cache_dir": str(compiled_before)}).items():
            jax.config.update(name, value)
            patched.setenv(name.upper(), str(value))
        compilation_cache.reset_cache()
        patched.setattr(provenance, "_code", functools.cache(provenance._code))
        yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(autouse=True)
def _draw_nothing(monkeypatch):
    """Runs of fixtures of a module are made before this, and draw."""
    monkeypatch.setattr("experiments.train.run.draw_curves", lambda *_: None)
