"""Compiled algebra on vectors with the structure of the parameters, and vectors to start from."""

import jax
import jax.numpy as jnp

from gam_jax import _climb
from gam_jax._tree import add_scaled, global_norm, inner_product, normalize, scale_by, wide_dtype
from gam_jax._types import PyTree

shift = jax.jit(add_scaled)
"""``params + factor * offset``, formed in float32 or wider, in the dtypes of the parameters."""
scale = jax.jit(scale_by)
norm = jax.jit(global_norm)
inner = jax.jit(inner_product)
random_like = jax.jit(_climb.random_like, static_argnums=2)
"""Independent entries, in float32 or wider: standard normal, random signs, or uniform between -1 and 1."""


@jax.jit
def unit(tree: PyTree) -> PyTree:
    """``x / ||x||``; zero at zero."""
    return normalize(tree, 0.0)


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
