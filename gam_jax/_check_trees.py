"""Checks of pytrees: of parameters, and of what must be like them. Errors print the offending leaf and its path."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from gam_jax._checks import check_coefficient
from gam_jax._types import PyTree


def check_like_params(name: str, tree: PyTree, params: PyTree) -> None:
    """Raises unless the pytree has the structure of the parameters."""
    expected, got = jax.tree.structure(params), jax.tree.structure(tree)
    if got != expected:
        shown = repr(tree) if jax.tree_util.all_leaves([tree]) else got
        raise ValueError(f"{name} must have the structure of the parameters, {expected}, got {shown}")


def check_params(params: PyTree, updates: PyTree) -> None:
    """Raises unless the parameters are a pytree of real floating arrays, and the updates one of the same shapes."""
    if params is None:
        raise ValueError(
            "the loss is evaluated at the parameters: call update(grads, state, params, ...), got params=None"
        )
    nodes = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
    if any(isinstance(node, optax.MaskedNode) for node in nodes):
        raise ValueError(
            "got parameters masked by optax.masked or optax.partition, with which the loss cannot be evaluated: put "
            "this transformation outside, and use its perturb_mask"
        )
    check_floating("parameters", "params", params, "close over what is not trained")
    if updates is params:
        return
    check_like_params("updates", updates, params)
    check_floating("updates", "updates", updates, "they are the gradient of the parameters")
    for (path, leaf), param in zip(jax.tree.leaves_with_path(updates), jax.tree.leaves(params), strict=True):
        if np.shape(leaf) != np.shape(param):
            raise ValueError(
                f"updates must have the shapes of the parameters, got {np.shape(leaf)} for {np.shape(param)} at "
                f"updates{jax.tree_util.keystr(path)}"
            )


def check_floating(what: str, name: str, tree: PyTree, advice: str) -> None:
    """Raises unless all leaves are real floating-point arrays, or floats."""
    for path, leaf in jax.tree.leaves_with_path(tree):
        dtype = getattr(leaf, "dtype", None)
        if not (isinstance(leaf, float) if dtype is None else jnp.issubdtype(dtype, jnp.floating)):
            known = dtype is not None and jnp.issubdtype(dtype, jnp.number)
            got = repr(leaf) if dtype is None else f"dtype {jnp.result_type(leaf) if known else dtype}"
            raise TypeError(
                f"{what} must be real floating-point arrays, got {got} at {name}{jax.tree_util.keystr(path)}: {advice}"
            )


def check_first_like(name: str, value: Any, make: Any, params: PyTree) -> None:
    """Raises unless a state or a memory has the fields and shapes of the first one, which ``make`` makes.

    1. ``make`` is jitted, once: ``jax.eval_shape`` of a function leaves something in JAX's caches on every call.
    """
    first = make.eval_shape(params)
    expected, got = (jax.tree.structure(tuple(s) if isinstance(s, tuple) else s) for s in (first, value))
    if got != expected:
        shown = repr(value) if jax.tree_util.all_leaves([value]) else got
        raise TypeError(f"{name} must be like the first one of the same options, {expected}, got {shown}")
    for (path, leaf), wanted in zip(jax.tree.leaves_with_path(value), jax.tree.leaves(first), strict=True):
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic) or leaf.shape != wanted.shape:
            where = f"{name}{jax.tree_util.keystr(path)}"
            raise ValueError(f"{where} must have the shape {wanted.shape}, as the first one had, got {leaf!r}")


def check_radii(name: str, value: Any) -> None:
    """Raises unless the value is a coefficient, or a pytree of coefficients."""
    if jax.tree_util.all_leaves([value]):
        return check_coefficient(name, value)
    if callable(value):
        return  # a model, whose leaves are the radii, or a schedule with leaves of its own
    paths = jax.tree.leaves_with_path(value)
    if not paths:
        raise TypeError(f"{name} must be a number, a schedule or a pytree of these, got {name}={value!r}")
    for path, leaf in paths:
        check_coefficient(f"{name}{jax.tree_util.keystr(path)}", leaf)


def is_prefix(prefix: PyTree, tree: PyTree) -> bool:
    """Whether the tree has the structure of the prefix, down to the prefix's leaves."""
    try:
        jax.tree.map(lambda _, part: part, prefix, tree)
    except (ValueError, TypeError):
        return False
    return True


def check_arrays(name: str, tree: PyTree) -> None:
    """Raises unless the pytree holds real numbers or arrays of them, known now."""
    if tree is None:
        raise TypeError(f"{name} must be a pytree of arrays, got {name}=None")
    for path, leaf in jax.tree.leaves_with_path(tree):
        if isinstance(leaf, Tracer):
            raise TypeError(f"{name} must be known now: this cannot be called inside jit, grad or vmap, got {leaf}")
        dtype = getattr(leaf, "dtype", type(leaf) if isinstance(leaf, int | float | complex) else None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.number):
            where = f"{name}{jax.tree_util.keystr(path)}"
            raise TypeError(f"{name} must be a pytree of arrays of numbers, got {where}={leaf!r}")


def _finite(leaves: list[Any]) -> list[jax.Array]:
    return [jnp.isfinite(leaf).all() for leaf in leaves]


def check_finite(name: str, tree: PyTree) -> None:
    """Raises unless all entries are finite."""
    leaves = jax.tree.leaves_with_path(tree)
    for (path, leaf), finite in zip(leaves, _finite([leaf for _, leaf in leaves]), strict=True):
        if not finite:
            raise ValueError(f"{name} must be finite, got {name}{jax.tree_util.keystr(path)}={leaf!r}")
