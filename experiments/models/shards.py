"""Parameters that are divided among devices (FSDP), gathered where they are used, inside shard_map."""

from collections.abc import Sequence
from typing import Any

import jax

AXES = ("data", "fsdp")
"""Of the mesh: examples and parameters are divided over both."""


def gathered(shards: Any, shapes: Sequence[tuple[int, ...]], dtype: Any = None) -> Any:
    """The whole arrays, where those that are given are shorter along one axis than their shapes say; else as they are.

    Their gradients come back divided: the transpose of gathering sums over devices and scatters what it sums. Inside
    a block under ``jax.checkpoint`` the whole arrays are gone after the block, and gathered anew when they are needed.

    Args:
      shards: a pytree of arrays.
      shapes: of its leaves, as on one device.
      dtype: the type in which matrices travel, there and back, if not their own.
    """

    def gather(shard: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        axes = [axis for axis, (own, whole) in enumerate(zip(shard.shape, shape, strict=True)) if own != whole]
        if not axes:
            return shard
        if dtype is not None and shard.ndim > 1:
            shard = shard.astype(dtype)
        for name in reversed(AXES):  # one after the other: a TPU scatters sums along one side of its torus at a time
            if jax.lax.axis_size(name) > 1:
                shard = jax.lax.all_gather(shard, name, axis=axes[0], tiled=True)
        return shard

    leaves, structure = jax.tree.flatten(shards)
    return structure.unflatten([gather(*each) for each in zip(leaves, shapes, strict=True)])
