"""Second-order flatness: the top eigenvalues and the trace of the Hessian."""

import warnings
from typing import NamedTuple, Unpack, get_args

import jax
import jax.numpy as jnp
import numpy as np

from gam_jax._tree import add_scaled, global_norm, inner_product
from gam_jax._types import LossFn, PyTree
from gam_jax.flatness._checks import check_count, check_key, check_positive
from gam_jax.flatness._data import DataArgs, with_data_options
from gam_jax.flatness._eigenpairs import Which, top_ritz_pairs
from gam_jax.flatness._krylov import Krylov
from gam_jax.flatness._objective import Objective, measure
from gam_jax.flatness._probes import probe, standard_error


class Eigenvalues(NamedTuple):
    """Eigenpairs of the Hessian.

    Attributes:
      values: float64 [k], in the order asked for.
      residuals: ``||H v - lambda v||`` for the unit vector v of each, float64 [k], from a product of its own.
        An exact eigenvalue lies within this distance of the value, however the pair was found, up to the
        rounding of H v.
      vectors: the unit eigenvectors, a pytree like the parameters with a leading axis [k], or None.
      num_products: Hessian-vector products used, those for the residuals included.
    """

    values: np.ndarray
    residuals: np.ndarray
    vectors: PyTree | None
    num_products: int


@with_data_options
def hessian_top_eigenvalues(
    loss_fn: LossFn,
    params: PyTree,
    batches: PyTree,
    k: int = 1,
    *,
    key: jax.Array,
    which: Which = "largest",
    rtol: float | None = None,
    basis_size: int | None = None,
    max_products: int | None = None,
    return_vectors: bool = False,
    **options: Unpack[DataArgs],
) -> Eigenvalues:
    r"""The k largest eigenvalues of the Hessian of the mean loss over a data set.

    At a minimum of a quadratic, :math:`\lambda_{max} = R^{(1)}_\rho / \rho^2` (Lemma 4.1 of the GAM paper).

    Lanczos' method with full reorthogonalisation and thick restarts (Wu and Simon 2000) from a random start. It
    stops when each wanted Ritz pair has a residual below ``rtol`` times the largest Ritz value in magnitude. A
    Krylov space holds one copy of a repeated eigenvalue, so with ``k > 1`` the found vectors are then set aside
    and the search goes on from a random vector orthogonal to them, until that finds nothing larger.

    Cost: 3 gradient evaluations on the whole data for each product: some 10 to 50 products for k = 1, 4 k to
    10 k for larger k, k of them for the residuals. Memory: ``basis_size + 1`` vectors of the size of the
    parameters in float32, and during a restart one more copy of the largest leaf's share. At the default this
    is 2 k + 11 vectors: 5 GB for k = 50 and 11 million parameters. A smaller basis restarts more often.

    Args:
      loss_fn: ``loss_fn(params, batch) -> scalar``, the mean over the examples of the batch;
        ``loss_fn(params)`` with ``batches=None``. Pass the same function object again and nothing compiles
        again.
      params: pytree of floating-point arrays. Products are computed in their dtypes.
      batches: a stacked pytree of arrays [num_batches, batch_size, ...]; or a list, or another iterable that
        can be read again and again, of batches, of which any may be smaller; or None.
      k: how many.
      key: typed random key.
      which: "largest" (algebraic), "smallest" (most negative), or "magnitude".
      rtol: relative residual to stop at. Default: the square root of the machine epsilon of the parameters
        (3e-4 in float32, 1.5e-8 in float64); the error of a value is of the order of the square of its residual
        over the gap.
      basis_size: Krylov vectors kept, at least k + 2 unless the dimension is smaller. Default: ``max(2 k + 10,
        20)``.
      max_products: products to give up after, with a RuntimeWarning. Default: 20 times ``basis_size``.
      return_vectors: return the eigenvectors too.
      **options: see :class:`gam_jax.flatness.DataOptions`.

    Returns:
      :class:`Eigenvalues`.

    Raises:
      TypeError: for parameters that are not floating-point, a raw uint32 key, a one-shot iterator of batches.
      ValueError: if k exceeds the number of parameters; for empty data; for a loss that is not finite, or not
        deterministic.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gam_jax import flatness
      >>> def loss_fn(params, batch):
      ...     return jnp.mean((batch["x"] @ params) ** 2) / 2
      >>> x = jnp.diag(jnp.array([1.0, 2.0, 3.0]))
      >>> batches = [{"x": x[:2]}, {"x": x[2:]}]
      >>> top = flatness.hessian_top_eigenvalues(loss_fn, jnp.ones(3), batches, k=2, key=jax.random.key(0))
      >>> print(top.values.round(4))
      [3.     1.3333]

    References:
      Wu, Simon: Thick-Restart Lanczos Method for Large Symmetric Eigenvalue Problems. SIMAX 22 (2000).
    """
    check_key(key)
    if which not in get_args(Which):
        raise ValueError(f"which must be one of {get_args(Which)}, got {which!r}")
    if rtol is not None:
        check_positive("rtol", rtol)
    check_count("k", k)
    with measure(loss_fn, params, batches, **options) as objective:
        check_count("k", k, at_most=objective.size, of=", the number of parameters")
        basis_size = max(2 * k + 10, 20) if basis_size is None else basis_size
        basis_size = min(basis_size, objective.size)
        check_count("basis_size", basis_size, at_least=min(k + 2, objective.size))
        max_products = 20 * basis_size if max_products is None else max_products
        check_count("max_products", max_products, at_least=basis_size)
        krylov = Krylov(objective.product, objective.params, basis_size, key)
        tolerance = objective.machine_epsilon**0.5 if rtol is None else rtol
        found = top_ritz_pairs(krylov, k, which, tolerance, max_products)
        return _certified(objective, krylov, found, return_vectors)


@jax.jit
def _residual(product: PyTree, value: float, v: PyTree) -> jax.Array:
    return global_norm(add_scaled(product, -value, v))


def _certified(
    objective: Objective, krylov: Krylov, found: tuple[np.ndarray, np.ndarray], return_vectors: bool
) -> Eigenvalues:
    """The eigenpairs with their true residuals, one product each."""
    residuals, vectors = [], []
    for value, column in zip(found[0], found[1].T, strict=True):
        v = krylov.vector(column)
        residuals.append(float(_residual(objective.product(v), value, v)))
        if return_vectors:
            vectors.append(v)
    stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *vectors) if return_vectors else None
    return Eigenvalues(found[0], np.array(residuals), stacked, krylov.products + len(residuals))


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
    **options: Unpack[DataArgs],
) -> TraceEstimate:
    r"""The trace of the Hessian of the mean loss over a data set, with its standard error.

    .. math:: \operatorname{tr} H = \mathbb{E}\, z^T H z, \qquad z_i = \pm 1

    Hutchinson's estimator, unbiased, with variance :math:`2 \sum_{i \ne j} H_{ij}^2` for one probe. With
    ``num_probes`` at least the number of parameters the probes are the unit vectors and the trace is exact.

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
    check_count("num_probes", num_probes)
    with measure(loss_fn, params, batches, **options) as objective:
        exact = num_probes >= objective.size
        check_count("num_probes", num_probes, at_least=1 if exact else 2)
        samples, mean, error = [], np.nan, np.nan
        while len(samples) < min(num_probes, objective.size):
            z = probe(objective, key, num_probes, len(samples))
            samples.append(float(_quadratic_form(z, objective.product(z))) * (objective.size if exact else 1))
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


_quadratic_form = jax.jit(inner_product)
