"""On which steps a method acts: decided in Python where that is known, else by the program, for a vmap as well."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from gam_jax._checks import check_integer, check_number
from gam_jax._signature import readable


def on_interval(
    interval: int | jax.Array | Callable[[jax.Array], Any],
    count: Any,
    act: Callable[[], Any],
    rest: Callable[[], Any],
) -> Any:
    """``act()`` on the steps of the interval, else ``rest()``; only one of them runs.

    1. Under vmap, over an ensemble say, ``lax.cond`` would run both on every step. Here nobody acts on the steps on
       which no member does; on the others each member takes what is its own.
    """
    acts = _acts(interval, count)
    if not isinstance(acts, Tracer):
        return act() if acts else rest()

    def each_its_own() -> Any:
        mine = _mine(acts)
        return jax.tree.map(lambda acted, rested: jnp.where(mine, acted, rested), act(), rest())

    return jax.lax.cond(_anyone(acts), each_its_own, rest)


@readable
def late_phase(steps: int, fraction: float, *, interval: int = 1) -> Callable[[Any], Any]:
    """The last part of a training run, for ``interval=gam_jax.late_phase(...)``: the method acts there alone.

    Zhou et al. 2025 find most of SAM's gain in the last few epochs.

    Cost: of a method of c gradients, ``1 + fraction (c - 1) / interval`` on average.

    Args:
      steps: of the whole run.
      fraction: of the steps on which the method acts, in [0, 1]; rounded to whole steps.
      interval: it acts on every k-th of these, from the first on.

    Returns:
      A function from the step count to a bool, an array inside jit.

    Raises:
      ValueError: for a number out of range.

    Example:
      >>> import gam_jax
      >>> acts = gam_jax.late_phase(steps=10, fraction=0.3)
      >>> [count for count in range(10) if acts(count)]
      [7, 8, 9]
      >>> tx = gam_jax.gam(lambda params: (params**2).sum(), interval=acts)

    References:
      Zhou et al., ICLR 2025, https://arxiv.org/abs/2410.10373
    """
    check_integer("steps", steps)
    check_integer("interval", interval)
    check_number("fraction", fraction, at_most=1)
    start = steps - round(fraction * steps)
    return lambda count: (count >= start) & ((count - start) % interval == 0)


def _acts(interval: Any, count: Any) -> Any:
    """Whether this is a step of the interval: a bool, or an array of one."""
    if not callable(interval):
        every = not isinstance(interval, Tracer) and interval == 1
        return True if every else count % interval == 0
    acts = interval(count)
    if isinstance(acts, bool | np.bool_):
        return acts
    if not isinstance(acts, jax.Array | np.ndarray) or acts.shape or not acts.dtype == bool:
        raise TypeError(f"interval must return one bool for a step count, got {acts!r}")
    return acts


@jax.custom_batching.custom_vmap
def _anyone(acts: jax.Array) -> jax.Array:
    """``acts``; under vmap whether one member acts, the same for all."""
    return acts


@_anyone.def_vmap
def _(size: int, batched: list[bool], acts: jax.Array) -> tuple[jax.Array, bool]:
    del size, batched
    return _anyone(jnp.any(acts, axis=0)), False


@jax.custom_batching.custom_vmap
def _mine(acts: jax.Array) -> jax.Array:
    """Where someone acts, whether this member does: true, a constant; under vmap ``acts``."""
    return jnp.ones_like(acts)


@_mine.def_vmap
def _(size: int, batched: list[bool], acts: jax.Array) -> tuple[jax.Array, bool]:
    del size, batched
    return acts, True
