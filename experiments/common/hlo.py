"""Reads the text of a compiled program (HLO): which instructions run, and how often, loops and branches included.

XLA's own cost analysis counts the body of a loop once, however often it runs. Here a body counts as often as it runs.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_CALLS = ("body", "branch_computations", "true_computation", "false_computation", "calls", "to_apply")
_NAME = re.compile(r"%([\w.\-]+)")


class Array(NamedTuple):
    """The type of an array, and where it lies.

    Attributes:
      dtype: as HLO writes it, such as bf16.
      shape: its lengths.
      memory: the number of its memory space; 0 is the device's main memory.
    """

    dtype: str
    shape: tuple[int, ...]
    memory: int

    @property
    def bytes(self) -> int:
        digits = re.sub(r"^[a-z]+(\d+).*", r"\1", self.dtype)
        bits = _BITS.get(self.dtype, int(digits) if digits.isdigit() else 0)
        return math.ceil(math.prod(self.shape) * bits / 8)


class Instruction(NamedTuple):
    """One line of a program.

    Attributes:
      name: unique in its program.
      opcode: such as all-reduce.
      results: the arrays that it makes; more than one for a tuple.
      operands: names of the instructions that it takes.
      attributes: the rest of the line, as text; of constants the value, of parameters the number.
    """

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str

    def called(self, attribute: str) -> list[str]:
        """Names of the computations in an attribute."""
        found = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%[\w.\-]+)", self.attributes)
        return _NAME.findall(found.group(1)) if found else []


class Executed(NamedTuple):
    """An instruction and how often it runs in one call of the program.

    Attributes:
      instruction: what runs.
      times: how often.
      computation: the name of the computation that it stands in.
      fused: whether it is a part of a fusion, whose intermediate results do not reach the memory.
    """

    instruction: Instruction
    times: int
    computation: str
    fused: bool


Weight = Callable[["Program", Executed], float]
"""What an executed instruction costs."""


@dataclasses.dataclass(frozen=True)
class Program:
    """The computations of a program by name, each a list of instructions by name, and which one is called first."""

    computations: dict[str, dict[str, Instruction]]
    entry: str

    def executed(self, weight: Weight, choose: Callable = max) -> Iterator[Executed]:
        """Everything that runs.

        Args:
          weight: decides what a branch costs.
          choose: which branch of a conditional runs: the one of the largest cost (``max``) or of the smallest.
        """
        return self._executed(self.entry, 1, False, weight, choose)

    def total(self, weight: Weight, choose: Callable = max) -> float:
        """The cost of one call."""
        return sum(weight(self, executed) for executed in self.executed(weight, choose))

    def looped(self, opcode: str) -> int:
        """How many instructions of a kind stand in a loop or a branch, or in what is called there."""

        def count(name: str, inside: bool) -> int:
            found = 0
            for instruction in self.computations[name].values():
                found += inside and instruction.opcode == opcode
                nested = inside or instruction.opcode in ("while", "conditional")
                found += sum(count(called, nested) for part in _CALLS for called in instruction.called(part))
            return found

        return count(self.entry, False)

    def operand(self, executed: Executed, index: int) -> Array:
        """The type of an operand that is one array."""
        return self.computations[executed.computation][executed.instruction.operands[index]].results[0]

    def _executed(self, name: str, times: int, fused: bool, weight: Weight, choose: Callable) -> Iterator[Executed]:
        for instruction in self.computations[name].values():
            yield Executed(instruction, times, name, fused)
            inner = functools.partial(self._executed, weight=weight, choose=choose)
            match instruction.opcode:
                case "while":
                    trips = times * self._trips(instruction)
                    for part in ("condition", "body"):
                        yield from inner(instruction.called(part)[0], trips, fused)
                case "conditional":
                    names = [
                        branch
                        for attribute in ("branch_computations", "true_computation", "false_computation")
                        for branch in instruction.called(attribute)
                    ]
                    branches = [list(inner(branch, times, fused)) for branch in names]
                    yield from choose(branches, key=lambda branch: sum(weight(self, executed) for executed in branch))
                case "fusion":
                    yield from inner(instruction.called("calls")[0], times, True)
                case "call" | "async-start":
                    for attribute in ("to_apply", "calls"):
                        for called in instruction.called(attribute):
                            yield from inner(called, times, fused)

    def _trips(self, loop: Instruction) -> int:
        """How often a loop runs: as XLA notes it, or the number up to which its condition counts."""
        noted = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if noted:
            return int(noted.group(1))
        condition = self.computations[loop.called("condition")[0]].values()
        bounds = [
            re.match(r"(\d+)$", i.attributes) for i in condition if i.opcode == "constant" and i.results[0].shape == ()
        ]
        limits = [int(bound.group(1)) for bound in bounds if bound]
        if len(limits) != 1:
            raise ValueError(f"cannot tell how often the loop {loop.name} runs")
        return limits[0]


def parse(text: str) -> Program:
    """The program in the text of an optimised HLO module."""
    computations, entry, current = {}, "", {}
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
            current = computations[head.group(2)] = {}
            entry = head.group(2) if head.group(1) else entry
        elif line.startswith("  ") and " = " in line:
            instruction = _instruction(line)
            current[instruction.name] = instruction
    return Program(computations, entry)


def _instruction(line: str) -> Instruction:
    name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    end = _closing(rest, 0) if rest.startswith("(") else re.match(r"\S+", rest).end()  # pyright: ignore[reportOptionalMemberAccess]
    kind, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    close = _closing(rest, len(opcode))
    inside = rest[len(opcode) + 1 : close - 1]
    attributes = inside if opcode in ("constant", "parameter") else rest[close:].removeprefix(", ")
    results = tuple(_array(*found) for found in _ARRAY.findall(kind))
    return Instruction(name.removeprefix("%"), opcode, results, tuple(_NAME.findall(inside)), attributes)


def _array(dtype: str, shape: str, layout: str) -> Array:
    lengths = tuple(int(n.lstrip("<=")) for n in shape.split(",") if n)
    space = re.search(r"S\((\d+)\)", layout)
    return Array(dtype, lengths, int(space.group(1)) if space else 0)


def _closing(text: str, start: int) -> int:
    """The place after the bracket that closes the one at ``start``."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place + 1
    raise ValueError(f"unbalanced brackets in {text[:80]!r}")
