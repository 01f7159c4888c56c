"""What the backward passes of a network's block compute anew, rather than keep.

A block is under ``jax.checkpoint`` twice, once for each order of differentiation: with once alone, the second order
keeps what the first computes anew. It has to be around the block, inside the scan over layers: around the whole loss it
saves nothing, since all layers are then computed anew before the first of them is needed.

Exact GAM (``gam_value_and_grad``) on the benchmark's scanned ViT (65 tokens of 64 features, 12 layers, 16 images), by
the program that XLA compiles for the CPU; SGD with "none" takes 4.19 GFLOP and 142 MB:

| remat         | kept of a block                             | GAM, GFLOP | GAM, MB | SGD, GFLOP | SGD, MB |
| ------------- | ------------------------------------------- | ---------- | ------- | ---------- | ------- |
| none          | everything                                  | 25.1       | 1126    | 4.19       | 142     |
| dots          | matrix products                             | 25.1       | 359     | 4.19       | 51      |
| dots_no_batch | those without a batch (not in attention)    | 28.0       | 243     | 4.40       | 38      |
| all           | its input                                   | 38.3       | 57      | 5.19       | 16      |

The wider the features are, the less attention's products are of the whole: 0.8 % of a ViT-B/32's.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

from experiments.models.config import Remat

_POLICIES: dict[Remat, Any] = {
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "all": jax.checkpoint_policies.nothing_saveable,
}


def rematerialised(block: Callable[..., Any], remat: Remat, *, prevent_cse: bool = True) -> Callable[..., Any]:
    """The block as a function of arrays, with its backward passes computing anew what ``remat`` says.

    Args:
      block: the function.
      remat: a step of the ladder; "auto" is none here, since what it stands for depends on the method.
      prevent_cse: needed unless the block is scanned over.
    """
    if remat in ("auto", "none"):
        return block
    once = functools.partial(jax.checkpoint, policy=_POLICIES[remat], prevent_cse=prevent_cse)
    return once(once(block))


def resolve(remat: Remat, *, scanned: bool, second_order: bool, divided: bool) -> Remat:
    """What "auto" stands for; itself where nothing is computed anew.

    Args:
      remat: as the config has it.
      scanned: whether the network scans over its layers.
      second_order: whether the method has Hessian-vector products.
      divided: whether parameters are divided among devices, so that those of a block are gathered inside it.
    """
    pays = scanned and (second_order or divided)
    return "dots_no_batch" if remat == "auto" and pays else remat
