"""Which parameters of our networks are filters, and which do not move, in slices of the loss (Li et al. 2018)."""

from typing import Any

import jax


def filter_axes(path: Any, leaf: jax.Array) -> int | tuple[int, ...] | None:
    """The axes whose indices number filters, as :func:`gam_jax.flatness.filter_normalized_directions` asks for them.

    Raises:
      ValueError: for a parameter of another name than ours have.
    """
    *modules, name = (jax.tree_util.keystr((key,), simple=True) for key in path)
    match name:
        case "bias" | "scale":  # normalisation layers have these two only
            return None
        case "kernel" if modules[0] == "blocks" and leaf.ndim == 3:  # the layers of a ViT, stacked
            return 0, -1
        case "kernel" | "weight" | "relative_position":  # [..., in, out], [positions, heads]
            return -1
        case "class_token" | "positions":  # [1, positions, features]: as a row of an embedding
            return 1
    raise ValueError(f"no axes are known for params{jax.tree_util.keystr(path)}, got shape {leaf.shape}")
