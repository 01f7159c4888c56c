"""FAD: flatness-aware minimization for domain generalization, a reconstruction (Zhang et al. 2023)."""

from collections.abc import Callable
from typing import Any, Unpack

import jax
import optax

from gam_jax._checks import check_coefficient
from gam_jax._engine import Engine
from gam_jax._method import Method, Step
from gam_jax._options import OptionArgs, options_from, with_options
from gam_jax._transform import Diagnostics, State, as_link
from gam_jax._tree import add_scaled, scale_by, subtract
from gam_jax._types import LossFn, PyTree, ScalarOrSchedule
from gam_jax._value_and_grad import as_value_and_grad
from gam_jax.rules._four_gradients import four_gradients


class FadState(State):
    """The state of :func:`gam_jax.fad`."""

    __slots__ = ()
    method = "fad"


def _rule(engine: Engine, updates: PyTree | None, *, rho: PyTree, alpha: jax.Array, beta: jax.Array) -> Step:
    here, g0, g1, g2, g3, seen = four_gradients(engine, updates, rho, rho)
    flatness = add_scaled(scale_by(alpha, subtract(g1, g0)), 1 - alpha, subtract(g3, g2))
    return Step(here, add_scaled(g0, beta, flatness), seen)


def _method(rho: Any, alpha: Any, beta: Any, options: Any) -> Method:
    check_coefficient("alpha", alpha, at_most=1)
    return Method(_rule, Diagnostics, {"rho": rho, "alpha": alpha, "beta": beta}, options_from(options))


@with_options
def fad(
    loss_fn: LossFn,
    rho: ScalarOrSchedule,
    alpha: ScalarOrSchedule,
    beta: ScalarOrSchedule,
    **options: Unpack[OptionArgs],
) -> optax.GradientTransformationExtraArgs:
    r"""Zeroth- and first-order flatness at once. A reconstruction: no public code or full text could be found.

    With the incoming updates :math:`g_0 = \nabla L(w)`, which must be the clean gradient of ``loss_fn``,

    .. math:: update = g_0 + \beta\,[\alpha (g_1 - g_0) + (1 - \alpha)(g_3 - g_2)]

    with :math:`g_1, g_2, g_3` as in :func:`gam_jax.accelerated_gam` and one radius, :math:`\rho' = \rho`.
    ``alpha=beta=1`` is SAM.

    Cost: 4 gradient evaluations, the caller's own included.

    ``optax.MultiSteps`` around it accumulates the incoming gradient alone: the terms mix it with gradients of
    the last microbatch, and mean nothing. ``num_microbatches`` gives those of the whole batch.

    Args:
      loss_fn: as in :func:`gam_jax.gam`.
      rho: radius of all three ascents, a float, a traced scalar or a schedule, or a pytree of radii
        (:func:`gam_jax.gam`).
      alpha: share of zeroth-order flatness, in [0, 1].
      beta: weight of the two flatness terms.
      **options: see :class:`gam_jax.Options`.

    Returns:
      An ``optax.GradientTransformationExtraArgs``, with :class:`gam_jax.Diagnostics` in its state.

    Raises:
      ValueError, TypeError: as :func:`gam_jax.gam` does.

    Example:
      >>> import jax, gam_jax
      >>> import jax.numpy as jnp
      >>> loss_fn = lambda params: jnp.sum(params**2)
      >>> tx = gam_jax.fad(loss_fn, rho=0.5, alpha=0.5, beta=0.4)
      >>> params = jnp.array([3.0, 4.0])
      >>> updates, state = tx.update(jax.grad(loss_fn)(params), tx.init(params), params)
      >>> print(jnp.array_str(updates, precision=2))
      [6.24 8.32]

    References:
      Zhang et al.: Flatness-Aware Minimization for Domain Generalization. ICCV 2023. https://arxiv.org/abs/2307.11108
    """
    return as_link(loss_fn, _method(rho, alpha, beta, options), FadState)


@with_options
def fad_value_and_grad(
    loss_fn: LossFn,
    rho: ScalarOrSchedule,
    alpha: ScalarOrSchedule,
    beta: ScalarOrSchedule,
    *,
    has_diagnostics: bool = False,
    **options: Unpack[OptionArgs],
) -> Callable[..., tuple[Any, ...]]:
    r"""``jax.value_and_grad`` with the gradient of FAD in place of that of the loss.

    The mathematics and the arguments are those of :func:`fad`; what is returned, and what the options mean, is said
    at :func:`gam_value_and_grad`.

    Cost: 4 gradient evaluations.

    Args:
      loss_fn: ``loss_fn(params, *args, **kwargs)``, returning a scalar, or ``(scalar, aux)`` with ``has_aux=True``.
      rho: radius of all three ascents.
      alpha: share of zeroth-order flatness, in [0, 1].
      beta: weight of the two flatness terms.
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
      >>> loss, grads = gam_jax.fad_value_and_grad(loss_fn, rho=0.5, alpha=0.5, beta=0.4)(jnp.array([3.0, 4.0]))
      >>> print(loss, jnp.array_str(grads, precision=2))
      25.0 [6.24 8.32]
    """
    return as_value_and_grad(loss_fn, _method(rho, alpha, beta, options), has_diagnostics)
