"""Parameters that are divided among devices (FSDP), gathered where they are used, inside shard_map."""

from collections.abc import Sequence
from typing import Any

import jax

AXES = ("data", "fsdp")
"""Of the mesh: examples lie along both, parameters are divided along the second."""


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
        shard = jax.lax.pcast(shard, "data", to="varying")  # so that copies are summed when they are small again
        return jax.lax.all_gather(shard, "fsdp", axis=axes[0], tiled=True)

    leaves, structure = jax.tree.flatten(shards)
    return structure.unflatten([gather(*each) for each in zip(leaves, shapes, strict=True)])
