"""TPU chips: what they can do at best, and the slices that a program can be compiled for without having one."""

import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.experimental import topologies

from experiments.common.errors import UserError, require


class Chip(NamedTuple):
    """Peak rates of one chip, as its manufacturer states them.

    Attributes:
      flops: bfloat16 operations per second.
      memory_bytes: of its main memory (HBM), as far as programs may use it.
      memory_bandwidth: bytes per second between chip and main memory.
      network_bandwidth: bytes per second that the chip sends to its neighbours, over all links.
    """

    flops: float
    memory_bytes: float
    memory_bandwidth: float
    network_bandwidth: float

    def assumptions(self) -> str:
        """The rates, in words."""
        return (
            f"{self.flops / 1e12:.0f} TFLOP/s in bfloat16, {self.memory_bytes / 2**30:.2f} GiB of HBM at "
            f"{self.memory_bandwidth / 1e9:.0f} GB/s, {8 * self.network_bandwidth / 1e9:.0f} Gbit/s to its neighbours"
        )


CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1228e9, 300e9),
    "v5e": Chip(197e12, 15.75 * 2**30, 819e9, 200e9),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 600e9),
    "v6e": Chip(918e12, 31.25 * 2**30, 1638e9, 400e9),
}
"""By generation."""
_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
}
"""The generations as JAX calls devices of them."""
_COMPILER_ONLY = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
"""Keeps libtpu from looking for the machine of a TPU, and from claiming one."""


def peak_flops(device_kind: str) -> float | None:
    """Operations per second of a device of this kind at its peak, in bfloat16; None for one that is not listed."""
    generation = _KINDS.get(device_kind)
    return None if generation is None else CHIPS[generation].flops


def describe(topology: str) -> tuple[Sequence[Any], Chip]:
    """The devices of a slice, which need not exist, and what each can do.

    Args:
      topology: generation and shape, such as v5e:4x4.

    Raises:
      UserError: if there is no such slice, or the TPU's compiler is not installed.
    """
    generation, _, shape = topology.partition(":")
    require(
        generation in CHIPS and re.fullmatch(r"\d+(x\d+)+", shape) is not None,
        f"topology must be GENERATION:SHAPE, with a generation among {', '.join(CHIPS)}, as in v5e:4x4, "
        f"got {topology!r}",
    )
    for name, value in _COMPILER_ONLY.items():
        os.environ.setdefault(name, value)
    try:
        found = topologies.get_topology_desc(topology_name=topology, platform="tpu")
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise UserError(
            f"the TPU's compiler cannot describe {topology} ({error}): it is in the extra `tpu`, "
            "pip install '.[tpu]', and knows whole slices such as v5e:4x4 and v5e:16x16"
        ) from error
    return found.devices, CHIPS[generation]
