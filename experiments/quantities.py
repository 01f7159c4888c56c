"""What :mod:`gam_jax.flatness` measures of a network, as numbers that JSON holds; of checkpoints and in studies."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from gam_jax import flatness

Plan = dict[str, Callable[[], Any]]
"""Measurements by name. Each returns something that :func:`plain` makes JSON of."""


def radii(
    of: dict[str, Any], rho: Sequence[float], key: jax.Array, *, ascent_steps: int, restarts: int
) -> dict[str, Callable[[], dict[str, Any]]]:
    """R0 and R1 over the radius, each the largest of several ascents.

    Args:
      of: loss, parameters and batches, as every function of :mod:`gam_jax.flatness` takes them.
      rho: the radii.
      key: for the starts; all ascents have the same.
      ascent_steps: from each start, at most.
      restarts: random starts, beside the one at the parameters.
    """

    def maximum(measure: Callable[..., flatness.Flatness], rho: float) -> dict[str, Any]:
        found = measure(**of, num_steps=ascent_steps, num_restarts=restarts, rho=rho, key=key)
        return {
            "rho": rho,
            "value": found.value,
            "distance": found.distance,
            "stationarity": found.stationarity,
            "ends": found.history[:, -1],
        }

    return {
        f"{measure.__name__} rho={radius}": functools.partial(maximum, measure, radius)
        for measure in (flatness.zeroth_order_flatness, flatness.first_order_flatness)
        for radius in rho
    }


def plain(value: Any) -> Any:
    """Numbers, arrays and what is made of them as JSON holds them; None for inf and NaN."""
    value = getattr(value, "_asdict", lambda: value)()
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
