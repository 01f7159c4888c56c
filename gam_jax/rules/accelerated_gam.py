"""Accelerated GAM: four gradients, no Hessian-vector product (Algorithm 2 of the paper)."""

from collections.abc import Callable
from typing import Any, Unpack

import jax
import optax

from gam_jax._checks import check_coefficient, check_number
from gam_jax._engine import Engine
from gam_jax._method import Method, Step
from gam_jax._options import OptionArgs, options_from, with_options
from gam_jax._signature import readable
from gam_jax._transform import Diagnostics, State, as_link
from gam_jax._tree import add_scaled, perpendicular, scale_by
from gam_jax._types import LossFn, PyTree, ScalarOrSchedule
from gam_jax._value_and_grad import as_value_and_grad
from gam_jax.rules._four_gradients import four_gradients


class AcceleratedGamState(State):
    """The state of :func:`gam_jax.accelerated_gam`."""

    __slots__ = ()
    method = "accelerated_gam"


def _rule(
    engine: Engine,
    updates: PyTree | None,
    *,
    rho: PyTree,
    rho_prime: jax.Array,
    alpha: jax.Array,
    beta: jax.Array,
    gamma: jax.Array,
) -> Step:
    here, g0, g1, g2, g3, seen = four_gradients(engine, updates, rho, rho_prime)
    h_plus = add_scaled(scale_by(alpha, g1), 1 - alpha, g3)
    h_minus = add_scaled(scale_by(beta, g0), 1 - beta, g2)
    return Step(here, add_scaled(h_plus, -gamma, perpendicular(h_minus, h_plus, engine.apart)), seen)


def _method(options: Any, **coefficients: Any) -> Method:
    for name in ("alpha", "beta"):
        check_coefficient(name, coefficients[name], at_most=1)
    return Method(_rule, Diagnostics, coefficients, options_from(options))


@with_options
def accelerated_gam(
    loss_fn: LossFn,
    rho: ScalarOrSchedule,
    rho_prime: ScalarOrSchedule,
    alpha: ScalarOrSchedule,
    beta: ScalarOrSchedule,
    gamma: ScalarOrSchedule,
    **options: Unpack[OptionArgs],
) -> optax.GradientTransformationExtraArgs:
    r"""Replaces the gradient by the combination of four of accelerated GAM (Algorithm 2, as printed).

    With the incoming updates :math:`g_0 = \nabla L(w)`, which must be the clean gradient of ``loss_fn``, and
    :math:`\hat x = x / (\|x\| + \xi)`,

    .. math::
        g_1 &= \nabla L(w + \rho' \hat g_0), \qquad h_0 = g_1 - g_0 \\
        w_2 &= w + \rho \hat h_0, \qquad g_2 = \nabla L(w_2), \qquad g_3 = \nabla L(w_2 + \rho' \hat g_2) \\
        h_+ &= \alpha g_1 + (1 - \alpha) g_3, \qquad h_- = \beta g_0 + (1 - \beta) g_2 \\
        update &= h_+ - \gamma\, h_{-\perp}

    where :math:`h_{-\perp}` is the component of :math:`h_-` orthogonal to :math:`h_+`. It mixes SAM's gradients at two
    points and is not Algorithm 1 with finite differences, which is ``gam(..., hvp="finite_difference")``. With
    ``alpha=1, gamma=0`` it is SAM of radius rho_prime, with ``alpha=beta=1`` GSAM.

    Cost: 4 gradient evaluations, the caller's own included.

    ``optax.MultiSteps`` around it accumulates the incoming gradient alone: what comes out is the gradient of the last
    microbatch, at points to which the accumulated one leads. ``num_microbatches`` gives that of the whole batch.

    Args:
      loss_fn: as in :func:`gam_jax.gam`.
      rho: radius of the ascent of the gradient norm, or a pytree of radii (:func:`gam_jax.gam`). The released
        code uses 0.2.
      rho_prime: radius of the ascents of the loss. The released code uses 0.02 to 0.04.
      alpha: weight of :math:`g_1` in :math:`h_+`, in [0, 1].
      beta: weight of :math:`g_0` in :math:`h_-`, in [0, 1].
      gamma: weight of the orthogonal component.
      **options: see :class:`gam_jax.Options`.

    The authors' released program departs from the printed algorithm: see :func:`released_coefficients`.

    Returns:
      An ``optax.GradientTransformationExtraArgs``, with :class:`gam_jax.Diagnostics` in its state; norm_grad_norm and
      cosine are those of h_norm by finite differences.

    Raises:
      ValueError, TypeError: as :func:`gam_jax.gam` does.

    Example:
      >>> import jax, gam_jax
      >>> import jax.numpy as jnp
      >>> loss_fn = lambda params: jnp.sum(params**2)
      >>> tx = gam_jax.accelerated_gam(loss_fn, rho=0.2, rho_prime=0.02, alpha=0.6, beta=0.5, gamma=0.03)
      >>> params = jnp.array([3.0, 4.0])
      >>> updates, state = tx.update(jax.grad(loss_fn)(params), tx.init(params), params)
      >>> print(jnp.array_str(updates, precision=2))
      [6.12 8.16]

    References:
      Zhang et al., CVPR 2023, appendix D. https://arxiv.org/abs/2303.03108
    """
    method = _method(options, rho=rho, rho_prime=rho_prime, alpha=alpha, beta=beta, gamma=gamma)
    return as_link(loss_fn, method, AcceleratedGamState)


@with_options
def accelerated_gam_value_and_grad(
    loss_fn: LossFn,
    rho: ScalarOrSchedule,
    rho_prime: ScalarOrSchedule,
    alpha: ScalarOrSchedule,
    beta: ScalarOrSchedule,
    gamma: ScalarOrSchedule,
    *,
    has_diagnostics: bool = False,
    **options: Unpack[OptionArgs],
) -> Callable[..., tuple[Any, ...]]:
    r"""``jax.value_and_grad`` with the combination of four gradients of accelerated GAM in place of the gradient.

    The mathematics and the arguments are those of :func:`accelerated_gam`; what is returned, and what the options
    mean, is said at :func:`gam_value_and_grad`.

    Cost: 4 gradient evaluations.

    Args:
      loss_fn: ``loss_fn(params, *args, **kwargs)``, returning a scalar, or ``(scalar, aux)`` with ``has_aux=True``.
      rho: radius of the ascent of the gradient norm.
      rho_prime: radius of the ascents of the loss.
      alpha: weight of :math:`g_1` in :math:`h_+`, in [0, 1].
      beta: weight of :math:`g_0` in :math:`h_-`, in [0, 1].
      gamma: weight of the orthogonal component.
      has_diagnostics: return what the method saw as well (:class:`gam_jax.Diagnostics`).
      **options: see :class:`gam_jax.Options`.

    Returns:
      A function ``(params, *args, **kwargs) -> (loss, grads)``.

    Raises:
      ValueError, TypeError: as :func:`gam_value_and_grad` does.

    Example:
      >>> import gam_jax
      >>> import jax.numpy as jnp
      >>> loss_fn = lambda params: jnp.sum(params**2)
      >>> fn = gam_jax.accelerated_gam_value_and_grad(loss_fn, rho=0.2, rho_prime=0.02, alpha=0.6, beta=0.5, gamma=0.03)
      >>> loss, grads = fn(jnp.array([3.0, 4.0]))
      >>> print(loss, jnp.array_str(grads, precision=2))
      25.0 [6.12 8.16]
    """
    method = _method(options, rho=rho, rho_prime=rho_prime, alpha=alpha, beta=beta, gamma=gamma)
    return as_value_and_grad(loss_fn, method, has_diagnostics)


@readable
def released_coefficients(*, rho: float, rho_prime: float, alpha: float, beta: float, gamma: float) -> dict[str, float]:
    r"""Maps settings of the authors' released program onto :func:`accelerated_gam`.

    1. The released program computes :math:`h_- = g_0 + (1 - \beta) g_2`, where Algorithm 2 prints
       :math:`\beta g_0 + (1 - \beta) g_2`. The two agree under :math:`\beta' = 1 / (2 - \beta)` and
       :math:`\gamma' = \gamma (2 - \beta)`.

    The released settings, to be passed here, are

    ======================  ===  =========  ====  =====  =====
    data, network           rho  rho_prime  beta  alpha  gamma
    ======================  ===  =========  ====  =====  =====
    CIFAR-100, ResNet       0.2  0.02       0.5   0.6    0.03
    CIFAR-100, PyramidNet   0.2  0.04       0.3   0.5    0.05
    CIFAR-10, ResNet        0.2  0.03       0.1   0.1    0.05
    CIFAR-10, PyramidNet    0.2  0.03       0.1   0.1    0.03
    ======================  ===  =========  ====  =====  =====

    Args:
      rho: ``grad_norm_rho`` of the released program.
      rho_prime: its ``grad_rho``.
      alpha: weight of g_1.
      beta: beta as in the table: the released weight of g_2 is 1 - beta.
      gamma: its ``grad_gamma``.

    Returns:
      The keyword arguments of :func:`accelerated_gam`.

    Raises:
      ValueError: for a negative or non-finite number, or alpha or beta above 1.

    Example:
      >>> import gam_jax
      >>> gam_jax.released_coefficients(rho=0.2, rho_prime=0.02, alpha=0.6, beta=0.5, gamma=0.03)
      {'rho': 0.2, 'rho_prime': 0.02, 'alpha': 0.6, 'beta': 0.6666666666666666, 'gamma': 0.045}
    """
    for name, value in {"rho": rho, "rho_prime": rho_prime, "gamma": gamma}.items():
        check_number(name, value)
    for name, value in {"alpha": alpha, "beta": beta}.items():
        check_number(name, value, at_most=1)
    return {
        "rho": rho,
        "rho_prime": rho_prime,
        "alpha": alpha,
        "beta": 1 / (2 - beta),
        "gamma": gamma * (2 - beta),
    }
