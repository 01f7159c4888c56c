"""What a compiled program does in one call: arithmetic, memory traffic, communication. Counted from its HLO."""

import collections
import functools
import math
import re
from typing import NamedTuple

import numpy as np

from experiments.common.hlo import Array, Executed, Instruction, Program

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_FREE = frozenset(
    """
    after-all async-done async-update bitcast call conditional constant copy-done get-tuple-element iota
    optimization-barrier parameter partition-id replica-id tuple while
    """.split()
)
"""Instructions that move nothing, or whose movement is counted elsewhere."""


class Collective(NamedTuple):
    """The collectives of one kind in one call of a program.

    Attributes:
      calls: how many run.
      bytes: of the arrays that they make (reduce-scatter: that they take), summed.
      wire_bytes: that each device sends when they run on rings.
    """

    calls: int = 0
    bytes: int = 0
    wire_bytes: float = 0.0


def matmul_flops(program: Program, executed: Executed) -> float:
    """Floating-point operations of one matrix product or convolution; 0 for other instructions."""
    instruction = executed.instruction
    if instruction.opcode == "dot":
        lhs = program.operand(executed, 0)
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        dims = [int(d) for d in contracted.group(1).split(",") if d] if contracted else []
        products = math.prod(instruction.results[0].shape) * math.prod(lhs.shape[d] for d in dims)
        return 2.0 * products * executed.times
    if instruction.opcode == "convolution":
        lhs, rhs = program.operand(executed, 0), program.operand(executed, 1)
        return 2.0 * _products(lhs, rhs, instruction.results[0], instruction.attributes) * executed.times
    return 0.0


def memory_bytes(program: Program, executed: Executed) -> float:
    """Bytes that an instruction reads from and writes to the main memory, as far as types can tell."""
    instruction, computation = executed.instruction, program.computations[executed.computation]
    if executed.fused or instruction.opcode in _FREE or instruction.opcode.endswith("-done"):
        return 0.0
    read = sum(
        min(_read(program, instruction, i), sum(map(_main_bytes, computation[name].results)))
        for i, name in enumerate(instruction.operands)
        if name in computation
    )
    return float(read + _written(program, computation, instruction)) * executed.times


def collectives(program: Program, devices: int) -> dict[str, Collective]:
    """The collectives by kind.

    Args:
      program: of one of the devices.
      devices: how many take part, where an instruction does not say.
    """
    found: dict[str, Collective] = collections.defaultdict(Collective)
    seen = set()
    for executed in program.executed(matmul_flops):
        instruction = executed.instruction
        kind = instruction.opcode.removesuffix("-start")
        if kind not in COLLECTIVES or instruction.opcode.endswith("-done"):
            continue
        if executed.fused:  # a TPU runs one behind several fusions, each of which names it
            channel = re.search(r"channel_id=\d+", instruction.attributes)
            one = (kind, executed.times, channel and channel[0], *[array[:2] for array in instruction.results])
            if one in seen:
                continue
            seen.add(one)
        size = group_size(instruction.attributes, devices)
        inputs = [program.operand(executed, i) for i in range(len(instruction.operands))]
        # a -start makes a tuple of its inputs and results (and of what it needs to wait); sizes follow from the inputs
        taken = sum(array.bytes for array in inputs)
        moved = taken * size if kind == "all-gather" else taken
        share = {"all-reduce": 2 * (size - 1) / size, "collective-permute": 1.0}.get(kind, (size - 1) / size)
        before = found[kind]
        found[kind] = Collective(
            before.calls + executed.times,
            before.bytes + moved * executed.times,
            before.wire_bytes + moved * share * executed.times,
        )
    return dict(found)


def group_size(attributes: str, devices: int) -> int:
    """How many devices take part in one group of a collective: three notations are in use."""
    axes = re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", attributes)
    if axes:
        lengths = {name: int(length) for name, length in re.findall(r"'([^']+)'=(\d+)", axes.group(1))}
        return math.prod(lengths[name] for name in re.findall(r"'([^']+)'", axes.group(2)))
    tiled = re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes)
    if tiled:
        return int(tiled.group(1))
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    return len(listed.group(1).split(",")) if listed else devices


def _main_bytes(array: Array) -> int:
    return 0 if array.memory else array.bytes


def _read(program: Program, user: Instruction, index: int) -> float:
    """Bytes that an instruction reads of one of its operands; infinity stands for all of it."""
    if user.opcode in ("dynamic-slice", "slice", "gather"):
        return user.results[0].bytes if index == 0 else 0
    if user.opcode == "dynamic-update-slice":
        return 0 if index == 0 else math.inf
    if user.opcode == "fusion":
        inside = program.computations[user.called("calls")[0]]
        names = [i.name for i in inside.values() if i.opcode == "parameter" and i.attributes == str(index)]
        return sum(_read_inside(program, inside, name) for name in names)
    return math.inf


def _read_inside(program: Program, computation: dict[str, Instruction], name: str) -> float:
    """Bytes that the users of an array inside a fusion read of it."""
    found = 0.0
    for user in computation.values():
        for index, operand in enumerate(user.operands):
            if operand == name:
                is_view = user.opcode in ("bitcast", "tuple", "get-tuple-element")
                found += _read_inside(program, computation, user.name) if is_view else _read(program, user, index)
    return found


def _written(program: Program, computation: dict[str, Instruction], made: Instruction) -> float:
    """Bytes that an instruction writes; one that changes a slice of an array in place writes the slice."""
    if made.opcode == "dynamic-update-slice":
        return computation[made.operands[1]].results[0].bytes
    if made.opcode == "bitcast":
        return _written(program, computation, computation[made.operands[0]])
    if made.opcode == "tuple":
        return sum(_written(program, computation, computation[name]) for name in made.operands)
    if made.opcode == "fusion":
        inside = program.computations[made.called("calls")[0]]
        slices = _written(program, inside, list(inside.values())[-1])
        return min(slices, sum(map(_main_bytes, made.results)))
    return sum(map(_main_bytes, made.results))


def _products(lhs: Array, rhs: Array, result: Array, attributes: str) -> int:
    """Multiplications in a convolution; positions in the padding, or between dilated elements, do not count."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    assert labels, attributes
    inputs, kernel, outputs = labels.groups()
    groups = re.search(r"batch_group_count=(\d+)", attributes)
    products = result.shape[outputs.index("b")] * result.shape[outputs.index("f")] * rhs.shape[kernel.index("i")]
    if groups:  # the kernel's gradient of a grouped convolution: the batch is what is summed over
        products = math.prod((result.shape[outputs.index("b")], result.shape[outputs.index("f")]))
        products *= rhs.shape[kernel.index("i")]
    window = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(part.split("=") for part in window.group(1).split()) if window else {}
    spatial = sorted(c for c in outputs if c.isdigit())
    for i, label in enumerate(spatial):
        numbers = {name: value.split("x")[i] for name, value in fields.items()}
        low = int(numbers.get("pad", "0_0").split("_")[0])
        products *= _pairs(
            lhs.shape[inputs.index(label)],
            rhs.shape[kernel.index(label)],
            result.shape[outputs.index(label)],
            *(int(numbers.get(name, 1)) for name in ("stride", "lhs_dilate", "rhs_dilate")),
            low,
        )
    return products


@functools.cache
def _pairs(length: int, kernel: int, out: int, stride: int, lhs_dilate: int, rhs_dilate: int, low: int) -> int:
    """Pairs of an output and a kernel element that meet an element of the input, along one axis."""
    place = np.arange(out)[:, None] * stride + np.arange(kernel)[None] * rhs_dilate - low
    return int(np.sum((place >= 0) & (place <= (length - 1) * lhs_dilate) & (place % lhs_dilate == 0)))
