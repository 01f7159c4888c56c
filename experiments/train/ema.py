"""An exponential moving average of the parameters, in the form of :func:`gam_jax.averaging.swad`."""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from gam_jax.averaging import Swad


class EmaState(NamedTuple):
    """The state of :func:`ema`.

    Attributes:
      mean: of the iterates so far, float32.
      iterates: their number, int32.
    """

    mean: Any
    iterates: jax.Array


def ema(decay: float) -> Swad:
    r"""The mean of the iterates in which the weight of an older one falls by ``decay`` a step.

    .. math:: m_n = m_{n-1} + \max(1 - d, 1/n) (w_n - m_{n-1})

    1. The step 1/n makes it the plain mean of the first 1 / (1 - d) iterates: the initial parameters take no part, and
       nothing is to be corrected by 1 - d^n, which is inexact in float32 for small n.

    Args:
      decay: d, in [0, 1).
    """

    def init(params: Any) -> Any:
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), params)
        return cast(Any, EmaState(zeros, jnp.zeros((), jnp.int32)))

    def update(state: Any, params: Any) -> Any:
        count = state.iterates + 1
        step = jnp.maximum(1 - decay, 1 / count)
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
        return EmaState(optax.incremental_update(wide, state.mean, step), count)

    def average(state: Any, params: Any) -> Any:
        return jax.tree.map(
            lambda leaf, mean: jnp.where(state.iterates > 0, mean, leaf).astype(leaf.dtype), params, state.mean
        )

    return Swad(init, update, lambda state, loss: state, average)
