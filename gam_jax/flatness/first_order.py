"""First-order flatness, GAM's own quantity: the largest gradient norm within a ball, times its radius."""

from collections.abc import Callable
from typing import Any, Unpack

import jax
import numpy as np

from gam_jax._checks import check_positive
from gam_jax._types import LossFn, PyTree
from gam_jax.flatness._ball import Flatness, Problem, maximize
from gam_jax.flatness._data import DataArgs, with_data_options
from gam_jax.flatness._geometry import Ball, Norm
from gam_jax.flatness._objective import Objective, measure
from gam_jax.flatness._vectors import norm as l2_norm
from gam_jax.flatness._vectors import shift, unit


@with_data_options
def first_order_flatness(
    loss_fn: LossFn,
    params: PyTree,
    batches: PyTree,
    rho: float,
    *,
    key: jax.Array,
    num_steps: int = 20,
    num_restarts: int = 3,
    norm: Norm = "l2",
    adaptive: bool | PyTree | Callable[[PyTree], PyTree] = False,
    mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    per_batch: bool = False,
    **options: Unpack[DataArgs],
) -> Flatness:
    r"""The first-order flatness of a point, by projected ascent on the gradient norm.

    .. math:: R^{(1)}_\rho(w) = \rho \max_{\|w' - w\| \le \rho} \|\nabla L(w')\|

    (Definition 4.1 of the GAM paper, over the closed ball), with L the mean loss over the data. The ascent
    direction is :math:`\nabla \|\nabla L\| = H \nabla L / \|\nabla L\|` (Eq. 8). At a minimum of a quadratic
    :math:`R^{(1)}_\rho = \rho^2 \max_i |\lambda_i|` (Lemma 4.1), and the ascent is then a power iteration. The
    one-step estimate that GAM itself uses is 0 at a minimum (:func:`first_order_flatness_one_step`): hence the
    random starts.

    In another ball, ``||T^-1 (w' - w)||_p <= rho``, the norm of the gradient is the dual one, ``||T grad L(w')||_q``
    with ``1/p + 1/q = 1``, and Proposition 4.2 (R0 is at most R1) stays true.

    For a loss whose gradient is not that of a function (gradient reversal) the ascent follows J g, with
    J the Jacobian of the gradient, where the norm's own gradient is along :math:`J^T g`: the result stays a lower
    bound, but is no longer tight.

    The result is a lower bound of the maximum, tight if the ascents converged: ``stationarity`` is small, the
    rows of ``history`` are flat at the end, and agree. Where they do not, give more steps or more restarts. On a
    small network trained by SGD (docs/results.md) 3 restarts found 12 % less than 9 at rho = 0.1, and at
    rho >= 0.5 the best and the second-best ascent differed by up to 26 %.

    Cost: ``4 (1 + num_restarts) (num_steps + 1)`` gradient evaluations on the whole data, fewer when an ascent
    converges, and 1 more each time that a step has to be shortened. Memory: 18 copies of the parameters.

    Args:
      loss_fn: ``loss_fn(params, batch) -> scalar``, the mean over the examples of the batch;
        ``loss_fn(params)`` with ``batches=None``. Gradient norms scale with what it returns: the mean over the
        data, where the paper writes a sum.
      params: pytree of floating-point arrays. In less than float32 the perturbed points are rounded to their
        dtype.
      batches: as in :func:`hessian_top_eigenvalues`.
      rho: radius, in units of the parameters, > 0. The paper tunes its optimizer over {.05, .1, .2, .5, 1, 2}.
      key: typed random key, for the starts.
      num_steps: ascent steps from each start, at most.
      num_restarts: random starts on the sphere, beside the one at the parameters.
      norm: "l2" or "linf", of the ball: ``||T^-1 (w' - w)||_p <= rho``.
      adaptive: T. False is 1, True is ``|w|`` (adaptive sharpness, unchanged when a network is rescaled), or a pytree
        or a function from the parameters to one, as :class:`gam_jax.Options` has it. With ``|w|`` a radius is a share
        of each parameter, and one that is 0 does not move.
      mask: measure a block: a pytree of bools like the parameters, or a function from them to one. Leaves with False do
        not move.
      per_batch: m-sharpness, with m the size of a batch: the mean over the batches of the maximum of each.
      **options: see :class:`gam_jax.flatness.DataOptions`.

    Returns:
      :class:`Flatness`.

    Raises:
      TypeError: for parameters that are not floating-point, a raw uint32 key, a one-shot iterator of batches.
      ValueError: for rho <= 0, empty data, a loss that is not deterministic, or not finite within the ball.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gam_jax import flatness
      >>> def loss_fn(params):
      ...     return jnp.sum(jnp.array([1.0, 2.0, 4.0]) * params**2) / 2
      >>> flat = flatness.first_order_flatness(loss_fn, jnp.zeros(3), None, rho=0.5, key=jax.random.key(0))
      >>> print(f"{flat.value:.4f} at distance {flat.distance:.2f}")
      1.0000 at distance 0.50

    References:
      Zhang, Xu, Yu, Zou, Cui: Gradient Norm Aware Minimization Seeks First-Order Flatness and Improves
      Generalization. CVPR 2023. https://arxiv.org/abs/2303.03108
    """
    ascents: Any = dict(key=key, num_steps=num_steps, num_restarts=num_restarts, per_batch=per_batch)
    ball: Any = dict(norm=norm, adaptive=adaptive, mask=mask)
    return maximize(_gradient_norm, loss_fn, params, batches, rho, **ascents, **ball, **options)


def _gradient_norm(objective: Objective, ball: Ball) -> Problem:
    """``rho ||T g||_q``, whose gradient is ``rho T H T`` times the derivative of the norm."""

    def evaluate(offset: PyTree) -> tuple[float, PyTree]:
        gradient = ball.stretch(objective.gradient_at(ball.point(offset))[1])
        return ball.rho * ball.steepness(gradient), gradient

    def ascent(offset: PyTree, gradient: Any) -> PyTree:
        along = ball.stretch(ball.farthest(gradient))
        return ball.stretch(objective.product_at(ball.point(offset), along))

    return Problem(evaluate, ascent)


@with_data_options
def first_order_flatness_one_step(
    loss_fn: LossFn, params: PyTree, batches: PyTree, rho: float, **options: Unpack[DataArgs]
) -> float:
    r"""The one-step estimate of the first-order flatness that GAM's Algorithm 1 uses.

    .. math:: \rho \|\nabla L(w + \rho f / \|f\|)\|, \qquad f = H g / \|g\|, \quad g = \nabla L(w)

    Cheap, and a lower bound of :func:`first_order_flatness`. At a critical point f = 0 and the estimate is 0,
    however sharp the point: compare trained networks with the maximum instead.

    Cost: 5 gradient evaluations on the whole data.

    Args:
      loss_fn: as in :func:`first_order_flatness`.
      params: pytree of floating-point arrays.
      batches: as in :func:`hessian_top_eigenvalues`.
      rho: radius, in units of the parameters, > 0.
      **options: see :class:`gam_jax.flatness.DataOptions`.

    Returns:
      The estimate, a float.

    Raises:
      TypeError, ValueError: as :func:`first_order_flatness` does.

    Example:
      >>> import jax.numpy as jnp
      >>> from gam_jax import flatness
      >>> loss_fn = lambda params: jnp.sum(params**2)
      >>> print(f"{flatness.first_order_flatness_one_step(loss_fn, jnp.array([3.0, 4.0]), None, rho=0.5):.3f}")
      5.500
    """
    check_positive("rho", rho)
    with measure(loss_fn, params, batches, **options) as objective:
        gradient = objective.gradient_at(objective.params)[1]
        ascent = unit(objective.product("hessian")(unit(gradient)))
        found = rho * float(l2_norm(objective.gradient_at(shift(objective.params, rho, ascent))[1]))
    if not np.isfinite(found):
        raise ValueError(f"the gradient must be finite at the perturbed point, got a norm of {found / rho} with {rho=}")
    return found
