"""Zeroth-order flatness, SAM's quantity: the largest increase of the loss within a ball."""

from collections.abc import Callable
from typing import Any, Unpack

import jax
import numpy as np

from gam_jax._checks import check_positive
from gam_jax._tree import normalize
from gam_jax._types import LossFn, PyTree
from gam_jax.flatness._ball import Flatness, Problem, maximize
from gam_jax.flatness._data import DataArgs, with_data_options
from gam_jax.flatness._geometry import Ball, Norm
from gam_jax.flatness._objective import Objective, measure
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
    norm: Norm = "l2",
    adaptive: bool | PyTree | Callable[[PyTree], PyTree] = False,
    mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    per_batch: bool = False,
    **options: Unpack[DataArgs],
) -> Flatness:
    r"""The zeroth-order flatness of a point, by projected ascent on the loss.

    .. math:: R^{(0)}_\rho(w) = \max_{\|w' - w\| \le \rho} L(w') - L(w)

    with L the mean loss over the data. At a minimum of a quadratic it is :math:`\rho^2 \lambda_{max} / 2`. For
    the true maxima :math:`R^{(0)}_\rho \le R^{(1)}_\rho` (Proposition 4.2 of the GAM paper); for one-step
    estimates this need not hold.

    With ``norm``, ``adaptive`` and ``per_batch`` it is the worst-case sharpness of Andriushchenko et al. (2023), who
    compare it in the metric ``T = |w|``, in the l2 and in the l-infinity ball, on batches of 128;
    :func:`average_sharpness` is the average case, :func:`normalize_logits` the variant with normalised logits. They
    find that none of these predicts generalisation reliably: compare networks that were trained alike.

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
      >>> flat = flatness.zeroth_order_flatness(loss_fn, jnp.zeros(3), None, rho=0.5, key=jax.random.key(0))
      >>> print(f"{flat.value:.4f} at distance {flat.distance:.2f}")
      0.5000 at distance 0.50

    References:
      Foret, Kleiner, Mobahi, Neyshabur: Sharpness-Aware Minimization for Efficiently Improving Generalization.
      ICLR 2021. https://arxiv.org/abs/2010.01412
      Andriushchenko, Croce, Mueller, Hein, Flammarion: A Modern Look at the Relationship between Sharpness and
      Generalization. ICML 2023. https://arxiv.org/abs/2302.07011
    """
    ascents: Any = dict(key=key, num_steps=num_steps, num_restarts=num_restarts, per_batch=per_batch)
    ball: Any = dict(norm=norm, adaptive=adaptive, mask=mask)
    return maximize(_increase, loss_fn, params, batches, rho, **ascents, **ball, **options)


def _increase(objective: Objective, ball: Ball) -> Problem:
    """``L(w + T u) - L(w)``, whose gradient is ``T g``."""

    def evaluate(offset: PyTree) -> tuple[float, PyTree]:
        loss, gradient = objective.gradient_at(ball.point(offset))
        return loss - objective.value, ball.stretch(gradient)

    return Problem(evaluate, lambda offset, gradient: gradient)


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
