"""Average-case sharpness: the mean increase of the loss under random perturbations."""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Unpack

import jax
import numpy as np

from gam_jax._checks import check_integer, check_key, check_positive
from gam_jax._types import LossFn, PyTree
from gam_jax.flatness._block import count_parameters
from gam_jax.flatness._data import DataArgs, with_data_options
from gam_jax.flatness._geometry import Ball, Norm, check_geometry
from gam_jax.flatness._objective import measure
from gam_jax.flatness._probes import standard_error
from gam_jax.flatness._vectors import random_like, scale


class AverageSharpness(NamedTuple):
    """A mean over random perturbations.

    Attributes:
      value: the mean increase of the loss.
      standard_error: of the value, over the samples.
      samples: the increase at each perturbation, in the mean of it and its opposite, float64 [num_samples].
    """

    value: float
    standard_error: float
    samples: np.ndarray


@with_data_options
def average_sharpness(
    loss_fn: LossFn,
    params: PyTree,
    batches: PyTree,
    rho: float,
    *,
    key: jax.Array,
    num_samples: int = 100,
    norm: Norm = "l2",
    adaptive: bool | PyTree | Callable[[PyTree], PyTree] = False,
    mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    **options: Unpack[DataArgs],
) -> AverageSharpness:
    r"""The mean increase of the loss under random perturbations of the parameters.

    .. math:: S_{avg} = \mathbb{E}_u\, L(w + T u) - L(w), \qquad u_i \sim \mathcal{N}(0, \rho^2)
              \text{ ("l2") or uniform on } [-\rho, \rho] \text{ ("linf")}

    The average case of Andriushchenko et al., whose worst case is :func:`zeroth_order_flatness`. Here rho is the size
    of each entry of u, not of the whole vector. On a quadratic it is :math:`\rho^2 \sum_i T_i^2 H_{ii} / 2`, and a
    third of that for "linf". Every u comes with -u, which cancels the gradient's part. The mean over batches of the
    sharpness of each (m-sharpness) is the same number.

    Cost: ``2 num_samples`` evaluations of the loss on the whole data, without gradients; the data are read once.
    Memory: 4 copies of the parameters; perturbations are drawn again for each batch.

    Args:
      loss_fn: as in :func:`zeroth_order_flatness`.
      params: pytree of floating-point arrays.
      batches: as in :func:`hessian_top_eigenvalues`.
      rho: standard deviation or largest absolute value of an entry of u, > 0.
      key: typed random key.
      num_samples: pairs of perturbations, at least 2. The authors take 100 perturbations.
      norm: "l2" for Gaussian, "linf" for uniform entries.
      adaptive: T, as in :func:`zeroth_order_flatness`; with True an entry is a share of its parameter.
      mask: leaves that move, as in :func:`zeroth_order_flatness`.
      **options: see :class:`gam_jax.flatness.DataOptions`.

    Returns:
      :class:`AverageSharpness`.

    Raises:
      TypeError, ValueError: as :func:`zeroth_order_flatness` does.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gam_jax import flatness
      >>> loss_fn = lambda params: jnp.sum(params**2) / 2
      >>> found = flatness.average_sharpness(loss_fn, jnp.ones(100), None, rho=0.1, key=jax.random.key(0))
      >>> print(f"{found.value:.2f} +- {found.standard_error:.2f}")  # 100 * 0.1**2 / 2
      0.50 +- 0.01

    References:
      Andriushchenko, Croce, Mueller, Hein, Flammarion: A Modern Look at the Relationship between Sharpness and
      Generalization. ICML 2023. https://arxiv.org/abs/2302.07011
    """
    check_key(key)
    check_positive("rho", rho)
    check_integer("num_samples", num_samples, at_least=2)
    check_geometry(norm, adaptive, params)
    count_parameters(params, mask)
    kind = "normal" if norm == "l2" else "uniform"
    with measure(loss_fn, params, batches, mask=mask, **options) as objective:
        ball = Ball.around(objective, rho, norm, adaptive)

        def points() -> Iterator[PyTree]:
            for i in range(num_samples):
                drawn = random_like(jax.random.fold_in(key, i), objective.params, kind)
                yield from (ball.point(scale(sign * rho, drawn)) for sign in (1.0, -1.0))

        increases = objective.values_at(points).reshape(num_samples, 2) - objective.value
    samples = increases.mean(1)
    if not np.isfinite(samples).all():
        worst = samples[~np.isfinite(samples)][0]
        raise ValueError(f"the loss must be finite at the perturbed points, got an increase of {worst} with {rho=}")
    return AverageSharpness(float(samples.mean()), float(standard_error(samples, False)), samples)
