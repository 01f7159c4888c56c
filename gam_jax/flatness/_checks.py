"""Checks of what a caller gives to a measurement."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def check_key(key: Any) -> None:
    """Raises unless the key is one typed key."""
    if not isinstance(key, jax.Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise TypeError(f"key must be a typed key, as jax.random.key(0) makes them, got {key!r}")
    if key.shape:
        raise ValueError(f"key must be a single key, got keys of shape {key.shape}")


def check_count(name: str, value: Any, *, at_least: int = 1, at_most: int | None = None, of: str = "") -> None:
    """Raises unless the value is an integer in the range; ``of`` says what ``at_most`` is."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {name}={value!r}")
    if value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {name}={value}")
    if at_most is not None and value > at_most:
        raise ValueError(f"{name} must be at most {at_most}{of}, got {name}={value}")


def check_positive(name: str, value: Any) -> None:
    """Raises unless the value is a finite number > 0."""
    if isinstance(value, str | bool) or np.ndim(value) or not 0 < float(value) < math.inf:
        raise ValueError(f"{name} must be a finite number > 0, got {name}={value!r}")
