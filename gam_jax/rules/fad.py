"""FAD: flatness-aware minimization for domain generalization, a reconstruction (Zhang et al. 2023)."""

from typing import Unpack

import jax
import optax

from gam_jax._checks import check_coefficient
from gam_jax._engine import Engine
from gam_jax._options import OptionArgs, Options, with_options
from gam_jax._transform import Diagnostics, State, from_rule
from gam_jax._tree import add_scaled, scale_by, subtract
from gam_jax._types import LossFn, PyTree, ScalarOrSchedule
from gam_jax.rules._four_gradients import four_gradients


class FadState(State):
    """The state of :func:`gam_jax.fad`."""

    __slots__ = ()
    method = "fad"


def _rule(
    engine: Engine, updates: PyTree, *, rho: PyTree, alpha: jax.Array, beta: jax.Array
) -> tuple[PyTree, Diagnostics]:
    g0, g1, g2, g3, seen = four_gradients(engine, updates, rho, rho)
    flatness = add_scaled(scale_by(alpha, subtract(g1, g0)), 1 - alpha, subtract(g3, g2))
    return add_scaled(g0, beta, flatness), seen


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
    check_coefficient("alpha", alpha, at_most=1)
    coefficients = {"rho": rho, "alpha": alpha, "beta": beta}
    return from_rule(loss_fn, _rule, Diagnostics, coefficients, Options(**options), state_class=FadState)
