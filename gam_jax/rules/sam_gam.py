"""SAM + GAM in one function: the clean gradient serves both."""

from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

from gam_jax._engine import Engine
from gam_jax._method import Method, Step
from gam_jax._options import OptionArgs, options_from, with_options
from gam_jax._transform import Diagnostics
from gam_jax._types import LossFn, PyTree, ScalarOrSchedule
from gam_jax._value_and_grad import as_value_and_grad
from gam_jax.rules._algorithm_1 import algorithm_1
from gam_jax.rules.sam import SamDiagnostics, sam_gradient


class SamGamDiagnostics(NamedTuple):
    """What SAM + GAM saw, at no extra cost.

    Attributes:
      sam: as :func:`gam_jax.sam` has it.
      gam: as :func:`gam_jax.gam` has it.
    """

    sam: SamDiagnostics
    gam: Diagnostics


def _rule(engine: Engine, updates: PyTree | None, *, sam_rho: PyTree, rho: PyTree, alpha: Any) -> Step:
    here = engine.norm_gradient(engine.params)
    g0 = here.point.grad if updates is None else updates
    g1, sam = sam_gradient(engine, g0, sam_rho)
    update, gam = algorithm_1(engine, here, g1, rho, alpha)
    return Step(here.point, update, SamGamDiagnostics(sam, gam))


@with_options
def sam_gam_value_and_grad(
    loss_fn: LossFn,
    sam_rho: ScalarOrSchedule = 0.05,
    rho: ScalarOrSchedule = 0.1,
    alpha: ScalarOrSchedule = 0.5,
    *,
    has_diagnostics: bool = False,
    **options: Unpack[OptionArgs],
) -> Callable[..., tuple[Any, ...]]:
    r"""``jax.value_and_grad`` with SAM's gradient plus GAM's term in place of the gradient (SAM + GAM of the paper).

    .. math:: \nabla L(w + \rho_{sam}\, g_0 / (\|g_0\| + \xi)) + \alpha h^{norm}

    with :math:`h^{norm}` of :func:`gam_jax.gam`. In a chain this is
    ``optax.chain(sam(loss_fn, sam_rho), gam(loss_fn, rho, alpha), ...)``. What is returned, and what the options mean,
    is said at :func:`gam_value_and_grad`.

    Cost: 7 gradient evaluations.

    Args:
      loss_fn: ``loss_fn(params, *args, **kwargs)``, returning a scalar, or ``(scalar, aux)`` with ``has_aux=True``.
      sam_rho: SAM's radius. Default as in :func:`sam`.
      rho: GAM's radius. Default as in :func:`gam`.
      alpha: weight of the flatness term, likewise.
      has_diagnostics: return what the two methods saw as well (:class:`gam_jax.SamGamDiagnostics`).
      **options: see :class:`gam_jax.Options`.

    Returns:
      A function ``(params, *args, **kwargs) -> (loss, grads)``.

    Raises:
      ValueError, TypeError: as :func:`gam_value_and_grad` does.

    Example:
      >>> import gam_jax
      >>> import jax.numpy as jnp
      >>> loss_fn = lambda params: jnp.sum(params**2)
      >>> loss, grads = gam_jax.sam_gam_value_and_grad(loss_fn, 0.5, 0.1, 0.5)(jnp.array([3.0, 4.0]))
      >>> print(loss, jnp.array_str(grads, precision=2))
      25.0 [6.66 8.88]
    """
    coefficients = {"sam_rho": sam_rho, "rho": rho, "alpha": alpha}
    method = Method(_rule, SamGamDiagnostics, coefficients, options_from(options))
    return as_value_and_grad(loss_fn, method, has_diagnostics)
