"""What the steps of a grid need on each chip: a line for each, and a table with the formula of the predicted time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.common.markdown import markdown
from experiments.common.store import write_atomically
from experiments.measure.cost.chips import CHIPS
from experiments.optim.methods import METHODS, label

Record = dict[str, Any]
_HEADER = ("network", "slice", "images a chip", "method", "parameters", "TFLOP", "memory GB", "of HBM", "traffic GB")
_HEADER += ("sent GB", "collectives", "compute ms", "HBM ms", "network ms", "step ms", "MFU", "compiled in")
_EXPLAINED = """\
The trainer's step, compiled by the TPU's compiler without a TPU; everything is per chip.

- TFLOP: F, matrix products and convolutions of the compiled step, those that are computed again included.
- memory: arguments and results, which share memory, and temporary memory; of HBM: its share of a chip's.
- traffic: B, what the instructions of the compiled step read from and write to HBM; loops count as often as they run.
- sent: W, what a chip sends in all collectives on rings: 2 (n - 1) / n of the bytes of an all-reduce among n chips,
  (n - 1) / n of those of a gather, a scatter or an all-to-all, all of a permute.
- step: predicted, not measured: from max(F / P, B / M, W / N), the three overlapping perfectly, to their sum, nothing
  overlapping, at the chip's peak rates P (FLOP/s), M (HBM) and N (to its neighbours). Real steps take longer: no
  program reaches the peaks, small collectives pay latency, and time on hosts and for input is not in it.
- MFU: F / P divided by the time of the step, at worst and at best: an upper bound of what a run can reach.
- compiled in: tracing and XLA, on the machine that made the record; it may have been busy.
"""


def line(record: Record) -> str:
    """One cell, as it is done."""
    where = f"{record['network']}, {record['topology']}, {record['images']} images a chip, fsdp={record['fsdp']}"
    memory = record["memory"]["peak"] / record["memory"]["available"]
    said = f"{where}, {label(record['method'], record['base'])}: "
    if "flops" not in record:
        return said + f"does not fit: {memory:.0%} of HBM"
    low, high = _step(record)
    return said + (
        f"{record['flops'] / 1e12:.2f} TFLOP, {memory:.0%} of HBM, step {1e3 * low:.1f} to {1e3 * high:.1f} ms, "
        f"compiled in {record['trace_seconds'] + record['compile_seconds']:.0f} s"
    )


def table(records: Sequence[Record]) -> str:
    """A line for each record, in the order of the cells."""
    order = {method: place for place, method in enumerate(METHODS)}
    networks = list(dict.fromkeys(record["network"] for record in records))

    def place(record: Record) -> tuple[Any, ...]:
        chips = (record["topology"].split(":")[0], record["chips"])
        return networks.index(record["network"]), chips, record["images"], record["fsdp"], order[record["method"]]

    return markdown(list(_HEADER), [_row(record) for record in sorted(records, key=place)])


def _row(record: Record) -> list[str]:
    memory = record["memory"]
    row = [record["network"], record["topology"], str(record["images"]), label(record["method"], record["base"])]
    row.append("on every chip" if record["fsdp"] == 1 else f"divided among {record['parts']}")
    size, filled = f"{memory['peak'] / 1e9:.2f}", f"{memory['peak'] / memory['available']:.0%}"
    if "flops" not in record:
        return [*row, "", size, f"does not fit: {filled}", *[""] * 9]
    low, high = _step(record)
    found, compute = record["collectives"], record["seconds"]["compute"]
    return [
        *row,
        f"{record['flops'] / 1e12:.2f}",
        size,
        filled if record["fits"] else f"does not fit: {filled}",
        f"{record['memory_traffic_bytes'] / 1e9:.1f}",
        f"{sum(one['wire_bytes'] for one in found.values()) / 1e9:.2f}",
        ", ".join(f"{one['calls']} {kind}" for kind, one in found.items()) or "none",
        *(f"{1e3 * record['seconds'][name]:.1f}" for name in ("compute", "memory", "network")),
        f"{1e3 * low:.1f} to {1e3 * high:.1f}",
        f"{compute / high:.0%} to {compute / low:.0%}",
        f"{record['trace_seconds']:.0f} + {record['compile_seconds']:.0f} s",
    ]


def _step(record: Record) -> tuple[float, float]:
    return record["step_seconds"]["overlapped"], record["step_seconds"]["in_turn"]


def write_markdown(config: str, records: Sequence[Record], path: Path) -> Path:
    """The table, and what it rests on."""
    generations = sorted({record["topology"].split(":")[0] for record in records})
    commands = dict.fromkeys(record["made_with"]["command"] for record in records)
    versions = dict.fromkeys(
        ", ".join(f"{name} {said}" for name, said in record["made_with"].items() if name != "command")
        for record in records
    )
    text = [
        f"# {config} on TPU slices",
        "",
        table(records),
        "",
        _EXPLAINED,
        *(f"- {generation}: {CHIPS[generation].assumptions()}" for generation in generations),
        *(f"- command: `{command}`" for command in commands),
        *(f"- {made_with}" for made_with in versions),
        "",
    ]
    write_atomically(path, "\n".join(text))
    return path
