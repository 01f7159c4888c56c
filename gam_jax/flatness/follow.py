"""The top eigenvalue of the Hessian followed through training, by a few warm-started Lanczos steps at a time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gam_jax._calls import check_arguments, check_takes
from gam_jax._check_trees import check_first_like, check_params
from gam_jax._checks import check_count, check_flag, check_integer, check_key
from gam_jax._interval import on_interval
from gam_jax._loss import loss_of_call
from gam_jax._signature import readable
from gam_jax._tree import add_scaled, cast_like, global_norm, inner_product, normalize, scale_by, widen
from gam_jax._types import LossFn, PyTree
from gam_jax.flatness._vectors import random_like

_NONE = np.finfo(np.float32).max
"""Stands for a residual that has not been. Not inf, which jax_debug_infs hunts."""


class FollowState(NamedTuple):
    """The state of :func:`follow_top_eigenvalue`: a pytree of arrays.

    Attributes:
      count: calls of ``update`` so far.
      value: the estimate of the top eigenvalue at the last measurement, float32 or wider; 0 before the first. Never
        above the eigenvalue, but for rounding.
      residual: ``||H v - value v||`` there: an exact eigenvalue lies within this distance of the value. The largest
        float32 before the first measurement.
      vector: the unit vector v, a pytree like the parameters in float32 or wider, from which the next one starts.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    value: jax.Array
    residual: jax.Array
    vector: PyTree


class Follow(NamedTuple):
    """The functions of :func:`follow_top_eigenvalue`; both are pure and can be jitted.

    Attributes:
      init: ``(params, key) -> state``.
      update: ``(state, params, *args, **kwargs) -> state``, with the loss's other arguments.
    """

    init: Callable[[PyTree, jax.Array], FollowState]
    update: Callable[..., FollowState]


@readable
def follow_top_eigenvalue(
    loss_fn: LossFn,
    *,
    num_steps: int = 4,
    interval: int | Callable[[jax.Array], Any] = 1,
    has_aux: bool = False,
) -> Follow:
    r"""Follows the top eigenvalue of the Hessian of the loss while the parameters move, inside one's own training step.

    Each measurement takes ``num_steps`` steps of Lanczos' method from the eigenvector that the last one found, and
    keeps the best vector of the space that they span. The eigenvector moves little between measurements, so that a few
    steps are enough. The first measurements, from a random vector, are too low; their ``residual`` is large.

    Gradient descent with step size :math:`\eta` is stable on a quadratic while :math:`\lambda_{max} < 2 / \eta`
    (with momentum :math:`\beta`: :math:`2 (1 + \beta) / \eta`). Full-batch training tends to sharpen until it is there,
    the edge of stability: draw that line beside the values.

    Cost: at most ``1 + 2 num_steps`` gradient evaluations of the given batch for each measurement, nothing between.
    Memory: one vector like the parameters in float32 in the state, ``num_steps + 1`` during a measurement, and what a
    Hessian-vector product keeps.

    Args:
      loss_fn: ``loss_fn(params, ...) -> scalar``. Give ``update`` the same batch every time to follow the curvature of
        one function; with the batch of the step, its noise is followed too. The eigenvalue of a small batch is larger
        than that of all data in the mean.
      num_steps: Lanczos steps of a measurement, from 2 on.
      interval: measure on calls 0, k, 2k, ... only, or where a function of the count says so.
      has_aux: the loss returns ``(loss, aux)``; aux is dropped.

    Returns:
      :class:`Follow`, the pure functions ``init`` and ``update``.

    Raises:
      TypeError, ValueError: for arguments out of range; in ``init`` and ``update`` for parameters that are not
        floating-point, a state that is not of ``init``, or arguments that the loss does not take. A product that is not
        finite makes the value NaN, and the vector stays.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gam_jax import flatness
      >>> def loss_fn(params, batch):
      ...     return jnp.mean((batch @ params) ** 2) / 2
      >>> follow = flatness.follow_top_eigenvalue(loss_fn, num_steps=3)
      >>> params, batch = jnp.ones(3), jnp.diag(jnp.array([1.0, 2.0, 3.0]))
      >>> state = follow.init(params, jax.random.key(0))
      >>> for _ in range(3):  # training steps
      ...     state = jax.jit(follow.update)(state, params, batch)
      >>> print(f"{state.value:.3f}")
      3.000

    References:
      Cohen, Kaur, Li, Kolter, Talwalkar: Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability.
      ICLR 2021. https://arxiv.org/abs/2103.00065
    """
    check_integer("num_steps", num_steps, at_least=2)
    check_flag("has_aux", has_aux)
    if callable(interval):
        check_takes("interval", interval, "count")
    else:
        check_count("interval", interval, " or a function count -> bool")
    loss = loss_of_call(loss_fn, has_aux, reserved=())

    def initial(params: PyTree, key: jax.Array) -> FollowState:
        vector = normalize(random_like(key, params), 0.0)
        dtype = global_norm(vector).dtype
        return FollowState(jnp.zeros((), jnp.int32), jnp.zeros((), dtype), jnp.full((), _NONE, dtype), vector)

    first = jax.jit(lambda params: initial(params, jax.random.key(0)))

    def init(params: PyTree, key: jax.Array) -> FollowState:
        check_params(params, params)
        check_key(key)
        return initial(params, key)

    def update(state: FollowState, params: PyTree, /, *args: Any, **kwargs: Any) -> FollowState:
        check_params(params, params)
        check_first_like("state", state, first, params)
        check_arguments(loss.signature, args, kwargs)

        def measure() -> tuple[jax.Array, jax.Array, PyTree]:
            gradient = jax.grad(lambda params: loss(params, (args, kwargs))[0])
            _, product = jax.linearize(gradient, params)
            widened = lambda v: jax.tree.map(widen, product(cast_like(v, params)))  # noqa: E731
            return _top_pair(widened, state.vector, num_steps)

        kept = state.value, state.residual, state.vector
        value, residual, vector = on_interval(interval, state.count, measure, lambda: kept)
        return FollowState(state.count + 1, value, residual, vector)

    return Follow(init, update)


def _top_pair(
    product: Callable[[PyTree], PyTree], start: PyTree, num_steps: int
) -> tuple[jax.Array, jax.Array, PyTree]:
    """The largest Ritz value of a Krylov space from a unit vector, its residual and its unit vector.

    1. Where the space is exhausted, a row is 0, and its diagonal entry below all eigenvalues: it is not found.
    """
    dtype = global_norm(start).dtype
    rows, columns, beta = [start], [], jnp.zeros((), dtype)
    for _ in range(num_steps):
        v, along = product(rows[-1]), [jnp.zeros((), dtype)] * len(rows)
        size = global_norm(v)
        for _ in range(2):
            parts = [inner_product(row, v) for row in rows]
            for part, row in zip(parts, rows, strict=True):
                v = add_scaled(v, -part, row)
            along = [a + part for a, part in zip(along, parts, strict=True)]
        columns.append(jnp.stack([*along, *[jnp.zeros((), dtype)] * (num_steps - len(along))]))
        beta = global_norm(v)
        beta = jnp.where(beta <= 10 * jnp.finfo(dtype).eps * size, 0, beta)
        rows.append(scale_by(jnp.where(beta == 0, 0, 1 / jnp.where(beta == 0, 1, beta)), v))
    upper = jnp.triu(jnp.stack(columns, axis=1))
    projection = upper + jnp.triu(upper, 1).T
    absent = jnp.stack([global_norm(row) == 0 for row in rows[:-1]])
    below = -2 * jnp.sum(jnp.abs(projection)) - 1
    values, coordinates = jnp.linalg.eigh(jnp.where(jnp.diag(absent), below, projection))
    weights = coordinates[:, -1]
    vector = scale_by(weights[0], rows[0])
    for weight, row in zip(weights[1:], rows[1:-1], strict=True):
        vector = add_scaled(vector, weight, row)
    finite = jnp.isfinite(projection).all() & jnp.isfinite(beta)
    vector = normalize(jax.tree.map(lambda new, old: jnp.where(finite, new, old), vector, start), 0.0)
    return jnp.where(finite, values[-1], jnp.nan), jnp.where(finite, beta * jnp.abs(weights[-1]), jnp.nan), vector
