"""What a step needs on each chip, as a table and in words."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.common.markdown import markdown
from experiments.common.store import write_atomically
from experiments.measure.cost.chips import Chip
from experiments.optim.methods import METHODS

Record = dict[str, Any]
_GB = 1e9


def table(records: Sequence[Record]) -> str:
    """One line for each variant; per chip, and for the whole slice images per second."""
    header = ["method", "perturbation", "parameters", "TFLOP", "kept GB", "temporary GB", "of HBM", "collectives"]
    header += ["GB sent", "compute ms", "HBM ms", "network ms", "step ms", "images/s", "compiled in"]
    return markdown(header, [_line(record) for record in records])


def _line(record: Record) -> list[str]:
    where = "on every chip" if record["fsdp"] == 1 else f"divided among {record.get('parts', record['fsdp'])}"
    memory = record["memory"]
    filled = f"{memory['peak'] / memory['available']:.0%}"
    line = [METHODS[record["method"]].label, record["perturbation"].replace("_", " "), where]
    if "flops" not in record:
        return [*line, "", "", "", f"does not fit: {filled}", *[""] * 8]
    found, seconds, step = record["collectives"], record["seconds"], record["step_seconds"]
    kinds = ", ".join(f"{one['calls']} {kind}" for kind, one in found.items())
    return [
        *line,
        f"{record['flops'] / 1e12:.3f}",
        f"{memory['kept'] / _GB:.2f}",
        f"{memory['temporary'] / _GB:.2f}",
        filled if record["fits"] else f"does not fit: {filled}",
        kinds or "none",
        f"{sum(one['wire_bytes'] for one in found.values()) / _GB:.2f}",
        *(f"{1e3 * seconds[name]:.2f}" for name in ("compute", "memory", "network")),
        f"{1e3 * step['overlapped']:.2f} to {1e3 * step['in_turn']:.2f}",
        f"{record['batch_size'] / step['in_turn']:.0f} to {record['batch_size'] / step['overlapped']:.0f}",
        f"{record['compile_seconds']:.0f} s",
    ]


def conclusion(results: Record) -> str:
    """Which variant fills the memory of a chip most."""
    fill = {id(one): one["memory"]["peak"] / one["memory"]["available"] for one in results["records"]}
    fullest = max(results["records"], key=lambda one: fill[id(one)])
    return (
        f"{results['config']} fits {results['topology']} in all {len(fill)} ways; {METHODS[fullest['method']].label} "
        f"needs the most memory, {fill[id(fullest)]:.0%} of a chip's"
    )


def write_markdown(results: Record, chip: Chip, path: Path) -> Path:
    """The table, and what it rests on."""
    text = [
        f"# {results['config']} on {results['topology']}",
        "",
        f"The trainer's step, compiled by the TPU's compiler without a TPU: {results['batch_size']} images over "
        f"{results['chips']} chips, {results['model']}.",
        "",
        table(results["records"]),
        "",
        "Per chip. TFLOP: matrix products and convolutions of one step. Kept: arguments and results, which share "
        "memory. Sent: on rings. Step: predicted, not measured; from perfect overlap of the three to none, "
        f"at the peak rates of the chip: {chip.assumptions()}. Real steps take longer: no program reaches the peak, "
        "and small collectives pay latency.",
        "",
        f"- command: `{results['command']}`",
        f"- {', '.join(f'{name} {version}' for name, version in results['made_with'].items())}",
        "",
    ]
    write_atomically(path, "\n".join(text))
    return path
