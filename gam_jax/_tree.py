"""Algebra on pytrees: sums, norms, inner products, and all that divides by a norm.

Everything here accumulates in float32, or wider where a leaf is wider, whatever the dtype of the leaves.
Norms are scaled by the largest entry, so that gradients of size 1e30 or 1e-30 neither overflow nor vanish.
Where leaves are divided among devices, ``apart`` says which axes do not divide them (:data:`gam_jax._shards.Apart`).
"""

from typing import Any

import jax
import jax.numpy as jnp

from gam_jax._shards import Apart, max_over_shards, sum_over_shards
from gam_jax._types import PyTree


def wide_dtype(*leaves: Any) -> Any:
    """float64 if one of the arrays (or shapes) is that, else float32."""
    return jnp.float64 if any(leaf.dtype == jnp.float64 for leaf in leaves) else jnp.float32


def widen(leaf: jax.Array) -> jax.Array:
    """The array in float32, or in float64 if it is that."""
    return leaf.astype(wide_dtype(leaf))


def global_norm(tree: PyTree, apart: Apart = None) -> jax.Array:
    """The Euclidean norm over all leaves, scaled so that squares neither overflow nor underflow.

    1. Its derivatives at zero, of every order, are zero, not NaN. The scale cancels, so that it has none.
    """
    dtype = wide_dtype(*jax.tree.leaves(tree))
    leaves = [widen(leaf) for leaf in jax.tree.leaves(tree) if leaf.size]
    if not leaves:
        return jnp.zeros((), dtype)
    largest = jax.lax.stop_gradient([jnp.max(jnp.abs(leaf)).astype(dtype) for leaf in leaves])
    largest = max_over_shards(largest, apart)
    scale = jnp.where(largest > 0, largest, 1)
    squares = [jnp.sum(jnp.square(leaf / scale.astype(leaf.dtype))).astype(dtype) for leaf in leaves]
    total = sum_over_shards(squares, apart)
    return jnp.where(total == 0, 0, scale * jnp.sqrt(jnp.where(total == 0, 1, total)))


def all_finite(tree: PyTree, apart: Apart = None) -> jax.Array:
    """Whether there is neither inf nor NaN in any leaf."""
    bad = [jnp.any(~jnp.isfinite(leaf)).astype(jnp.int32) for leaf in jax.tree.leaves(tree)]
    return sum_over_shards([jnp.zeros((), jnp.int32), *bad], apart) == 0


def inner_product(a: PyTree, b: PyTree, apart: Apart = None) -> jax.Array:
    """The Euclidean inner product over all leaves."""
    dtype = wide_dtype(*jax.tree.leaves((a, b)))
    products = jax.tree.map(lambda x, y: jnp.sum(x.astype(dtype) * y.astype(dtype)), a, b)
    return sum_over_shards([jnp.zeros((), dtype), *jax.tree.leaves(products)], apart)


def normalize(tree: PyTree, eps: float | jax.Array, apart: Apart = None) -> PyTree:
    """``x / (||x|| + eps)`` in float32 or wider; zero at zero, and so are its derivatives there."""
    norm = global_norm(tree, apart)
    divisor = jnp.where(norm == 0, 1, norm) + jnp.asarray(eps, norm.dtype)
    return scale_by(jnp.where(norm == 0, 0, 1 / divisor), tree)


def scale_by(factor: PyTree, tree: PyTree) -> PyTree:
    """``factor * x``, in float32 or wider, with one factor or a pytree of them, a prefix of ``tree``."""

    def scale(factor: Any, part: PyTree) -> PyTree:
        return jax.tree.map(lambda x: jnp.asarray(factor, widen(x).dtype) * widen(x), part)

    return jax.tree.map(scale, factor, tree)


def add_scaled(tree: PyTree, factor: PyTree, other: PyTree) -> PyTree:
    """``x + factor * y``, computed in float32 or wider and cast back to the dtype of ``x``; factors as above."""

    def add(factor: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        dtype = wide_dtype(x, y)
        return (x.astype(dtype) + jnp.asarray(factor, dtype) * y.astype(dtype)).astype(x.dtype)

    return jax.tree.map(lambda f, xs, ys: jax.tree.map(lambda x, y: add(f, x, y), xs, ys), factor, tree, other)


def zero_if_weightless(weight: jax.Array | None, tree: PyTree) -> PyTree:
    """The tree, or zeros where its weight is zero, whatever it holds there (0 * NaN is NaN); no weight is one."""
    return tree if weight is None else jax.tree.map(lambda x: jnp.where(weight == 0, jnp.zeros((), x.dtype), x), tree)


def subtract(a: PyTree, b: PyTree) -> PyTree:
    """``a - b`` in float32 or wider."""
    return jax.tree.map(lambda x, y: widen(x) - widen(y), a, b)


def relative_difference(tree: PyTree, to: PyTree, apart: Apart = None) -> jax.Array:
    """``|tree - to| / |to|``; 0 where both are zero, and infinite where only ``to`` is."""
    difference, norm = global_norm(subtract(tree, to), apart), global_norm(to, apart)
    return jnp.where(difference == 0, 0, difference / norm)


def cast_like(tree: PyTree, like: PyTree) -> PyTree:
    """The tree with the dtypes of ``like``."""
    return jax.tree.map(lambda x, y: x.astype(y.dtype), tree, like)


def cosine(a: PyTree, b: PyTree, apart: Apart = None) -> jax.Array:
    """The cosine of the angle between two trees; 0 where one of them is zero."""
    return inner_product(_unit(a, apart), _unit(b, apart), apart)


def perpendicular(tree: PyTree, to: PyTree, apart: Apart = None) -> PyTree:
    """The component of ``tree`` orthogonal to ``to``; all of it where ``to`` is zero."""
    unit = _unit(to, apart)
    return add_scaled(scale_by(1.0, tree), -inner_product(tree, unit, apart), unit)


def _unit(tree: PyTree, apart: Apart) -> PyTree:
    return normalize(tree, 0.0, apart)
