"""Batches of a data set, read again and again: what counts as one, how many examples it holds, where it lies."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gam_jax._checks import check_flag, check_function, check_positive
from gam_jax._signature import readable, show_options
from gam_jax._types import PyTree

ProgressFn = Callable[[int, int], None]
"""``progress(passes, batches)``: finished passes over the data, and batches done in the current one."""


@readable
@dataclasses.dataclass(frozen=True)
class DataOptions:
    """What every measurement accepts about its loss and its data, as keyword arguments.

    Attributes:
      has_aux: the loss returns ``(loss, aux)``; aux is dropped.
      loss_args: more arguments of the loss, by name: ``loss_fn(params, batch, **loss_args)``. Pytrees of arrays, such
        as batch statistics. They are arguments of the compiled pass: measuring every epoch with new ones compiles
        nothing again and keeps no old ones alive, as a loss that closes over them does.
      num_examples: ``batch -> number``, the weight of a batch in the mean over the data. By default the length
        of the leading axis of its arrays. With padded batches whose loss is the mean over a mask, the sum of
        the mask.
      mesh: spread each batch over the devices of this mesh along its leading axis, with the parameters
        replicated. A batch that the number of devices does not divide is evaluated on each of them: as right,
        but no faster. Without it arrays are used where they are, sharded parameters too.
      accumulate_in_float64: sum gradients and products over the batches in float64, whatever the x64 flag.
        Losses always are. It matters for thousands of batches whose contributions nearly cancel.
      progress: True for a bar (needs ``rich``), or ``progress(passes, batches)``, called after every batch with
        the finished passes over the data and the batches done in the current one.
      check_determinism: evaluate the loss on the whole data twice before measuring, each with a trace of its
        own, and raise if the two differ. Costs two passes without gradients.
    """

    has_aux: bool = False
    loss_args: Mapping[str, Any] | None = None
    num_examples: Callable[[Any], Any] | None = None
    mesh: Mesh | None = None
    accumulate_in_float64: bool = False
    progress: bool | ProgressFn = False
    check_determinism: bool = True

    def __post_init__(self):
        for name in ("has_aux", "accumulate_in_float64", "check_determinism"):
            check_flag(name, getattr(self, name))
        _check_loss_args(self.loss_args)
        if self.num_examples is not None:
            check_function("num_examples", self.num_examples, " batch -> number, or None")
        if self.mesh is not None and not isinstance(self.mesh, Mesh):
            raise TypeError(f"mesh must be a jax.sharding.Mesh or None, got mesh={self.mesh!r}")
        if not isinstance(self.progress, bool):
            check_function("progress", self.progress, " (passes, batches) -> None, True or False")


def _check_loss_args(loss_args: Any) -> None:
    if loss_args is None:
        return
    if not (isinstance(loss_args, Mapping) and all(isinstance(name, str) for name in loss_args)):
        raise TypeError(f"loss_args must be a dict from names to pytrees of arrays, got loss_args={loss_args!r}")
    for path, leaf in jax.tree.leaves_with_path(dict(loss_args)):
        if not _is_array(leaf):
            where = f"loss_args{jax.tree_util.keystr(path)}"
            raise TypeError(f"loss_args must hold arrays, known now, got {leaf!r} at {where}")


def _is_array(leaf: Any) -> bool:
    """Whether JAX takes it as an array, of numbers or of keys, and its values are known."""
    if isinstance(leaf, jax.Array):
        return not isinstance(leaf, Tracer)
    return isinstance(leaf, int | float | complex) or getattr(getattr(leaf, "dtype", None), "kind", "O") not in "OSUMm"


class DataArgs(TypedDict, total=False):
    """The fields of :class:`DataOptions` as keyword arguments."""

    has_aux: bool
    loss_args: Mapping[str, Any] | None
    num_examples: Callable[[Any], Any] | None
    mesh: Mesh | None
    accumulate_in_float64: bool
    progress: bool | ProgressFn
    check_determinism: bool


with_data_options = show_options(DataOptions, DataArgs.__annotations__)

Read = Callable[[], Iterator[tuple[Any, ...]]]
"""Starts a pass: yields what the loss takes after the parameters, ``(batch,)``, or ``()`` for a loss without data."""


def reader(batches: Any) -> Read:
    """What :data:`batches` means: None, a re-iterable of batches (a list is one), or a stacked pytree.

    Raises:
      TypeError: for a one-shot iterator, or something that is neither arrays nor iterable.
      ValueError: for a stacked pytree without batches, or whose leaves do not have the same number of them.
    """
    if batches is None:
        return lambda: iter([()])
    if isinstance(batches, Iterator):
        raise TypeError(
            f"batches are read once per Hessian-vector product, and {batches!r} is an iterator that can be read only "
            "once: pass list(...) of it, or an object whose __iter__ starts afresh"
        )
    is_leaf = jax.tree_util.treedef_is_leaf(jax.tree.structure(batches))
    if isinstance(batches, list) or (is_leaf and not hasattr(batches, "shape")):
        if not isinstance(batches, Iterable) or isinstance(batches, str | bytes):
            raise TypeError(f"batches must be a stacked pytree of arrays or an iterable of batches, got {batches!r}")
        return lambda: ((batch,) for batch in batches)
    count = _stacked_length(batches)
    return lambda: ((_take(batches, i),) for i in range(count))


def _take(stacked: PyTree, i: int) -> PyTree:
    """Batch i. What is not on a device yet (NumPy, a memory map, HDF5) is cut where it lies."""
    return jax.tree.map(lambda leaf: _index(leaf, i) if isinstance(leaf, jax.Array) else leaf[i], stacked)


@jax.jit
def _index(array: jax.Array, i: int) -> jax.Array:
    return array[i]


def _stacked_length(stacked: PyTree) -> int:
    shapes = {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in jax.tree.leaves_with_path(stacked)}
    flat = {path: shape for path, shape in shapes.items() if len(shape) < 2}
    if flat or not shapes:
        raise ValueError(
            "the leaves of stacked batches must have shape [num_batches, batch_size, ...], got "
            f"{flat or stacked}: for a single batch pass [batch]"
        )
    lengths = {shape[0] for shape in shapes.values()}
    if len(lengths) > 1:
        raise ValueError(f"the leaves of stacked batches must have one leading axis [num_batches], got {shapes}")
    return lengths.pop()


def as_arrays(index: int, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The batch with its leaves as arrays, whatever kind they are of: those of PyTorch and lists of HDF5 too.

    Raises:
      TypeError: for a leaf that is no array of numbers.
    """

    def convert(path: Any, leaf: Any) -> Any:
        try:
            array = leaf if _is_array(leaf) else np.asarray(leaf)
        except (TypeError, ValueError, RuntimeError) as error:  # PyTorch's, of a tensor on a GPU or with a gradient
            raise TypeError(f"{_not_numbers(index, path, leaf)}: {error}") from error
        if not _is_array(array):
            raise TypeError(_not_numbers(index, path, leaf))
        return array

    return jax.tree.map_with_path(convert, args)


def _not_numbers(index: int, path: Any, leaf: Any) -> str:
    return f"batches must hold arrays of numbers, got {leaf!r} at batch {index}{jax.tree_util.keystr(path[1:])}"


def count_examples(args: tuple[Any, ...], num_examples: Callable[[Any], Any] | None) -> float:
    """The weight of a batch: ``num_examples(batch)``, or the length of the leading axis of its arrays.

    Raises:
      ValueError: if its arrays disagree about that length, or the weight is negative or not finite.
    """
    if not args:
        return 1.0
    if num_examples is not None:
        weight = num_examples(args[0])
        check_positive("num_examples(batch)", weight, or_zero=True)
        return float(weight)
    sizes = {
        jax.tree_util.keystr(path): np.shape(leaf)[0]
        for path, leaf in jax.tree.leaves_with_path(args[0])
        if np.ndim(leaf)
    }
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"cannot tell how many examples a batch holds, the leading axes of its arrays are {sizes}: pass "
            "num_examples=lambda batch: ..."
        )
    return float(next(iter(sizes.values()), 1))


def automatic(mesh: Mesh) -> Mesh:
    """The mesh with Auto axes, so that the compiler partitions the loss, whatever the axes were made as."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def spread(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Puts a batch on the mesh, split along the leading axis where the number of devices divides it."""
    if mesh is None:
        return tree

    def put(leaf: Any) -> jax.Array:
        splits = jnp.ndim(leaf) > 0 and np.shape(leaf)[0] % mesh.size == 0
        spec = PartitionSpec(mesh.axis_names) if splits else PartitionSpec()
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(put, tree)


def replicate(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Puts a copy on every device of the mesh."""
    return tree if mesh is None else jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
