"""C-Flat: zeroth- and first-order flatness from four gradients (Bian et al. 2024)."""

from collections.abc import Callable
from typing import Any, Unpack

import jax
import optax

from gam_jax._engine import Engine
from gam_jax._method import Method, Step
from gam_jax._options import OptionArgs, options_from, with_options
from gam_jax._transform import Diagnostics, State, as_link
from gam_jax._tree import add_scaled, subtract
from gam_jax._types import LossFn, PyTree, ScalarOrSchedule
from gam_jax._value_and_grad import as_value_and_grad
from gam_jax.rules._four_gradients import four_gradients


class CFlatState(State):
    """The state of :func:`gam_jax.c_flat`."""

    __slots__ = ()
    method = "c_flat"


def _rule(engine: Engine, updates: PyTree | None, *, rho: PyTree, strength: jax.Array) -> Step:
    here, _, g1, g2, g3, seen = four_gradients(engine, updates, rho, rho)
    return Step(here, add_scaled(g1, strength, subtract(g3, g2)), seen)


def _method(rho: Any, strength: Any, options: Any) -> Method:
    return Method(_rule, Diagnostics, {"rho": rho, "strength": strength}, options_from(options))


@with_options
def c_flat(
    loss_fn: LossFn,
    rho: ScalarOrSchedule = 0.2,
    strength: ScalarOrSchedule = 0.2,
    **options: Unpack[OptionArgs],
) -> optax.GradientTransformationExtraArgs:
    r"""Replaces the gradient by SAM's plus the bend of the gradient at the ascent point of its norm.

    With the incoming updates :math:`g_0 = \nabla L(w)`, which must be the clean gradient of ``loss_fn``,

    .. math:: update = g_1 + \lambda (g_3 - g_2)

    with :math:`g_1, g_2, g_3` as in :func:`gam_jax.accelerated_gam` and one radius, :math:`\rho' = \rho`.

    Cost: 4 gradient evaluations, the caller's own included.

    ``optax.MultiSteps`` around it accumulates the incoming gradient alone: what comes out is the gradient of the last
    microbatch, at points to which the accumulated one leads. ``num_microbatches`` gives that of the whole batch.

    Args:
      loss_fn: as in :func:`gam_jax.gam`.
      rho: radius of all three ascents, a float, a traced scalar or a schedule, or a pytree of radii
        (:func:`gam_jax.gam`). Default 0.2, as its authors'.
      strength: lambda, likewise. Default 0.2, as its authors'.
      **options: see :class:`gam_jax.Options`.

    Returns:
      An ``optax.GradientTransformationExtraArgs``, with :class:`gam_jax.Diagnostics` in its state.

    Raises:
      ValueError, TypeError: as :func:`gam_jax.gam` does.

    Example:
      >>> import jax, gam_jax
      >>> import jax.numpy as jnp
      >>> loss_fn = lambda params: jnp.sum(params**2)
      >>> tx = gam_jax.c_flat(loss_fn, rho=0.5, strength=0.2)
      >>> params = jnp.array([3.0, 4.0])
      >>> updates, state = tx.update(jax.grad(loss_fn)(params), tx.init(params), params)
      >>> print(jnp.array_str(updates, precision=2))
      [6.72 8.96]

    References:
      Bian et al.: Make Continual Learning Stronger via C-Flat. NeurIPS 2024. https://arxiv.org/abs/2404.00986
    """
    return as_link(loss_fn, _method(rho, strength, options), CFlatState)


@with_options
def c_flat_value_and_grad(
    loss_fn: LossFn,
    rho: ScalarOrSchedule = 0.2,
    strength: ScalarOrSchedule = 0.2,
    *,
    has_diagnostics: bool = False,
    **options: Unpack[OptionArgs],
) -> Callable[..., tuple[Any, ...]]:
    r"""``jax.value_and_grad`` with the gradient of C-Flat in place of that of the loss.

    The mathematics and the arguments are those of :func:`c_flat`; what is returned, and what the options mean, is said
    at :func:`gam_value_and_grad`.

    Cost: 4 gradient evaluations.

    Args:
      loss_fn: ``loss_fn(params, *args, **kwargs)``, returning a scalar, or ``(scalar, aux)`` with ``has_aux=True``.
      rho: radius of all three ascents.
      strength: lambda.
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
      >>> loss, grads = gam_jax.c_flat_value_and_grad(loss_fn, rho=0.5, strength=0.2)(jnp.array([3.0, 4.0]))
      >>> print(loss, jnp.array_str(grads, precision=2))
      25.0 [6.72 8.96]
    """
    return as_value_and_grad(loss_fn, _method(rho, strength, options), has_diagnostics)
