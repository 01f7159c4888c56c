"""Compiled algebra on vectors with the structure of the parameters, and vectors to start from."""

import functools

import jax
import jax.numpy as jnp

from gam_jax._tree import add_scaled, global_norm, inner_product, normalize, scale_by, wide_dtype
from gam_jax._types import PyTree

shift = jax.jit(add_scaled)
"""``params + factor * offset``, formed in float32 or wider, in the dtypes of the parameters."""
scale = jax.jit(scale_by)
norm = jax.jit(global_norm)
inner = jax.jit(inner_product)

_XI = 1e-30  # far below any gradient norm that float32 resolves, and enough to make 0/0 zero


@jax.jit
def unit(tree: PyTree) -> PyTree:
    """``x / ||x||``; zero at zero."""
    return normalize(tree, _XI)


@functools.partial(jax.jit, static_argnums=2)
def random_like(key: jax.Array, tree: PyTree, kind: str = "normal") -> PyTree:
    """Independent entries, in float32 or wider: standard normal, random signs, or uniform between -1 and 1."""
    leaves, structure = jax.tree.flatten(tree)
    uniform = functools.partial(jax.random.uniform, minval=-1.0, maxval=1.0)
    draw = {"normal": jax.random.normal, "signs": jax.random.rademacher, "uniform": uniform}[kind]
    keys = jax.random.split(key, len(leaves))
    dtypes = [wide_dtype(leaf) for leaf in leaves]
    return jax.tree.unflatten(
        structure, [draw(k, leaf.shape, t) for k, leaf, t in zip(keys, leaves, dtypes, strict=True)]
    )


@jax.jit
def unit_like(tree: PyTree, i: int) -> PyTree:
    """The i-th unit vector, in float32 or wider."""
    leaves, structure = jax.tree.flatten(tree)
    units = []
    for leaf in leaves:
        unit = (jnp.arange(leaf.size) == i).astype(wide_dtype(leaf))
        units.append(unit.reshape(leaf.shape))
        i = i - leaf.size
    return jax.tree.unflatten(structure, units)
