"""The gradient norm at the point itself as a penalty (Zhao et al. 2022)."""

from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import jax
import optax

from gam_jax._engine import Engine
from gam_jax._method import Method, Step
from gam_jax._options import OptionArgs, options_from, with_options
from gam_jax._transform import State, as_link
from gam_jax._tree import add_scaled, cosine, global_norm
from gam_jax._types import LossFn, PyTree, ScalarOrSchedule
from gam_jax._value_and_grad import as_value_and_grad


class PenaltyDiagnostics(NamedTuple):
    """What the penalty saw, at no extra cost.

    Attributes:
      grad_norm: ``||grad L(w)||``, the penalty itself.
      norm_grad_norm: the norm of its gradient.
      cosine: of the angle between the gradient of the loss and that of its norm.
    """

    grad_norm: jax.Array
    norm_grad_norm: jax.Array
    cosine: jax.Array


class PenaltyState(State):
    """The state of :func:`gam_jax.gradient_norm_penalty`."""

    __slots__ = ()
    method = "gradient_norm_penalty"


def _rule(engine: Engine, updates: PyTree | None, *, strength: jax.Array) -> Step:
    here = engine.norm_gradient(engine.params)
    start = here.point.grad if updates is None else updates
    norm, angle = global_norm(here.grad, engine.apart), cosine(start, here.grad, engine.apart)
    seen = PenaltyDiagnostics(here.norm, norm, angle)
    return Step(here.point, add_scaled(start, strength, here.grad), seen)


def _method(strength: Any, rho_prime: Any, options: Any) -> Method:
    settings = options_from(options, rho_prime=rho_prime)
    return Method(_rule, PenaltyDiagnostics, {"strength": strength}, settings, adds=True)


@with_options
def gradient_norm_penalty(
    loss_fn: LossFn,
    strength: ScalarOrSchedule,
    *,
    rho_prime: float | jax.Array = 1e-3,
    **options: Unpack[OptionArgs],
) -> optax.GradientTransformationExtraArgs:
    r"""The gradient of :math:`L(w) + \lambda \|\nabla L(w)\|`, exactly.

    With the incoming updates :math:`g_0 = \nabla L(w)`, the clean gradient,

    .. math:: update = g_0 + \lambda H(w)\, g_0 / (\|g_0\| + \xi).

    The form that Zhao et al. run, :math:`(1 - a) g_0 + a \nabla L(w + r \hat g_0)` with :math:`a = \lambda / r`, is
    ``hvp="finite_difference"`` with ``rho_prime=r``.

    Cost: 3 gradient evaluations, the caller's own included (see :func:`gam_jax.gam`); 2 with finite differences.

    ``optax.MultiSteps`` around it accumulates the incoming gradient alone: the term added is that of the last
    microbatch. ``num_microbatches`` gives that of the whole batch.

    Args:
      loss_fn: as in :func:`gam_jax.gam`.
      strength: lambda, a float, a traced scalar or a schedule. Zhao et al. use a = 0.8 at r = 0.05 on CIFAR: 0.04.
      rho_prime: step of the finite difference, with ``hvp="finite_difference"`` only.
      **options: see :class:`gam_jax.Options`.

    Returns:
      An ``optax.GradientTransformationExtraArgs``, with :class:`gam_jax.PenaltyDiagnostics` in its state.

    Raises:
      ValueError, TypeError: as :func:`gam_jax.gam` does.

    Example:
      >>> import jax, gam_jax
      >>> import jax.numpy as jnp
      >>> loss_fn = lambda params: jnp.sum(params**2)
      >>> tx = gam_jax.gradient_norm_penalty(loss_fn, strength=0.5)
      >>> params = jnp.array([3.0, 4.0])
      >>> updates, state = tx.update(jax.grad(loss_fn)(params), tx.init(params), params)
      >>> print(jnp.array_str(updates, precision=2))
      [6.6 8.8]

    References:
      Zhao, Zhang, Hu: Penalizing Gradient Norm for Efficiently Improving Generalization in Deep Learning. ICML 2022.
      https://arxiv.org/abs/2202.03599
    """
    return as_link(loss_fn, _method(strength, rho_prime, options), PenaltyState)


@with_options
def gradient_norm_penalty_value_and_grad(
    loss_fn: LossFn,
    strength: ScalarOrSchedule,
    *,
    rho_prime: float | jax.Array = 1e-3,
    has_diagnostics: bool = False,
    **options: Unpack[OptionArgs],
) -> Callable[..., tuple[Any, ...]]:
    r"""``jax.value_and_grad`` with the gradient of the loss with the penalty in place of that of the loss.

    The mathematics and the arguments are those of :func:`gradient_norm_penalty`; what is returned, and what the
    options mean, is said at :func:`gam_value_and_grad`.

    Cost: 3 gradient evaluations; 2 with finite differences.

    Args:
      loss_fn: ``loss_fn(params, *args, **kwargs)``, returning a scalar, or ``(scalar, aux)`` with ``has_aux=True``.
      strength: lambda.
      rho_prime: step of the finite difference, with ``hvp="finite_difference"`` only.
      has_diagnostics: return what the method saw as well (:class:`gam_jax.PenaltyDiagnostics`).
      **options: see :class:`gam_jax.Options`.

    Returns:
      A function ``(params, *args, **kwargs) -> (loss, grads)``.

    Raises:
      ValueError, TypeError: as :func:`gam_value_and_grad` does.

    Example:
      >>> import gam_jax
      >>> import jax.numpy as jnp
      >>> loss_fn = lambda params: jnp.sum(params**2)
      >>> loss, grads = gam_jax.gradient_norm_penalty_value_and_grad(loss_fn, strength=0.5)(jnp.array([3.0, 4.0]))
      >>> print(loss, jnp.array_str(grads, precision=2))
      25.0 [6.6 8.8]
    """
    return as_value_and_grad(loss_fn, _method(strength, rho_prime, options), has_diagnostics)
