"""Clipping by the norm of all parameters together, on shards of them as well."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gam_jax._shards import sum_over_shards


def clip(bound: Any) -> optax.GradientTransformation:
    """Shortens what comes in to this norm, where it is longer.

    1. :func:`optax.clip_by_global_norm` would take the norm of the shards of a device for that of the parameters.

    Args:
      bound: the norm, above 0; may be traced.
    """

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        wide = [leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) for leaf in jax.tree.leaves(updates)]
        norm = jnp.sqrt(sum_over_shards([jnp.sum(jnp.square(leaf)) for leaf in wide], frozenset()))
        scale = jnp.where(norm <= bound, 1.0, bound / norm)  # NaN where the norm is NaN
        return jax.tree.map(lambda leaf: (scale * leaf).astype(leaf.dtype), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
