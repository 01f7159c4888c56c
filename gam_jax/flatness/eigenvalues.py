"""Second-order flatness: the top eigenvalues of the Hessian, by Lanczos' method."""

import warnings
from collections.abc import Callable
from typing import Literal, NamedTuple, Unpack, get_args

import jax
import jax.numpy as jnp
import numpy as np

from gam_jax._checks import check_flag, check_integer, check_key, check_positive
from gam_jax._tree import add_scaled, global_norm
from gam_jax._types import LossFn, PyTree
from gam_jax.flatness._block import count_parameters
from gam_jax.flatness._data import DataArgs, with_data_options
from gam_jax.flatness._krylov import Krylov
from gam_jax.flatness._objective import Objective, measure
from gam_jax.flatness._passes import Operator

Which = Literal["largest", "smallest", "magnitude"]
_ORDER = {"largest": lambda x: -x, "smallest": lambda x: x, "magnitude": lambda x: -np.abs(x)}


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
    operator: Operator = "hessian",
    mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    **options: Unpack[DataArgs],
) -> Eigenvalues:
    r"""The k largest eigenvalues of the Hessian of the mean loss over a data set, or of its Gauss-Newton matrix.

    At a minimum of a quadratic, :math:`\lambda_{max} = R^{(1)}_\rho / \rho^2` (Lemma 4.1 of the GAM paper).

    Lanczos' method with full reorthogonalisation and thick restarts (Wu and Simon 2000) from a random start. It
    stops when each wanted Ritz pair has a residual below ``rtol`` times the largest Ritz value in magnitude. A
    Krylov space holds one copy of a repeated eigenvalue, so with ``k > 1`` the found vectors are then set aside
    and the search goes on from a random vector orthogonal to them, until that finds nothing larger.

    A loss whose gradient is not that of any function (gradient reversal, a straight-through estimator, another
    custom_vjp with a rule of its own) has no symmetric Hessian, and Lanczos' method finds nothing of the Jacobian J of
    such a gradient: the residuals are then large, and a RuntimeWarning says so. The products are J v.

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
      basis_size: Krylov vectors kept, at least k + 2 unless the dimension is smaller, at most the dimension.
        Default: ``max(2 k + 10, 20)``, or the dimension.
      max_products: products to give up after, with a RuntimeWarning. Default: 20 times ``basis_size``.
      return_vectors: return the eigenvectors too; 0 outside the mask.
      operator: "hessian", or "ggn" for the Gauss-Newton matrix ``J^T H_l J`` of a :class:`SplitLoss`, with J the
        Jacobian of the outputs and H_l the Hessian of their loss: without negative eigenvalues where that loss is
        convex, and for cross-entropy the Fisher matrix. A product costs 2 gradient evaluations.
      mask: measure a diagonal block, of a layer say: a pytree of bools like the parameters, or a function from them to
        one. Rows and columns of leaves with False are left out.
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
    if not isinstance(which, str) or which not in get_args(Which):
        raise ValueError(f"which must be one of {get_args(Which)}, got {which!r}")
    if rtol is not None:
        check_positive("rtol", rtol)
    check_flag("return_vectors", return_vectors)
    size, of = count_parameters(params, mask), ", the number of parameters"
    check_integer("k", k, at_most=size, of=of)
    if basis_size is None:
        basis_size = min(max(2 * k + 10, 20), size)
    check_integer("basis_size", basis_size, at_least=min(k + 2, size), at_most=size, of=of)
    max_products = 20 * basis_size if max_products is None else max_products
    check_integer("max_products", max_products, at_least=basis_size)
    with measure(loss_fn, params, batches, mask=mask, operator=operator, **options) as objective:
        krylov = Krylov(objective.product(operator), objective.params, basis_size, key)
        tolerance = objective.machine_epsilon**0.5 if rtol is None else rtol
        found = _top_ritz_pairs(krylov, k, which, tolerance, max_products)
        krylov.warn_if_asymmetric(objective.machine_epsilon)
        return _certified(objective, operator, krylov, found, return_vectors)


def _top_ritz_pairs(
    krylov: Krylov, k: int, which: Which, rtol: float, max_products: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k wanted Ritz values and their coordinates in the rows of the basis."""
    size = krylov.size
    set_aside = np.full(k, np.nan)  # the values found before the present search for what they hide
    searching = False
    krylov.start_at_random()
    while True:
        krylov.step()
        values, coordinates, residuals = krylov.ritz()
        order = np.argsort(_ORDER[which](values), kind="stable")
        wanted = order[:k]
        found = values[wanted], coordinates[:, wanted]
        bound = rtol * np.abs(values).max()
        full, exhausted = krylov.length == size, krylov.beta == 0
        converged = krylov.length >= (k if exhausted else k + 2) and bool((residuals[wanted] <= bound).all())
        unhidden = k == 1 or np.abs(found[0] - set_aside).max() <= bound if converged else False
        if krylov.length == krylov.dimension or (unhidden and (full or exhausted or not searching)):
            return found
        if krylov.products >= max_products:
            _warn(krylov.products, residuals[wanted].max(), bound, converged)
            return found
        if converged and (full or exhausted or not searching):
            set_aside, searching = found[0], True
            krylov.restart(*found, keep_residual=False)
            krylov.start_at_random()
        elif exhausted:
            krylov.start_at_random()
        elif full:
            searching = False
            kept = order[: k + (size - k) // 3]
            krylov.restart(values[kept], coordinates[:, kept], keep_residual=True)


def _warn(products: int, residual: float, bound: float, converged: bool) -> None:
    missing = (
        "did not confirm that no eigenvalue is repeated or missing"
        if converged
        else f"did not bring all residuals below {bound:.3g}, got {residual:.3g}"
    )
    warnings.warn(
        f"{products} Hessian-vector products {missing}: give a larger max_products, basis_size or rtol",
        RuntimeWarning,
        stacklevel=4,
    )


@jax.jit
def _residual(product: PyTree, value: float, v: PyTree) -> jax.Array:
    return global_norm(add_scaled(product, -value, v))


def _certified(
    objective: Objective, operator: Operator, krylov: Krylov, found: tuple[np.ndarray, np.ndarray], return_vectors: bool
) -> Eigenvalues:
    """The eigenpairs with their true residuals, one product each."""
    residuals, vectors, product = [], [], objective.product(operator)
    for value, column in zip(found[0], found[1].T, strict=True):
        v = krylov.vector(column)
        residuals.append(float(_residual(product(v), value, v)))
        if return_vectors:
            vectors.append(v)
    stacked = objective.whole(jax.tree.map(lambda *rows: jnp.stack(rows), *vectors)) if return_vectors else None
    return Eigenvalues(found[0], np.array(residuals), stacked, krylov.products + len(residuals))
