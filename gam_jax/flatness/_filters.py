"""Which axes of a parameter number its filters, also where layers are stacked: known by names and shapes, or asked.

The bias of a layer tells how its kernel is stacked: a kernel [*stack, *inputs, *outputs] has a bias
[*stack, *outputs]. The scale of a normalisation layer is [*stack, features]. What lies in the same group of layers has
the same leading axes. Where this leaves a choice, or nothing, the caller has to say it.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gam_jax._types import PyTree

FilterAxes = Callable[[Any, Any], int | tuple[int, ...] | None]
"""``(path, leaf)`` -> the axes whose indices number the filters, or None for a leaf that does not move."""

_BIASES = ("bias", "b")
_VECTORS = frozenset({*_BIASES, "scale", "beta", "gamma", "offset"})
_NEVER_VECTORS = frozenset({"kernel", "w", "embedding"})
_Shape = tuple[int, ...]
_Path = tuple[str, ...]


def filter_axes(params: PyTree, filter_axis: int | FilterAxes) -> list[tuple[int, ...] | None]:
    """The axes that number filters, or None, for each leaf.

    Raises:
      TypeError: if ``filter_axis`` is neither an axis nor a function, or the function gives something else than axes.
      ValueError: for axes that a leaf does not have, and for a leaf whose axes cannot be known.
    """
    leaves = jax.tree.leaves_with_path(params)
    if callable(filter_axis):
        return [_checked(filter_axis(path, leaf), path, leaf) for path, leaf in leaves]
    if isinstance(filter_axis, bool) or not isinstance(filter_axis, int | np.integer):
        raise TypeError(f"filter_axis must be an axis or a function (path, leaf) -> axes, got {filter_axis=}")
    names = [_names(path) for path, _ in leaves]
    shapes = {name: np.shape(leaf) for name, (_, leaf) in zip(names, leaves, strict=True)}
    stacks = {name: _stack_of_vector(name, shapes, filter_axis) for name in shapes if _kind(name) in _VECTORS}
    found = []
    for name, (path, leaf) in zip(names, leaves, strict=True):
        if _kind(name) in _VECTORS or np.ndim(leaf) < 2:
            found.append(None)
            continue
        stack = _stack_of_matrix(name, shapes[name], stacks)
        if stack is None:
            raise ValueError(
                f"cannot know which axes of params{jax.tree_util.keystr(path)} of shape {np.shape(leaf)} number "
                "stacked layers and which filters, since no bias or scale beside it tells: give filter_axis=lambda "
                "path, leaf: ..., which returns these axes, as (0, -1), or None for a leaf that does not move; got "
                f"{filter_axis=}"
            )
        found.append(_checked(_axes(name, shapes, stack, int(filter_axis)), path, leaf, f"{filter_axis=}"))
    return found


def _checked(axes: Any, path: Any, leaf: Any, given: str = "") -> tuple[int, ...] | None:
    """The axes, counted from the front."""
    if axes is None:
        return None
    listed, rank = axes if isinstance(axes, tuple) else (axes,), np.ndim(leaf)
    got = f"got {given or f'filter_axis(path, leaf)={axes!r}'} for params{jax.tree_util.keystr(path)}"
    if any(isinstance(axis, bool) or not isinstance(axis, int | np.integer) for axis in listed):
        raise TypeError(f"filter_axis must give an axis, a tuple of axes or None, {got}")
    if any(not -rank <= axis < rank for axis in listed) or len({axis % rank for axis in listed}) < len(listed):
        raise ValueError(f"filter_axis must give different axes of each array, {got} of shape {np.shape(leaf)}")
    return tuple(int(axis) % rank for axis in listed)


def _names(path: Any) -> _Path:
    """The keys as text, without that of the value inside a variable of Flax NNX."""
    inside = len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value")
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in (path[:-1] if inside else path))


def _kind(name: _Path) -> str:
    """The last name, without a number behind it."""
    return re.sub(r"_?\d+$", "", name[-1]) if name else ""


def _stack_of_vector(name: _Path, shapes: dict[_Path, _Shape], filter_axis: int) -> _Shape | None:
    """The leading axes of a bias or scale that number stacked layers; None where its kernels leave a choice."""
    shape = shapes[name]
    if len(shape) < 2:
        return ()
    kernels = [
        other
        for path, other in shapes.items()
        if path[:-1] == name[:-1] and _kind(path) not in _VECTORS and len(other) > len(shape)
    ]
    if not kernels:
        return shape[:-1]
    fits = [k for k in range(len(shape)) if all(_fits(shape, kernel, k, filter_axis) for kernel in kernels)]
    return shape[: fits[0]] if len(fits) == 1 else None


def _fits(bias: _Shape, kernel: _Shape, stacked: int, filter_axis: int) -> bool:
    """Whether the bias may be that of the kernel if so many leading axes number layers."""
    own, outputs = kernel[stacked:], bias[stacked:]
    if len(outputs) > 1 and filter_axis != -1:  # several axes of outputs are a habit of Flax
        return False
    start = _first_output(len(own), len(outputs), filter_axis)
    return kernel[:stacked] == bias[:stacked] and own[start : start + len(outputs)] == outputs


def _first_output(rank: int, outputs: int, filter_axis: int) -> int:
    """Where the output axes begin: at ``filter_axis``, or so that they end there."""
    return filter_axis if filter_axis >= 0 else rank + filter_axis + 1 - outputs


def _stack_of_matrix(name: _Path, shape: _Shape, stacks: dict[_Path, _Shape | None]) -> _Shape | None:
    """The leading axes that number stacked layers, as the nearest biases and scales have them; None if unknown."""
    never_a_vector = _kind(name) in _NEVER_VECTORS
    if never_a_vector and len(shape) == 2:
        return ()
    module = max(len(name) - 1, 0)
    told, depth = set(), module
    for depth in range(module, -1, -1):
        told = {stack for vector, stack in stacks.items() if vector[:depth] == name[:depth]}
        if told:
            break
    rest = 2 if never_a_vector else 1
    possible = {s for s in told if s is None or (shape[: len(s)] == s and len(shape) >= len(s) + rest)}
    if len(shape) == 2 and (depth < module or not told):
        possible.add(())  # a matrix, as far as its own module tells
    return possible.pop() if len(possible) == 1 else None


def _axes(name: _Path, shapes: dict[_Path, _Shape], stack: _Shape, filter_axis: int) -> tuple[int, ...] | None:
    rank, stacked = len(shapes[name]) - len(stack), len(stack)
    if rank < 2:
        return None
    if _kind(name) == "embedding":
        return (*range(stacked), stacked)
    biases = [shapes[path] for path in shapes if path[:-1] == name[:-1] and _kind(path) in _BIASES]
    outputs = max((len(bias) - stacked for bias in biases), default=1)
    start = _first_output(rank, outputs, filter_axis)
    if not 0 <= start <= rank - outputs:
        return (len(shapes[name]),)  # an axis that it does not have
    return (*range(stacked), *range(stacked + start, stacked + start + outputs))
