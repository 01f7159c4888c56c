"""Two networks: the loss on the line between them, and how much their top eigenvectors have in common."""

from collections.abc import Iterator
from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from gam_jax._check_trees import check_arrays
from gam_jax._checks import check_integer
from gam_jax._signature import readable
from gam_jax._tree import subtract
from gam_jax._types import LossFn, PyTree
from gam_jax.flatness._block import count_parameters
from gam_jax.flatness._data import DataArgs, with_data_options
from gam_jax.flatness._objective import measure
from gam_jax.flatness._vectors import shift
from gam_jax.flatness.landscape import check_direction


class LossPath(NamedTuple):
    """The loss between two networks.

    Attributes:
      t: how far from the first to the second, float64 [num_points], from 0 to 1.
      values: the loss there, float64 [num_points].
      barrier: the largest excess over the line between the losses of the two, at least 0.
      barrier_at: where along the path it is.
    """

    t: np.ndarray
    values: np.ndarray
    barrier: float
    barrier_at: float


@with_data_options
def loss_path(
    loss_fn: LossFn,
    params: PyTree,
    other: PyTree,
    batches: PyTree,
    *,
    num_points: int = 25,
    **options: Unpack[DataArgs],
) -> LossPath:
    r"""The mean loss over the data on the straight path between two networks, and its barrier.

    .. math:: \ell(t) = L((1 - t)\, w + t\, w'), \qquad
              B = \max_t\; \ell(t) - (1 - t)\, \ell(0) - t\, \ell(1)

    Networks with a barrier near 0 are linearly connected: they lie in one valley. Units of a layer can be permuted
    without changing a network, so that two trained from different seeds nearly always have a barrier unless they are
    aligned first. Running statistics of batch normalisation are those of neither network in between, and a loss that
    uses them shows a barrier of its own: normalise by the batch there.

    Cost: one evaluation of the loss, without gradients, per point; the data are read once. Memory: 4 copies of the
    parameters.

    Args:
      loss_fn: as in :func:`loss_slice`.
      params: the first network, a pytree of floating-point arrays.
      other: the second, a pytree like it.
      batches: as in :func:`hessian_top_eigenvalues`.
      num_points: evenly spaced, both ends included; at least 3.
      **options: see :class:`gam_jax.flatness.DataOptions`.

    Returns:
      :class:`LossPath`.

    Raises:
      TypeError: for parameters that are not floating-point, a one-shot iterator of batches.
      ValueError: for networks of different shapes, one that is not finite, empty data, or a loss that at the first
        network is not finite or not deterministic.

    Example:
      >>> import jax.numpy as jnp
      >>> from gam_jax import flatness
      >>> path = flatness.loss_path(lambda w: jnp.sum((w**2 - 1) ** 2), jnp.ones(1), -jnp.ones(1), None, num_points=5)
      >>> print(path.values, path.barrier, path.barrier_at)
      [0.     0.5625 1.     0.5625 0.    ] 1.0 0.5

    References:
      Frankle, Dziugaite, Roy, Carbin: Linear Mode Connectivity and the Lottery Ticket Hypothesis. ICML 2020.
      https://arxiv.org/abs/1912.05671
      Entezari, Sedghi, Saukh, Neyshabur: The Role of Permutation Invariance in Linear Mode Connectivity of Neural
      Networks. ICLR 2022. https://arxiv.org/abs/2110.06296
    """
    check_integer("num_points", num_points, at_least=3)
    count_parameters(params)
    direction = subtract(check_direction("other", other, params), params)
    t = np.linspace(0, 1, num_points)
    with measure(loss_fn, params, batches, **options) as objective:

        def points() -> Iterator[PyTree]:
            yield from (shift(objective.params, at, direction) for at in t)

        values = objective.values_at(points)
    excess = values - (1 - t) * values[0] - t * values[-1]
    most = int(np.argmax(np.where(np.isnan(excess), np.inf, excess)))
    return LossPath(t, values, float(excess[most]), float(t[most]))


class Overlap(NamedTuple):
    """What two sets of eigenvectors have in common.

    Attributes:
      value: the share of one space that lies in the other, from 0 (orthogonal) to 1 (one contains the other).
      cosines: the inner products of all pairs, float64 [k, l]: rows for the first set, columns for the second.
    """

    value: float
    cosines: np.ndarray


@readable
def eigenvector_overlap(vectors: PyTree, others: PyTree) -> Overlap:
    r"""How much the spaces of the top eigenvectors of two networks, or of one at two times, have in common.

    .. math:: \frac{\|U^T V\|_F^2}{\min(k, l)}

    with the k vectors of the first in U and the l of the second in V, both orthonormal. Spaces drawn at random of n
    dimensions have ``max(k, l) / n`` in the mean. Networks that are permutations of each other are not aligned here.

    Cost: k l inner products.

    Args:
      vectors: ``hessian_top_eigenvalues(..., return_vectors=True).vectors``: a pytree like the parameters with a
        leading axis [k].
      others: likewise, of the other network, with a leading axis [l].

    Returns:
      :class:`Overlap`.

    Raises:
      TypeError: for something that is no pytree of arrays.
      ValueError: for vectors of different shapes.

    Example:
      >>> import jax.numpy as jnp
      >>> from gam_jax import flatness
      >>> print(flatness.eigenvector_overlap(jnp.eye(4)[:2], jnp.eye(4)[1:3]).value)
      0.5

    References:
      Gur-Ari, Roberts, Dyer: Gradient Descent Happens in a Tiny Subspace. 2018. https://arxiv.org/abs/1812.04754
    """
    sets = {"vectors": vectors, "others": others}
    for name, tree in sets.items():
        check_arrays(name, tree)
        lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(tree)}
        if len(lengths) != 1 or () in lengths or (0,) in lengths:
            raise ValueError(f"{name} must have one leading axis that numbers them, got {jax.tree.map(np.shape, tree)}")
    shapes = [jax.tree.map(lambda leaf: np.shape(leaf)[1:], tree) for tree in sets.values()]
    if shapes[0] != shapes[1]:
        raise ValueError(f"others must be vectors like the first, {shapes[0]}, got {shapes[1]}")
    cosines = np.asarray(_products(*(jax.tree.map(jnp.asarray, tree) for tree in sets.values())), np.float64)
    return Overlap(float(np.sum(cosines**2) / min(cosines.shape)), cosines)


@jax.jit
def _products(a: PyTree, b: PyTree) -> jax.Array:
    def pairs(x: jax.Array, y: jax.Array) -> jax.Array:
        x, y = (z.reshape(len(z), -1).astype(jnp.promote_types(z.dtype, jnp.float32)) for z in (x, y))
        return jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)

    return sum(jax.tree.leaves(jax.tree.map(pairs, a, b)))  # pyright: ignore[reportReturnType]
