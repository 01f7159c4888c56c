"""Microbatches: which arguments of the loss are split, into what, and how much each part weighs."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gam_jax._calls import check_takes
from gam_jax._loss import Arguments, Loss
from gam_jax._options import Options
from gam_jax._replicas import as_varying, mean_over, varying_axes
from gam_jax._tree import add_scaled, cast_like, scale_by, wide_dtype, zero_if_weightless
from gam_jax._types import PyTree


@dataclasses.dataclass(frozen=True)
class Microbatches:
    """The arguments of one step, in ``number`` parts.

    Attributes:
      arguments: the whole.
      number: of parts.
      rows: the arrays that are split.
      rebuild: the arguments from these arrays, or those of one part from its slices of them.
      weights: of the parts, with mean one; None for equal ones.
      share: the weight of this replica, with mean one over the replicas; None for equal ones.
      doubtful: arguments that stay whole because nobody said otherwise, though they are as long as the batch.
    """

    arguments: Arguments
    number: int = 1
    rows: Sequence[Any] = ()
    rebuild: Callable[[Sequence[Any]], Any] = lambda rows: rows
    weights: jax.Array | None = None
    share: jax.Array | None = None
    doubtful: Sequence[str] = ()

    @classmethod
    def create(cls, loss: Loss, arguments: Arguments, options: Options) -> "Microbatches":
        """Splits the arguments and weighs the parts, as the options say."""
        number, weigh = options.num_microbatches or 1, options.microbatch_weight
        if number == 1 and weigh is None:
            return cls(arguments)
        args, kwargs = arguments
        names = loss.names(args)
        named = {**dict(zip(names, args, strict=True)), **kwargs}
        flags, doubtful = _flags(named, options.microbatched, number)
        rows, rebuild_named = _rows(named, flags, number)

        def rebuild(rows: Sequence[Any]) -> Arguments:
            part = rebuild_named(rows)
            return tuple(part[name] for name in names), {name: part[name] for name in kwargs}

        if weigh is None:
            return cls(arguments, number, rows, rebuild, doubtful=doubtful)
        weight = lambda rows: _weight(weigh, [rebuild_named(rows)[name] for name in flags])  # noqa: E731
        weights = jax.vmap(weight)(_split(rows, number))
        mean = weights.mean()
        share = None if options.axis_name is None else _relative(mean, mean_over(options.axis_name, mean))
        return cls(arguments, number, rows, rebuild, _relative(weights, mean), share, doubtful)

    def mean(self, fn: Callable[[Arguments], tuple[Any, Any, Any]]) -> tuple[Any, Any, Any]:
        """``fn: arguments -> (value, aux, tree)``, value and tree averaged in float32 or wider, aux stacked."""
        if self.number == 1:
            return fn(self.arguments)

        def term(slices: Any, weight: Any) -> tuple[Any, Any]:
            value, aux, tree = fn(self.rebuild(slices))
            return zero_if_weightless(weight, (value, tree)), aux

        def step(total: Any, part: Any) -> tuple[Any, Any]:
            slices, weight = part
            new, aux = term(slices, weight)
            return add_scaled(total, 1.0 if weight is None else weight, new), aux

        parts = _split(self.rows, self.number), self.weights
        try:
            like = jax.eval_shape(lambda part: term(*part)[0], jax.tree.map(lambda leaf: leaf[0], parts))
        except (TypeError, ValueError) as error:
            if not self.doubtful:
                raise
            raise ValueError(
                f"the loss fails on a microbatch, which gets {self.doubtful} whole: if these have a row for each of "
                f"the batch, name them in microbatched. {error}"
            ) from error
        total, aux = jax.lax.scan(step, _wide_zeros(like), parts)
        value, tree = cast_like(scale_by(1 / self.number, total), like)
        return value, aux, tree


def _flags(named: dict[str, Any], microbatched: Any, number: int) -> tuple[dict[str, PyTree], list[str]]:
    """What is split of each argument that is, a pytree of bools, a prefix of the argument; and which are doubtful."""
    if microbatched is None:
        return _the_batch(named, number)
    if isinstance(microbatched, str):
        microbatched = (microbatched,)
    flags = dict(microbatched if isinstance(microbatched, Mapping) else dict.fromkeys(microbatched, True))
    unknown = [name for name in flags if name not in named]
    if unknown:
        raise ValueError(f"microbatched names arguments that the loss does not get: {unknown}, of {list(named)}")
    return flags, []


def _the_batch(named: dict[str, Any], number: int) -> tuple[dict[str, PyTree], list[str]]:
    """The argument called batch, or else the only one that holds arrays."""
    sizes = {name: _sizes(name, argument) for name, argument in named.items()}
    arrays = [name for name in named if sizes[name]]
    if not arrays:
        raise ValueError(f"num_microbatches={number} but no argument of the loss is an array with a leading axis")
    name = "batch" if "batch" in arrays else arrays[0]
    if name != "batch" and len(arrays) > 1:
        raise ValueError(
            f"num_microbatches={number}: no argument that holds arrays is called batch, and any of {arrays} could be "
            f"split. Name those that are, as in microbatched={tuple(arrays)}; what it leaves out "
            "every microbatch sees whole"
        )
    # Parts of one row broadcast against what was not split: a wrong number without an error.
    rows = set(sizes[name].values())
    alike = [other for other in arrays if other != name and rows & set(sizes[other].values())]
    if rows == {number} and alike:
        raise ValueError(
            f"num_microbatches={number} makes parts of one row, and {alike} are as long as {name!r}: say which of them "
            f"are split, as in microbatched={(name, *alike)} or microbatched={name!r}"
        )
    return {name: True}, alike


def _sizes(path: str, argument: Any) -> dict[str, int]:
    """The length of the leading axis of every array that has one, by its path."""
    leaves = jax.tree.leaves_with_path(argument)
    return {path + jax.tree_util.keystr(p): np.shape(leaf)[0] for p, leaf in leaves if np.ndim(leaf)}


def _rows(
    named: dict[str, Any], flags: dict[str, PyTree], number: int
) -> tuple[list[Any], Callable[[Sequence[Any]], dict[str, Any]]]:
    """The arrays that have rows to be split, among what is flagged; scalars and typed random keys have none.

    Returns:
      ``(rows, rebuild)``: the arrays, and a function to the arguments by name again from such arrays.
    """

    def check(path: Any, flag: Any, group: Any) -> Any:
        name = path[0].key + jax.tree_util.keystr(path[1:])
        if not isinstance(flag, bool | np.bool_):
            raise TypeError(f"microbatched must hold names and bools, got {flag!r} at {name}")
        sizes = _sizes(name, group) if flag else {}
        if len(set(sizes.values())) > 1:
            raise ValueError(
                f"num_microbatches={number} splits the leading axis of every array in {name!r}, which must be the same "
                f"for all, got {sizes}. If some are to stay whole, or have an axis of their own, say which are split, "
                f"as in microbatched={{{path[0].key!r}: {{...: True, ...: False}}}}"
            )
        for size in sizes.values():
            if size % number:
                raise ValueError(
                    f"num_microbatches must divide the batch, got num_microbatches={number} and a batch of {size} in "
                    f"{name!r}"
                )
        return jax.tree.map(lambda leaf: flag and np.ndim(leaf) > 0, group)

    every = {name: flags.get(name, False) for name in named}
    try:
        jax.tree.structure(every).flatten_up_to(named)
    except ValueError as error:
        raise ValueError(f"microbatched must have the structure of the arguments, got {flags}: {error}") from None
    is_split = jax.tree.leaves(jax.tree.map_with_path(check, every, named))
    leaves, structure = jax.tree.flatten(named)
    if not any(is_split):
        raise ValueError(
            f"num_microbatches={number} but what is microbatched, {flags}, holds no array with a leading axis to split"
        )

    def rebuild(rows: Sequence[Any]) -> dict[str, Any]:
        remaining = iter(rows)
        return jax.tree.unflatten(
            structure, [next(remaining) if s else leaf for s, leaf in zip(is_split, leaves, strict=True)]
        )

    return [leaf for s, leaf in zip(is_split, leaves, strict=True) if s], rebuild


def _split(rows: Sequence[Any], number: int) -> list[jax.Array]:
    """Splits the leading axis of each array into (number, rest).

    Row r of the batch goes to microbatch r mod number, so that a batch sharded over devices stays where it is.
    """

    def split(leaf: Any) -> jax.Array:
        shape = jnp.shape(leaf)
        return jnp.swapaxes(jnp.reshape(leaf, (shape[0] // number, number, *shape[1:])), 0, 1)

    return [split(leaf) for leaf in rows]


def _weight(weigh: Callable[..., Any], parts: list[Any]) -> jax.Array:
    """The weight of a microbatch, NaN for a negative one."""
    check_takes("microbatch_weight", weigh, *(f"argument {i}" for i in range(len(parts))))
    got = weigh(*parts)
    try:
        weight = jnp.asarray(got)
    except (TypeError, ValueError):
        raise TypeError(f"microbatch_weight must give a real scalar, got {got!r}") from None
    if weight.shape or not jnp.issubdtype(weight.dtype, jnp.number) or jnp.iscomplexobj(weight):
        raise TypeError(f"microbatch_weight must give a real scalar, got shape {weight.shape} and {weight.dtype}")
    weight = weight.astype(wide_dtype(weight))
    return jnp.where(weight >= 0, weight, jnp.nan)


def _relative(weight: jax.Array, mean: jax.Array) -> jax.Array:
    """``weight / mean``; zero where nothing weighs anything."""
    return jnp.where(mean == 0, 0, weight / jnp.where(mean == 0, 1, mean))


def _wide_zeros(shapes: PyTree) -> PyTree:
    """Zeros in float32 or wider, with the sharding and the varying axes of the shapes."""

    def zeros(shape: Any) -> jax.Array:
        wide = jax.lax.full_like(shape, 0, wide_dtype(shape))
        return as_varying(tuple(varying_axes(shape)), wide)

    return jax.tree.map(zeros, shapes)
