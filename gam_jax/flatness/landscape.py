"""Loss landscapes: slices through the parameters along one or two directions."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from gam_jax._check_trees import check_arrays, check_finite
from gam_jax._checks import check_integer, check_key, check_numbers
from gam_jax._signature import readable
from gam_jax._types import LossFn, PyTree
from gam_jax.flatness._block import count_parameters
from gam_jax.flatness._data import DataArgs, with_data_options
from gam_jax.flatness._filters import FilterAxes, filter_axes
from gam_jax.flatness._objective import measure
from gam_jax.flatness._vectors import random_like, shift


class LossSlice(NamedTuple):
    """The loss on a grid of points ``params + x direction_x + y direction_y``.

    Attributes:
      x: coordinates along the first direction, float64 [num_x].
      y: coordinates along the second, float64 [num_y], or None.
      values: the loss, float64 [num_x], or [num_y, num_x] as matplotlib's contour takes it. Infinite or NaN
        where the loss is.
    """

    x: np.ndarray
    y: np.ndarray | None
    values: np.ndarray


@with_data_options
def loss_slice(
    loss_fn: LossFn,
    params: PyTree,
    batches: PyTree,
    direction_x: PyTree,
    direction_y: PyTree | None = None,
    *,
    x: Any = None,
    y: Any = None,
    **options: Unpack[DataArgs],
) -> LossSlice:
    r"""The mean loss over the data on a line or a plane through the parameters.

    .. math:: \ell(x, y) = L(w + x\, d_x + y\, d_y)

    Give it :func:`filter_normalized_directions`, eigenvectors of the Hessian, or the difference of two
    solutions.

    Cost: one evaluation of the loss, without gradients, per point; the data are read once.
    Memory: 4 copies of the parameters.

    Args:
      loss_fn: ``loss_fn(params, batch) -> scalar``, the mean over the examples of the batch;
        ``loss_fn(params)`` with ``batches=None``. With batch normalisation choose what it normalises by:
        running statistics move with the weights in no meaningful way, batch statistics make the result depend
        on the batches.
      params: pytree of floating-point arrays.
      batches: as in :func:`hessian_top_eigenvalues`.
      direction_x: pytree like the parameters.
      direction_y: likewise, for a slice in two dimensions.
      x: coordinates, [num_x]. Default: 51 from -1 to 1, as Li et al. plot.
      y: coordinates, [num_y]. Default: those of x.
      **options: see :class:`gam_jax.flatness.DataOptions`.

    Returns:
      :class:`LossSlice`.

    Raises:
      TypeError: for parameters that are not floating-point, a one-shot iterator of batches.
      ValueError: for a direction that does not fit the parameters or is not finite, coordinates that are not
        one-dimensional, empty data, or a loss that at the parameters is not finite or not deterministic.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gam_jax import flatness
      >>> cut = flatness.loss_slice(lambda w: jnp.sum(w**2), jnp.zeros(2), None, jnp.array([1.0, 0.0]), x=[-2, 0, 1])
      >>> print(cut.values)
      [4. 0. 1.]

    References:
      Li, Xu, Taylor, Studer, Goldstein: Visualizing the Loss Landscape of Neural Nets. NeurIPS 2018.
      https://arxiv.org/abs/1712.09913
    """
    x = check_numbers("x", np.linspace(-1, 1, 51) if x is None else x)
    if direction_y is None and y is not None:
        raise ValueError(f"coordinates y need a direction_y, got {y=}")
    y = check_numbers("y", x if y is None else y) if direction_y is not None else None
    count_parameters(params)
    direction_x = check_direction("direction_x", direction_x, params)
    if direction_y is not None:
        direction_y = check_direction("direction_y", direction_y, params)
    with measure(loss_fn, params, batches, **options) as objective:

        def points() -> Iterator[PyTree]:
            for b in [None] if y is None else y:
                row = objective.params if b is None else shift(objective.params, b, direction_y)
                for a in x:
                    yield shift(row, a, direction_x)

        values = objective.values_at(points)
    return LossSlice(x, y, values if y is None else values.reshape(len(y), len(x)))


def check_direction(name: str, direction: PyTree, params: PyTree) -> PyTree:
    """The direction as arrays, checked."""
    check_arrays(name, direction)
    shapes, expected = jax.tree.map(np.shape, direction), jax.tree.map(np.shape, params)
    if shapes != expected:
        raise ValueError(f"{name} must have the structure and shapes of the parameters, {expected}, got {shapes}")
    if any(jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(direction)):
        raise TypeError(f"{name} must be real, got {name}={direction!r}")
    direction = jax.tree.map(jnp.asarray, direction)
    check_finite(name, direction)
    return direction


@readable
def filter_normalized_directions(
    params: PyTree, *, key: jax.Array, num: int = 2, filter_axis: int | FilterAxes = -1
) -> tuple[PyTree, ...]:
    r"""Random directions whose filters have the norms of the network's own (Li et al. 2018, section 4).

    .. math:: d_{i,j} \leftarrow \frac{d_{i,j}}{\|d_{i,j}\|} \|w_{i,j}\|

    with d Gaussian, for filter j of layer i: the weights into one output. Networks with rectifiers and
    normalisation are invariant to the scale of a filter, and only directions in its units compare between
    networks. Biases and the scales and shifts of normalisation layers do not move: their direction is zero, as in
    the authors' code for their figures.

    What is what is known by the names that Flax gives:

    * ``bias``, ``scale`` (and ``b``, ``beta``, ``gamma``, ``offset``), and arrays of less than two axes, do not move.
    * ``kernel``, and whatever has another name: ``filter_axis`` numbers the filters. Where the bias of the same
      layer has several axes of outputs (``nnx.LinearGeneral``, attention), all of them do.
    * ``embedding``: each row is a filter, as in the authors' code.
    * Layers that are stacked along leading axes (``nnx.scan``, ``nnx.vmap``) are normalised one by one. Their number
      is read from the nearest biases and scales: beside a kernel [5, 3, 4] a bias [5, 4] tells of five layers, a
      bias [4] of one.

    Nothing is guessed: an array of three or more axes without such a neighbour (a convolution, or stacked matrices?)
    is refused, and so is one that several neighbours tell different things of. Then ``filter_axis`` is a function.

    Args:
      params: pytree of floating-point arrays.
      key: typed random key.
      num: how many directions, independent of each other.
      filter_axis: the axis that numbers the outputs in the arrays of one layer, stacked axes not counted: the last
        in Flax (kernels [..., in, out]), the first in PyTorch and Equinox. Or a function ``(path, leaf) -> axes`` for
        all leaves, with the path of ``jax.tree.map_with_path``: an axis or a tuple of axes of the whole array, whose
        indices number filters and layers, as (0, -1); or None for a leaf that does not move.

    Returns:
      A tuple of ``num`` pytrees like the parameters, in float32 or wider.

    Raises:
      TypeError: for parameters that are not floating-point, a raw uint32 key, or a ``filter_axis`` of another type.
      ValueError: for axes that an array does not have, an array whose axes cannot be known, or parameters that are
        not finite.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gam_jax import flatness
      >>> params = {"kernel": jnp.array([[3.0, 0.0], [4.0, 1.0]]), "bias": jnp.ones(2)}
      >>> (d,) = flatness.filter_normalized_directions(params, key=jax.random.key(0), num=1)
      >>> print(jnp.linalg.norm(d["kernel"], axis=0).round(3), d["bias"])
      [5. 1.] [0. 0.]
    """
    check_key(key)
    check_integer("num", num)
    count_parameters(params)
    check_finite("params", params)
    params = jax.tree.map(jnp.asarray, params)
    axes = filter_axes(params, filter_axis)
    return tuple(_filter_normalized(jax.random.fold_in(key, i), params, axes) for i in range(num))


def _filter_normalized(key: jax.Array, params: PyTree, filters: list[tuple[int, ...] | None]) -> PyTree:
    def normalized(direction: jax.Array, leaf: jax.Array, kept: tuple[int, ...] | None) -> jax.Array:
        if kept is None:
            return jnp.zeros_like(direction)
        axes = tuple(axis for axis in range(leaf.ndim) if axis not in kept)
        squares = [jnp.square(x.astype(direction.dtype)) for x in (direction, leaf)]
        norms = [jnp.sqrt(jnp.sum(square, axes, keepdims=True)) for square in squares]
        return direction * (norms[1] / jnp.where(norms[0] > 0, norms[0], 1))

    leaves, structure = jax.tree.flatten(params)
    directions = jax.tree.leaves(random_like(key, params))
    return jax.tree.unflatten(structure, list(map(normalized, directions, leaves, filters)))
