"""Strict JAX on 8 virtual CPU devices; float64 where a test asks for it."""

import os
import pathlib
from importlib.metadata import version

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    # of LLVM alone, as most of the time goes into compiling; XLA's own passes stay
    " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    # twice as fast to compile as the newer emitters, which are all that there is from 0.12 on
     + " --xla_cpu_use_fusion_emitters=false" * (tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 12))
)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_threefry_partitionable", True)


@pytest.fixture
def x64():
    """Runs a test in float64."""
    with jax.enable_x64(True):
        yield


_MANY_MAPS = 20_000
"""Of a process's memory, of 65,530 that Linux allows; a compiled program has some."""


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_programs():
    """Before they exhaust the system's memory maps; not always, since small programs are shared by all modules."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if not maps.exists() or len(maps.read_text().splitlines()) > _MANY_MAPS:
        jax.clear_caches()
