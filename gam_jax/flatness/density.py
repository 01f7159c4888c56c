"""The spectral density of the Hessian."""

from collections.abc import Callable
from typing import NamedTuple, Unpack

import jax
import numpy as np
from jax.typing import ArrayLike

from gam_jax._checks import check_integer, check_key, check_numbers, check_positive
from gam_jax._types import LossFn, PyTree
from gam_jax.flatness._block import count_parameters
from gam_jax.flatness._data import DataArgs, with_data_options
from gam_jax.flatness._krylov import Krylov
from gam_jax.flatness._objective import measure
from gam_jax.flatness._passes import Operator
from gam_jax.flatness._probes import probe, standard_error


class SpectralDensity(NamedTuple):
    """A stochastic estimate of the density of eigenvalues.

    Attributes:
      grid: eigenvalues, float64 [num_points].
      density: the density there, smoothed by a Gaussian; its integral is 1. float64 [num_points].
      density_standard_error: likewise, over the probes.
      moments: ``tr(H^p) / n`` for p = 1, 2, 3, 4, without smoothing, float64 [4].
      moments_standard_error: float64 [4].
      bandwidth: standard deviation of the Gaussian.
      nodes: Ritz values, float64 [probes, num_steps]; NaN where a Krylov space was exhausted earlier.
      weights: what share of the eigenvalues each stands for, likewise, 0 there; each row sums to 1.
    """

    grid: np.ndarray
    density: np.ndarray
    density_standard_error: np.ndarray
    moments: np.ndarray
    moments_standard_error: np.ndarray
    bandwidth: float
    nodes: np.ndarray
    weights: np.ndarray


@with_data_options
def hessian_density(
    loss_fn: LossFn,
    params: PyTree,
    batches: PyTree,
    *,
    key: jax.Array,
    num_probes: int = 10,
    num_steps: int = 80,
    grid: ArrayLike | None = None,
    bandwidth: float | None = None,
    operator: Operator = "hessian",
    mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    **options: Unpack[DataArgs],
) -> SpectralDensity:
    r"""The density of the eigenvalues of the Hessian, by stochastic Lanczos quadrature (SLQ).

    .. math:: \phi(\lambda) = \frac1n \sum_i \mathcal{N}(\lambda; \lambda_i, \sigma^2)
              \approx \frac1P \sum_{p,j} \omega^{(p)}_j \mathcal{N}(\lambda; \theta^{(p)}_j, \sigma^2)

    where, for a probe of random signs, :math:`\theta_j` are the Ritz values of m Lanczos steps from it and
    :math:`\omega_j` the squared first components of their eigenvectors: a Gauss quadrature, exact for
    polynomials up to degree 2 m - 1. With ``num_probes`` at least the number of parameters the probes are the
    unit vectors, which leaves the error of the quadrature, 0 when ``num_steps`` is that large too.

    A RuntimeWarning tells of a Hessian that is not symmetric, as :func:`hessian_top_eigenvalues` does.

    Cost: ``3 num_probes num_steps`` gradient evaluations on the whole data. Memory: ``num_steps + 1`` vectors
    of the size of the parameters in float32, for full reorthogonalisation: 3.6 GB at the default for 11 million
    parameters.

    Args:
      loss_fn: as in :func:`hessian_top_eigenvalues`.
      params: pytree of floating-point arrays.
      batches: as in :func:`hessian_top_eigenvalues`.
      key: typed random key.
      num_probes: P, at least 2. The default is that of Ghorbani et al.
      num_steps: m; they use 80 to 90.
      grid: the eigenvalues at which to evaluate the density. Default: 4096 points over the Ritz values and five
        bandwidths to either side.
      bandwidth: :math:`\sigma`. Default: as theirs, the square root of 1e-5 times half the range of the Ritz
        values.
      operator: "hessian" or "ggn", as in :func:`hessian_top_eigenvalues`.
      mask: measure a diagonal block, as in :func:`hessian_top_eigenvalues`.
      **options: see :class:`gam_jax.flatness.DataOptions`.

    Returns:
      :class:`SpectralDensity`.

    Raises:
      TypeError, ValueError: as :func:`hessian_top_eigenvalues` does.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gam_jax import flatness
      >>> loss_fn = lambda params: jnp.sum(jnp.arange(4.0) * params**2) / 2
      >>> spectrum = flatness.hessian_density(loss_fn, jnp.ones(4), None, key=jax.random.key(0))
      >>> print(spectrum.moments)
      [ 1.5  3.5  9.  24.5]

    References:
      Ghorbani, Krishnan, Xiao: An Investigation into Neural Net Optimization via Hessian Eigenvalue Density.
      ICML 2019. https://arxiv.org/abs/1901.10159
    """
    check_key(key)
    check_integer("num_probes", num_probes)
    check_integer("num_steps", num_steps)
    if bandwidth is not None:
        check_positive("bandwidth", bandwidth)
    points = None if grid is None else check_numbers("grid", grid)
    exact = num_probes >= count_parameters(params, mask)
    check_integer("num_probes", num_probes, at_least=1 if exact else 2)
    with measure(loss_fn, params, batches, mask=mask, operator=operator, **options) as objective:
        krylov = Krylov(objective.product(operator), objective.params, num_steps, key)
        nodes = np.full((min(num_probes, objective.size), krylov.size), np.nan)
        weights = np.zeros_like(nodes)
        for i in range(len(nodes)):
            krylov.clear()
            krylov.start(probe(objective, key, num_probes, i))
            while krylov.length < krylov.size and (krylov.length == 0 or krylov.beta > 0):
                krylov.step()
            values, coordinates, _ = krylov.ritz()
            nodes[i, : len(values)], weights[i, : len(values)] = values, coordinates[0] ** 2
        krylov.warn_if_asymmetric(objective.machine_epsilon)

    smallest, largest = np.nanmin(nodes), np.nanmax(nodes)
    spread = largest - smallest or max(abs(largest), 1.0)
    sigma = float(1e-5**0.5 * spread / 2 if bandwidth is None else bandwidth)
    around = np.linspace(smallest - 5 * sigma, largest + 5 * sigma, 4096)
    points = around if points is None else points
    filled = np.nan_to_num(nodes)
    densities = np.stack([_smoothed(points, *row, sigma) for row in zip(filled, weights, strict=True)])
    powers = np.stack([(weights * filled**p).sum(1) for p in range(1, 5)], axis=1)
    return SpectralDensity(
        points,
        densities.mean(0),
        standard_error(densities, exact),
        powers.mean(0),
        standard_error(powers, exact),
        sigma,
        nodes,
        weights,
    )


def _smoothed(grid: np.ndarray, nodes: np.ndarray, weights: np.ndarray, bandwidth: float) -> np.ndarray:
    distances = (grid[:, None] - nodes) / bandwidth
    return np.exp(-(distances**2) / 2) @ weights / (bandwidth * (2 * np.pi) ** 0.5)
