"""Zeroth-order flatness, SAM's quantity: the largest increase of the loss within a ball."""

from typing import Unpack

import jax
import numpy as np

from gam_jax._checks import check_integer, check_key, check_positive
from gam_jax._tree import normalize
from gam_jax._types import LossFn, PyTree
from gam_jax.flatness._ball import Flatness, Problem, maximize
from gam_jax.flatness._data import DataArgs, with_data_options
from gam_jax.flatness._objective import measure
from gam_jax.flatness._vectors import shift


@with_data_options
def zeroth_order_flatness(
    loss_fn: LossFn,
    params: PyTree,
    batches: PyTree,
    rho: float,
    *,
    key: jax.Array,
    num_steps: int = 20,
    num_restarts: int = 3,
    **options: Unpack[DataArgs],
) -> Flatness:
    r"""The zeroth-order flatness of a point, by projected ascent on the loss.

    .. math:: R^{(0)}_\rho(w) = \max_{\|w' - w\| \le \rho} L(w') - L(w)

    with L the mean loss over the data. At a minimum of a quadratic it is :math:`\rho^2 \lambda_{max} / 2`. For
    the true maxima :math:`R^{(0)}_\rho \le R^{(1)}_\rho` (Proposition 4.2 of the GAM paper); for one-step
    estimates this need not hold.

    The result is a lower bound of the maximum, tight if the ascents converged: ``stationarity`` is small, the
    rows of ``history`` are flat at the end, and agree. The increase is a difference of losses: in float32 an
    increase below 1e-6 times the loss is rounding.

    Cost: ``(1 + num_restarts) (num_steps + 1)`` gradient evaluations on the whole data, fewer when an ascent
    converges, and 1 more each time that a step has to be shortened. Memory: 17 copies of the parameters.

    Args:
      loss_fn: ``loss_fn(params, batch) -> scalar``, the mean over the examples of the batch;
        ``loss_fn(params)`` with ``batches=None``.
      params: pytree of floating-point arrays. In less than float32 the perturbed points are rounded to their
        dtype.
      batches: as in :func:`hessian_top_eigenvalues`.
      rho: radius, in units of the parameters, > 0. SAM's default is 0.05.
      key: typed random key, for the starts.
      num_steps: ascent steps from each start, at most.
      num_restarts: random starts on the sphere, beside the one at the parameters.
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
      >>> flat = flatness.zeroth_order_flatness(loss_fn, jnp.zeros(3), None, rho=0.5, key=jax.random.key(0))
      >>> print(f"{flat.value:.4f} at distance {flat.distance:.2f}")
      0.5000 at distance 0.50

    References:
      Foret, Kleiner, Mobahi, Neyshabur: Sharpness-Aware Minimization for Efficiently Improving Generalization.
      ICLR 2021. https://arxiv.org/abs/2010.01412
    """
    check_key(key)
    check_positive("rho", rho)
    check_integer("num_steps", num_steps)
    check_integer("num_restarts", num_restarts)
    with measure(loss_fn, params, batches, **options) as objective:

        def evaluate(offset: PyTree) -> tuple[float, PyTree]:
            loss, gradient = objective.gradient_at(shift(objective.params, 1.0, offset))
            return loss - objective.value, gradient

        problem = Problem(evaluate, lambda offset, gradient: gradient)
        return maximize(problem, objective, rho, key, num_steps, num_restarts)


@jax.jit
def _adversary(params: PyTree, gradient: PyTree, rho: float) -> PyTree:
    return shift(params, rho, normalize(gradient, 0.0))


@with_data_options
def zeroth_order_flatness_one_step(
    loss_fn: LossFn, params: PyTree, batches: PyTree, rho: float, **options: Unpack[DataArgs]
) -> float:
    r"""The one-step estimate of the zeroth-order flatness that SAM uses.

    .. math:: L(w + \rho g / \|g\|) - L(w), \qquad g = \nabla L(w)

    Cheap, and a lower bound of :func:`zeroth_order_flatness`; 0 at a critical point, however sharp.

    Cost: 1 gradient evaluation and one evaluation of the loss on the whole data.

    Args:
      loss_fn: as in :func:`zeroth_order_flatness`.
      params: pytree of floating-point arrays.
      batches: as in :func:`hessian_top_eigenvalues`.
      rho: radius, in units of the parameters, > 0.
      **options: see :class:`gam_jax.flatness.DataOptions`.

    Returns:
      The estimate, a float.

    Raises:
      TypeError, ValueError: as :func:`zeroth_order_flatness` does.

    Example:
      >>> import jax.numpy as jnp
      >>> from gam_jax import flatness
      >>> loss_fn = lambda params: jnp.sum(params**2)
      >>> print(f"{flatness.zeroth_order_flatness_one_step(loss_fn, jnp.array([3.0, 4.0]), None, rho=0.5):.3f}")
      5.250
    """
    check_positive("rho", rho)
    with measure(loss_fn, params, batches, **options) as objective:
        loss, gradient = objective.gradient_at(objective.params)
        perturbed = objective.value_at(_adversary(objective.params, gradient, rho))
    if not np.isfinite(perturbed):
        raise ValueError(f"the loss must be finite at the perturbed point, got {perturbed} with {rho=}")
    return perturbed - loss
