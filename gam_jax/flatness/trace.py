"""The trace of the Hessian, by random probes."""

import warnings
from collections.abc import Callable
from typing import NamedTuple, Unpack

import jax
import numpy as np

from gam_jax._checks import check_integer, check_key, check_positive
from gam_jax._types import LossFn, PyTree
from gam_jax.flatness._block import count_parameters
from gam_jax.flatness._data import DataArgs, with_data_options
from gam_jax.flatness._objective import measure
from gam_jax.flatness._passes import Operator
from gam_jax.flatness._probes import probe, standard_error
from gam_jax.flatness._vectors import inner


class TraceEstimate(NamedTuple):
    """A stochastic estimate of the trace.

    Attributes:
      value: the mean of the samples.
      standard_error: of the value; 0 when it is exact.
      samples: one unbiased estimate for each probe, float64 [num_products].
    """

    value: float
    standard_error: float
    samples: np.ndarray


@with_data_options
def hessian_trace(
    loss_fn: LossFn,
    params: PyTree,
    batches: PyTree,
    *,
    key: jax.Array,
    num_probes: int = 100,
    rtol: float | None = None,
    operator: Operator = "hessian",
    mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    **options: Unpack[DataArgs],
) -> TraceEstimate:
    r"""The trace of the Hessian of the mean loss over a data set, with its standard error.

    .. math:: \operatorname{tr} H = \mathbb{E}\, z^T H z, \qquad z_i = \pm 1

    Hutchinson's estimator, unbiased, with variance :math:`2 \sum_{i \ne j} H_{ij}^2` for one probe. With
    ``num_probes`` at least the number of parameters the probes are the unit vectors and the trace is exact. For a
    loss whose gradient is not that of a function (gradient reversal) it is the trace of the gradient's Jacobian, which
    is that of its symmetric part.

    Cost: 3 gradient evaluations on the whole data for each probe. Memory: 4 copies of the parameters; probes
    are taken one at a time (matfree's estimators take all at once, and draw their probes beforehand).

    Args:
      loss_fn: as in :func:`hessian_top_eigenvalues`.
      params: pytree of floating-point arrays.
      batches: as in :func:`hessian_top_eigenvalues`.
      key: typed random key.
      num_probes: at most so many, at least 2. The default is PyHessian's.
      rtol: stop when the standard error is below ``rtol`` times the value, in magnitude, after no less than 10
        probes. A RuntimeWarning says when ``num_probes`` are not enough. Default: take all.
      operator: "hessian" or "ggn", as in :func:`hessian_top_eigenvalues`.
      mask: measure a diagonal block, as in :func:`hessian_top_eigenvalues`.
      **options: see :class:`gam_jax.flatness.DataOptions`.

    Returns:
      :class:`TraceEstimate`.

    Raises:
      TypeError, ValueError: as :func:`hessian_top_eigenvalues` does.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gam_jax import flatness
      >>> loss_fn = lambda params: jnp.sum(jnp.arange(4.0) * params**2) / 2
      >>> trace = flatness.hessian_trace(loss_fn, jnp.ones(4), None, key=jax.random.key(0), num_probes=4)
      >>> print(trace.value, trace.standard_error)
      6.0 0.0

    References:
      Hutchinson: A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines.
        1990.
    """
    check_key(key)
    if rtol is not None:
        check_positive("rtol", rtol)
    check_integer("num_probes", num_probes)
    exact = num_probes >= count_parameters(params, mask)
    check_integer("num_probes", num_probes, at_least=1 if exact else 2)
    with measure(loss_fn, params, batches, mask=mask, operator=operator, **options) as objective:
        product = objective.product(operator)
        samples, mean, error = [], np.nan, np.nan
        while len(samples) < min(num_probes, objective.size):
            z = probe(objective, key, num_probes, len(samples))
            samples.append(float(inner(z, product(z))) * (objective.size if exact else 1))
            if not np.isfinite(samples[-1]):
                raise ValueError(f"Hessian-vector products must be finite, got z^T H z = {samples[-1]}")
            mean, error = np.mean(samples), standard_error(np.array(samples), exact)
            if rtol is not None and not exact and len(samples) >= 10 and error <= rtol * abs(mean):
                break
    if rtol is not None and error > rtol * abs(mean):
        warnings.warn(
            f"{len(samples)} probes did not bring the standard error below {rtol} of the trace, got {mean:.4g} +- "
            f"{error:.2g}: give a larger num_probes or rtol",
            RuntimeWarning,
            stacklevel=2,
        )
    return TraceEstimate(float(mean), float(error), np.array(samples))
