"""Friendly SAM: the ascent follows the noise of the batch, not the gradient that all batches share (Li et al. 2024)."""

from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import jax
import optax

from gam_jax._checks import check_coefficient
from gam_jax._engine import Engine
from gam_jax._method import Method, Step
from gam_jax._options import OptionArgs, options_from, with_options
from gam_jax._transform import State, as_link
from gam_jax._tree import add_scaled, cosine, scale_by
from gam_jax._types import LossFn, PyTree, ScalarOrSchedule
from gam_jax._value_and_grad import as_value_and_grad


class FriendlySamDiagnostics(NamedTuple):
    """What Friendly SAM saw, at no extra cost.

    Attributes:
      grad_norm: ``||grad L(w)||``.
      noise_norm: ``||g - sigma m||``, what is left of the gradient for the ascent.
      perturbed_grad_norm: ``||grad L||`` at the ascent point.
      cosine: of the angle between the two gradients.
    """

    grad_norm: jax.Array
    noise_norm: jax.Array
    perturbed_grad_norm: jax.Array
    cosine: jax.Array


class FriendlySamState(State):
    """The state of :func:`gam_jax.friendly_sam`."""

    __slots__ = ()
    method = "friendly_sam"


def _rule(
    engine: Engine, updates: PyTree | None, *, rho: PyTree, sigma: jax.Array, decay: jax.Array, memory: PyTree
) -> Step:
    here = engine.clean(updates)
    g0 = here.grad
    mean = add_scaled(scale_by(decay, memory), 1 - decay, g0)
    noise = add_scaled(scale_by(1.0, g0), -sigma, mean)
    g1 = engine.gradient(engine.ascend(engine.params, noise, rho))
    norm, angle = engine.metric.norm, cosine(g0, g1, engine.apart)
    return Step(here, g1, FriendlySamDiagnostics(norm(g0), norm(noise), norm(g1), angle), mean)


def _method(rho: Any, sigma: Any, decay: Any, options: Any) -> Method:
    check_coefficient("decay", decay, at_most=1)
    coefficients = {"rho": rho, "sigma": sigma, "decay": decay}
    return Method(_rule, FriendlySamDiagnostics, coefficients, options_from(options), memory=optax.tree.zeros_like)


@with_options
def friendly_sam(
    loss_fn: LossFn,
    rho: ScalarOrSchedule,
    *,
    sigma: ScalarOrSchedule = 1.0,
    decay: ScalarOrSchedule = 0.9,
    **options: Unpack[OptionArgs],
) -> optax.GradientTransformationExtraArgs:
    r"""Replaces the gradient by that a step along the noise of the batch: SAM without the full gradient's part.

    With the incoming updates :math:`g_t = \nabla L(w_t)`, which must be the clean gradient of ``loss_fn`` on the
    batch, and :math:`m_{-1} = 0`,

    .. math::
        m_t = \lambda m_{t-1} + (1 - \lambda) g_t, \qquad d_t = g_t - \sigma m_t, \qquad
        update = \nabla L(w_t + \rho\, d_t / (\|d_t\| + \xi))

    The running mean m estimates the full gradient, along which SAM's step raises the loss of all examples; what is
    left of the batch's gradient is its noise. ``sigma=0`` is SAM.

    1. The released program subtracts the mean before it takes the gradient in, which for sigma = 1 gives the same
       direction, :math:`g_t - m_t = \lambda (g_t - m_{t-1})`. It starts the mean at the first gradient, here at zero:
       the two forget the difference in some :math:`1 / (1 - \lambda)` steps.

    Cost: 2 gradient evaluations, the caller's own included. State: one buffer like the parameters, the mean, which
    sees the gradients of the steps that ``interval`` acts on.

    ``optax.MultiSteps`` around it accumulates the incoming gradient alone: what comes out is the gradient of the last
    microbatch, at points to which the accumulated one leads. ``num_microbatches`` gives that of the whole batch.

    Args:
      loss_fn: as in :func:`gam_jax.gam`.
      rho: perturbation radius, a float, a traced scalar or a schedule, or a pytree of radii (:func:`gam_jax.gam`). The
        authors run 0.2 for a ResNet-18 on CIFAR-100.
      sigma: share of the mean that is taken off the gradient, likewise. Default 1, as its authors'.
      decay: lambda, likewise, in [0, 1]. Default 0.9, as its authors'; they also run 0.6 and 0.95.
      **options: see :class:`gam_jax.Options`.

    Returns:
      An ``optax.GradientTransformationExtraArgs``, with :class:`gam_jax.FriendlySamDiagnostics` in its state, and the
      mean as its ``memory``.

    Raises:
      ValueError, TypeError: as :func:`gam_jax.gam` does; ValueError for a decay above 1.

    Example:
      >>> import jax, gam_jax
      >>> import jax.numpy as jnp
      >>> loss_fn = lambda params, batch: jnp.sum((params - batch) ** 2)
      >>> tx = gam_jax.friendly_sam(loss_fn, rho=0.5)
      >>> params = jnp.zeros(2)
      >>> state = tx.init(params)
      >>> for batch in (jnp.array([2.0, 0.0]), jnp.array([2.0, 2.0])):
      ...     updates, state = tx.update(jax.grad(loss_fn)(params, batch), state, params, batch=batch)
      >>> print(jnp.array_str(updates, precision=2), jnp.array_str(state.memory, precision=2))
      [-4.67 -4.74] [-0.76 -0.4 ]

    References:
      Li, Zhou, He, Cheng, Huang: Friendly Sharpness-Aware Minimization. CVPR 2024. https://arxiv.org/abs/2403.12350
    """
    return as_link(loss_fn, _method(rho, sigma, decay, options), FriendlySamState)


@with_options
def friendly_sam_value_and_grad(
    loss_fn: LossFn,
    rho: ScalarOrSchedule,
    *,
    sigma: ScalarOrSchedule = 1.0,
    decay: ScalarOrSchedule = 0.9,
    has_diagnostics: bool = False,
    **options: Unpack[OptionArgs],
) -> Callable[..., tuple[Any, ...]]:
    r"""``jax.value_and_grad`` with the gradient of Friendly SAM in place of that of the loss.

    The mathematics and the arguments are those of :func:`friendly_sam`; what is returned, and what the options mean,
    is said at :func:`gam_value_and_grad`.

    Cost: 2 gradient evaluations.

    Args:
      loss_fn: ``loss_fn(params, *args, **kwargs)``, returning a scalar, or ``(scalar, aux)`` with ``has_aux=True``.
      rho: perturbation radius.
      sigma: share of the mean that is taken off the gradient.
      decay: of the mean, in [0, 1].
      has_diagnostics: return what the method saw as well (:class:`gam_jax.FriendlySamDiagnostics`).
      **options: see :class:`gam_jax.Options`.

    Returns:
      A function ``(params, *args, memory=mean, **kwargs) -> (loss, grads, mean)``, since the mean has to live
      somewhere: at first it is ``optax.tree.zeros_like(params)``.

    Raises:
      ValueError, TypeError: as :func:`gam_value_and_grad` does.

    Example:
      >>> import optax, gam_jax
      >>> import jax.numpy as jnp
      >>> loss_fn = lambda params, batch: jnp.sum((params - batch) ** 2)
      >>> fn = gam_jax.friendly_sam_value_and_grad(loss_fn, rho=0.5)
      >>> params = jnp.zeros(2)
      >>> mean = optax.tree.zeros_like(params)
      >>> for batch in (jnp.array([2.0, 0.0]), jnp.array([2.0, 2.0])):
      ...     loss, grads, mean = fn(params, batch, memory=mean)
      >>> print(jnp.array_str(grads, precision=2), jnp.array_str(mean, precision=2))
      [-4.67 -4.74] [-0.76 -0.4 ]
    """
    return as_value_and_grad(loss_fn, _method(rho, sigma, decay, options), has_diagnostics)
