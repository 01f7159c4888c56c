"""Arrays that are divided among the devices of a mesh inside shard_map: sums and largest entries over all parts."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

Apart = frozenset[Any] | None
"""The mesh axes over which devices are apart, each with a vector of its own: replicas with their own gradients, the
members of an ensemble. Over the others that the type of an array varies over, the devices hold parts of one vector.
None is all axes, as where nothing is divided."""


def sum_over_shards(numbers: Sequence[jax.Array], apart: Apart) -> jax.Array:
    """The sum of one number of each leaf, and of these over the devices that the leaf is divided among."""
    return _over_shards(jnp.sum, jax.lax.psum, numbers, apart)


def max_over_shards(numbers: Sequence[jax.Array], apart: Apart) -> jax.Array:
    """The largest of them, likewise."""
    return _over_shards(jnp.max, jax.lax.pmax, numbers, apart)


def _over_shards(
    reduce: Callable[..., jax.Array], collective: Callable[..., jax.Array], numbers: Sequence[jax.Array], apart: Apart
) -> jax.Array:
    """One collective for all leaves that are divided over the same axes."""
    groups: dict[frozenset[Any], list[jax.Array]] = {}
    for number in numbers:
        divided = frozenset() if apart is None else varying_axes(number) - apart
        groups.setdefault(divided, []).append(number)
    found = [reduce(jnp.stack(group)) for group in groups.values()]
    found = [
        collective(one, tuple(sorted(axes, key=str))) if axes else one for axes, one in zip(groups, found, strict=True)
    ]
    return found[0] if len(found) == 1 else reduce(jnp.stack(found))


def varying_axes(x: Any) -> frozenset[Any]:
    """The mesh axes over which the type of an array (or of a shape) says that it varies."""
    kind = x if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x)
    manual = getattr(kind, "manual_axis_type", None)
    return frozenset(manual.varying if manual is not None else getattr(kind, "vma", None) or ())
