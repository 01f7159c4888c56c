"""Averages over a mesh axis inside shard_map and pmap."""

import functools
from typing import Any

import jax

from gam_jax._tree import cast_like, scale_by, zero_if_weightless
from gam_jax._types import PyTree

# Before JAX 0.8.1 its name is pvary.
_vary = functools.partial(jax.lax.pcast, to="varying") if hasattr(jax.lax, "pcast") else vars(jax.lax)["pvary"]


def as_varying(axis_name: Any, tree: PyTree) -> PyTree:
    """Marks arrays as differing between the replicas of ``axis_name``, where types tell the difference.

    1. Inside shard_map, the gradient with respect to parameters that do not vary over an axis already contains a
       psum over it. With varying parameters it is each replica's own, to be averaged when and where we say.
    """
    names = tuple(name for name in _names(axis_name) if _is_tracked(name))

    def cast(x: jax.Array) -> jax.Array:
        missing = tuple(name for name in names if name not in varying_axes(x))
        return _vary(x, missing) if missing else x

    return jax.tree.map(cast, tree)


def mean_over(axis_name: Any, tree: PyTree, share: jax.Array | None = None) -> PyTree:
    """Averages over the axis what differs between replicas; what is known to be equal costs nothing.

    ``share`` is the weight of this replica, with mean one over the axis; None is one.
    """
    leaves, structure = jax.tree.flatten(tree)
    differs = [i for i, leaf in enumerate(leaves) if not known_equal(axis_name, leaf)]
    if differs:
        own = [leaves[i] for i in differs]
        if share is not None:
            own = cast_like(scale_by(share, zero_if_weightless(share, own)), own)
        means = jax.lax.pmean(as_varying(axis_name, own), _names(axis_name))
        for i, mean in zip(differs, means, strict=True):
            leaves[i] = mean
    return jax.tree.unflatten(structure, leaves)


def known_equal(axis_name: Any, x: jax.Array) -> bool:
    """Whether the type of ``x`` guarantees that all replicas hold the same values (with no axis: they do)."""
    return all(_is_tracked(name) and name not in varying_axes(x) for name in _names(axis_name))


def _is_tracked(name: Any) -> bool:
    """Whether types say what varies over the axis: in shard_map, but not with check_vma=False, in pmap or vmap."""
    try:
        return name in varying_axes(jax.lax.axis_index(name))
    except NameError:
        raise ValueError(f"axis_name must be an axis of a shard_map or pmap around this call, got {name!r}") from None


def varying_axes(x: Any) -> frozenset[Any]:
    """The mesh axes over which the type of an array (or of a shape) says that it varies."""
    kind = x if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x)
    manual = getattr(kind, "manual_axis_type", None)
    return frozenset(manual.varying if manual is not None else getattr(kind, "vma", None) or ())


def _names(axis_name: Any) -> tuple[Any, ...]:
    if axis_name is None:
        return ()
    return tuple(axis_name) if isinstance(axis_name, tuple | list) else (axis_name,)
