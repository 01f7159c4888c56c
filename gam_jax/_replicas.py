"""Averages over a mesh axis inside shard_map and pmap."""

import functools
from typing import Any

import jax

from gam_jax._loss import Arguments, Loss
from gam_jax._shards import Apart, varying_axes
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


def axes_apart(loss: Loss, params: PyTree, arguments: Arguments, axis_name: Any) -> Apart:
    """The axes over which devices have losses of their own; over all others parameters that vary are divided.

    1. Types alone do not tell the shards of a model from the members of an ensemble; the loss does: devices that share
       one number share one model. Where no parameter varies nothing can be divided, and the loss is not looked at.

    Raises:
      ValueError: if ``axis_name`` names an axis that the parameters are divided over: their shards are no replicas.
    """
    paths = jax.tree.leaves_with_path(params)
    if not any(varying_axes(leaf) for _, leaf in paths):
        return None
    value, _ = jax.eval_shape(loss, params, arguments)
    apart = varying_axes(value)
    for path, leaf in paths:
        divided = [name for name in _names(axis_name) if name in varying_axes(leaf) - apart]
        if divided:
            raise ValueError(
                f"axis_name must name axes whose devices hold the same parameters, got axis_name={axis_name!r}, and "
                f"params{jax.tree_util.keystr(path)} is divided over {divided[0]!r}: leave out axes over which the "
                "loss is the same for all, as after jax.lax.pmean"
            )
    return apart | frozenset(_names(axis_name))


def known_equal(axis_name: Any, x: jax.Array) -> bool:
    """Whether the type of ``x`` guarantees that all replicas hold the same values (with no axis: they do)."""
    return all(_is_tracked(name) and name not in varying_axes(x) for name in _names(axis_name))


def _is_tracked(name: Any) -> bool:
    """Whether types say what varies over the axis: in shard_map, but not with check_vma=False, in pmap or vmap."""
    try:
        return name in varying_axes(jax.lax.axis_index(name))
    except NameError:
        raise ValueError(f"axis_name must be an axis of a shard_map or pmap around this call, got {name!r}") from None


def _names(axis_name: Any) -> tuple[Any, ...]:
    if axis_name is None:
        return ()
    return tuple(axis_name) if isinstance(axis_name, tuple | list) else (axis_name,)
