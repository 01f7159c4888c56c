"""Stochastic weight averaging, densely: a uniform mean of the iterates between an overfit-aware start and end."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from gam_jax._check_trees import check_first_like, check_params
from gam_jax._checks import check_count, check_number, check_scalar
from gam_jax._signature import readable
from gam_jax._tree import all_finite, widen
from gam_jax._types import PyTree

_NONE = np.finfo(np.float32).max
"""Stands for a loss or a threshold that has not been. Not NaN, which jax_debug_nans hunts."""


class SwadState(NamedTuple):
    """The state of :func:`swad`: a pytree of arrays.

    A segment is what lies between two validations. With Q = max(start_patience, end_patience):

    Attributes:
      current: the mean of the iterates of the running segment, in float32 or wider.
      current_count: their number.
      recent: the means of the last Q segments, with a leading axis [Q], the oldest first.
      recent_counts: their numbers of iterates, [Q]; 0 for those that do not belong to the average.
      recent_losses: the validation losses at their ends, [Q]; the largest float32 for those that have not
        been (NaN in states of older versions, which mean the same).
      older: the mean of the iterates of the segments of the average before these.
      older_count: their number.
      threshold: the validation loss that ends the average; the largest float32 before its start.
      started: whether the average has started.
      ended: whether it has ended. Nothing changes it any more.
    """

    current: PyTree
    current_count: jax.Array
    recent: PyTree
    recent_counts: jax.Array
    recent_losses: jax.Array
    older: PyTree
    older_count: jax.Array
    threshold: jax.Array
    started: jax.Array
    ended: jax.Array


class Swad(NamedTuple):
    """The functions of :func:`swad`; all are pure and can be jitted.

    Attributes:
      init: ``params -> state``.
      update: ``(state, params) -> state``, after every training step.
      validate: ``(state, loss) -> state``, after every validation, with its loss.
      average: ``(state, params) -> params``: the average, or ``params`` if it has not started, in their dtypes.
    """

    init: Callable[[PyTree], SwadState]
    update: Callable[[SwadState, PyTree], SwadState]
    validate: Callable[[SwadState, Any], SwadState]
    average: Callable[[SwadState, PyTree], PyTree]


@readable
def swad(*, start_patience: int = 3, end_patience: int = 6, tolerance_ratio: float = 0.3) -> Swad:
    r"""Stochastic Weight Averaging Densely (SWAD): the average of all iterates while validation says that it helps.

    Let :math:`l_1, l_2, \dots` be the validation losses and segment i the training steps that precede
    :math:`l_i` and follow :math:`l_{i-1}`. With :math:`N_s, N_e, r` = ``start_patience, end_patience,
    tolerance_ratio``:

    * start: at the first i with :math:`l_{i-N_s+1} = \min(l_{i-N_s+1}, \dots, l_i)`, when the loss has stopped
      falling, the average starts with segment :math:`i-N_s+1`, and the threshold is :math:`(1+r)` times the
      mean of these losses;
    * end: at the first later i with :math:`\min(l_{i-N_e+1}, \dots, l_i)` above the threshold, when the loss
      has stayed high, the average ends with segment :math:`i-N_e`;
    * result: the uniform mean of all iterates of these segments. Without an end, of all up to the last step.

    1. The released code weighs the first segment twice at its defaults; here every iterate counts once.
    2. An iterate with inf or NaN in it is left out and counts nowhere: the numbers of iterates in the state are those
       of finite ones. What is averaged stays finite, and of a run that diverges it is the mean before.

    Cost: one pass over the parameters per step. Memory: ``3 + max(start_patience, end_patience)`` copies of the
    parameters in float32, because the end is known ``end_patience`` validations late.

    Args:
      start_patience: N_s, >= 1. This and the other defaults are the paper's.
      end_patience: N_e, >= 1.
      tolerance_ratio: r, >= 0.

    Returns:
      :class:`Swad`, the pure functions ``init``, ``update``, ``validate`` and ``average``.

    Raises:
      ValueError, TypeError: for a patience or ratio out of range, for a state or parameters that are not those of
        ``init``; in ``validate``, for a loss that is not finite (inside jit a NaN neither starts nor ends the average).

    Example:
      >>> import jax.numpy as jnp, gam_jax.averaging
      >>> averaging = gam_jax.averaging.swad(start_patience=2, end_patience=2)
      >>> params = jnp.zeros(())
      >>> state = averaging.init(params)
      >>> for loss in [3.0, 2.0, 1.0, 1.1, 1.2, 9.0, 9.0]:
      ...     params = params + 1  # a training step
      ...     state = averaging.update(state, params)
      ...     state = averaging.validate(state, loss)
      >>> print(averaging.average(state, params))  # the mean of steps 3 to 5
      4.0

    References:
      Cha et al.: SWAD: Domain Generalization by Seeking Flat Minima. NeurIPS 2021.
      https://arxiv.org/abs/2102.08604
    """
    for name, value in {"start_patience": start_patience, "end_patience": end_patience}.items():
        if isinstance(value, Tracer):
            raise TypeError(f"{name} must be known now, not traced: shapes depend on it, got {name}={value!r}")
        check_count(name, value)
    check_number("tolerance_ratio", tolerance_ratio)
    size = max(start_patience, end_patience)

    def init(params: PyTree) -> SwadState:
        check_params(params, params)
        zeros = jax.tree.map(lambda leaf: jnp.zeros_like(widen(jnp.asarray(leaf))), params)
        stacked = jax.tree.map(lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype), zeros)
        none, threshold = jnp.zeros((), jnp.int32), jnp.asarray(_NONE)
        counts, losses = jnp.zeros(size, jnp.int32), jnp.full(size, _NONE)
        no = jnp.asarray(False)
        return SwadState(zeros, none, stacked, counts, losses, zeros, none, threshold, no, no)

    first = jax.jit(init)

    def check(state: SwadState, params: PyTree) -> None:
        if not isinstance(state, SwadState):
            raise TypeError(f"state must be what init returned, a SwadState, got {state!r}")
        check_params(params, params)
        check_first_like("state", state, first, params)

    def update(state: SwadState, params: PyTree) -> SwadState:
        check(state, params)
        one = jnp.where(state.ended | ~all_finite(params), 0, 1)
        current, count = _merge(state.current, state.current_count, params, one)
        return state._replace(current=current, current_count=count)

    def validate(state: SwadState, loss: Any) -> SwadState:
        check(state, getattr(state, "current", None))
        check_scalar("the validation loss", loss)
        if not isinstance(loss, Tracer) and not math.isfinite(loss):
            raise ValueError(f"the validation loss must be finite, got {loss}")
        index = jnp.arange(size)
        oldest = jax.tree.map(lambda leaf: leaf[0], state.recent)
        older, older_count = _merge(
            state.older, state.older_count, oldest, jnp.where(state.started, state.recent_counts[0], 0)
        )
        recent = jax.tree.map(_push, state.recent, state.current)
        counts = _push(state.recent_counts, state.current_count)
        losses = _push(state.recent_losses, jnp.asarray(loss, jnp.float32))

        been = ~jnp.isnan(losses) & (losses != _NONE)
        window, full = losses[size - start_patience :], jnp.all(been[size - start_patience :])
        starts = ~state.started & full & (window[0] <= jnp.min(window))
        mean = jnp.mean(jnp.where(full, window, 0))
        threshold = jnp.where(starts, (1 + tolerance_ratio) * mean, state.threshold)
        counts = jnp.where(starts & (index < size - start_patience), 0, counts)

        full = jnp.all(been[size - end_patience :])
        ends = state.started & full & (jnp.min(losses[size - end_patience :]) > state.threshold)
        counts = jnp.where(ends & (index >= size - end_patience), 0, counts)
        fresh = SwadState(
            jax.tree.map(jnp.zeros_like, state.current),
            jnp.zeros((), jnp.int32),
            recent,
            counts,
            losses,
            older,
            older_count,
            threshold,
            state.started | starts,
            ends,
        )
        return jax.tree.map(lambda old, new: jnp.where(state.ended, old, new), state, fresh)

    def average(state: SwadState, params: PyTree) -> PyTree:
        check(state, params)
        mean, count = state.older, state.older_count
        for i in range(size):
            segment = jax.tree.map(lambda leaf, i=i: leaf[i], state.recent)
            mean, count = _merge(mean, count, segment, state.recent_counts[i])
        mean, count = _merge(mean, count, state.current, state.current_count)
        use = state.started & (count > 0)
        return jax.tree.map(lambda x, m: jnp.where(use, m, x).astype(jnp.result_type(x)), params, mean)

    return Swad(init, update, validate, average)


def _push(queue: jax.Array, newest: jax.Array) -> jax.Array:
    """Drops the first entry and appends one."""
    return jnp.concatenate([queue[1:], newest[None].astype(queue.dtype)])


def _merge(mean: PyTree, count: jax.Array, other: PyTree, other_count: jax.Array) -> tuple[PyTree, jax.Array]:
    """The mean over ``count`` and ``other_count`` iterates together; a count of 0 takes no part, NaN or not."""
    total = count + other_count
    share = other_count / jnp.maximum(total, 1)

    def merge(m: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.where(other_count > 0, m + share.astype(m.dtype) * (x.astype(m.dtype) - m), m)

    return jax.tree.map(merge, mean, other), total
