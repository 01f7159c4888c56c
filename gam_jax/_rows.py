"""Which arrays among the arguments of the loss have the batch's rows, and the arguments of a part of these."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gam_jax._loss import Arguments, Loss
from gam_jax._types import PyTree


@dataclasses.dataclass(frozen=True)
class Rows:
    """The arrays that have the batch's rows along their leading axis.

    Attributes:
      arrays: these.
      rebuild: the arguments of the loss from these arrays, or from a part of their rows.
      named: the arguments that hold them, in their order, from the same.
      doubtful: arguments that stay whole because nobody said otherwise, though they are as long as the batch.
    """

    arrays: Sequence[Any]
    rebuild: Callable[[Sequence[Any]], Arguments]
    named: Callable[[Sequence[Any]], list[Any]]
    doubtful: Sequence[str] = ()

    @classmethod
    def find(
        cls, loss: Loss, arguments: Arguments, microbatched: Any, option: str, number: int, *, even: bool = True
    ) -> "Rows":
        """The rows of which an option called ``option`` makes ``number`` parts, all of one size if ``even``.

        Raises:
          ValueError, TypeError: if it is not clear which arrays these are, or they cannot be divided so.
        """
        args, kwargs = arguments
        names = loss.names(args)
        named = {**dict(zip(names, args, strict=True)), **kwargs}
        flags, doubtful = _flags(named, microbatched, f"{option}={number}", number)
        arrays, rebuild = _rows(named, flags, option, number, even)

        def rebuild_arguments(rows: Sequence[Any]) -> Arguments:
            part = rebuild(rows)
            return tuple(part[name] for name in names), {name: part[name] for name in kwargs}

        return cls(arrays, rebuild_arguments, lambda rows: [rebuild(rows)[name] for name in flags], doubtful)

    def split(self, number: int) -> list[jax.Array]:
        """The arrays with their leading axis split into (number, rest).

        Row r of the batch goes to part r mod number, so that a batch sharded over devices stays where it is.
        """

        def split(leaf: Any) -> jax.Array:
            shape = jnp.shape(leaf)
            return jnp.swapaxes(jnp.reshape(leaf, (shape[0] // number, number, *shape[1:])), 0, 1)

        return [split(leaf) for leaf in self.arrays]

    def every(self, number: int) -> list[jax.Array]:
        """Rows 0, n, 2n, ... of each array."""
        if all(jnp.shape(leaf)[0] % number == 0 for leaf in self.arrays):
            return [part[0] for part in self.split(number)]
        return [jnp.asarray(leaf)[::number] for leaf in self.arrays]


def _flags(named: dict[str, Any], microbatched: Any, option: str, number: int) -> tuple[dict[str, PyTree], list[str]]:
    """What is split of each argument that is, a pytree of bools, a prefix of the argument; and which are doubtful."""
    if microbatched is None:
        return _the_batch(named, option, number)
    if isinstance(microbatched, str):
        microbatched = (microbatched,)
    flags = dict(microbatched if isinstance(microbatched, Mapping) else dict.fromkeys(microbatched, True))
    unknown = [name for name in flags if name not in named]
    if unknown:
        raise ValueError(f"microbatched names arguments that the loss does not get: {unknown}, of {list(named)}")
    return flags, []


def _the_batch(named: dict[str, Any], option: str, number: int) -> tuple[dict[str, PyTree], list[str]]:
    """The argument called batch, or else the only one that holds arrays."""
    sizes = {name: _sizes(name, argument) for name, argument in named.items()}
    arrays = [name for name in named if sizes[name]]
    if not arrays:
        raise ValueError(f"{option} but no argument of the loss is an array with a leading axis")
    name = "batch" if "batch" in arrays else arrays[0]
    if name != "batch" and len(arrays) > 1:
        raise ValueError(
            f"{option}: no argument that holds arrays is called batch, and any of {arrays} could be "
            f"split. Name those that are, as in microbatched={tuple(arrays)}; what it leaves out "
            "every microbatch sees whole"
        )
    # Parts of one row broadcast against what was not split: a wrong number without an error.
    rows = set(sizes[name].values())
    alike = [other for other in arrays if other != name and rows & set(sizes[other].values())]
    if rows == {number} and alike:
        raise ValueError(
            f"{option} makes parts of one row, and {alike} are as long as {name!r}: say which of them "
            f"are split, as in microbatched={(name, *alike)} or microbatched={name!r}"
        )
    return {name: True}, alike


def _sizes(path: str, argument: Any) -> dict[str, int]:
    """The length of the leading axis of every array that has one, by its path."""
    leaves = jax.tree.leaves_with_path(argument)
    return {path + jax.tree_util.keystr(p): np.shape(leaf)[0] for p, leaf in leaves if np.ndim(leaf)}


def _rows(
    named: dict[str, Any], flags: dict[str, PyTree], option: str, number: int, even: bool
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
                f"{option}={number} splits the leading axis of every array in {name!r}, which must be the same "
                f"for all, got {sizes}. If some are to stay whole, or have an axis of their own, say which are split, "
                f"as in microbatched={{{path[0].key!r}: {{...: True, ...: False}}}}"
            )
        for size in sizes.values():
            if size % number if even else number > size:
                wanted = "divide" if even else "be at most"
                raise ValueError(
                    f"{option} must {wanted} the batch, got {option}={number} and a batch of {size} in {name!r}"
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
            f"{option}={number} but what is microbatched, {flags}, holds no array with a leading axis to split"
        )

    def rebuild(rows: Sequence[Any]) -> dict[str, Any]:
        remaining = iter(rows)
        return jax.tree.unflatten(
            structure, [next(remaining) if s else leaf for s, leaf in zip(is_split, leaves, strict=True)]
        )

    return [leaf for s, leaf in zip(is_split, leaves, strict=True) if s], rebuild
