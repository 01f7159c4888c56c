"""The benchmark for its readers: a table in Markdown and a picture of time beside arithmetic."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from experiments.common.markdown import markdown
from experiments.common.plotting import save, style
from experiments.common.store import write_atomically
from experiments.measure.cost.benchmark import Record
from experiments.measure.cost.timing import Ratio, ratio

_LIBRARIES = {"jax": "", "torch": "PyTorch: ", "torch.compile": "torch.compile: "}
_COLORS = {"jax": "#d55e00", "torch": "#0072b2", "torch.compile": "#56b4e9"}


class Row(NamedTuple):
    """What one case costs, as multiples of SGD's step in the same library.

    Attributes:
      name: of the case.
      interval: it acts on every so many-th step.
      times: by phase, and "mean" over an interval; empty without timing.
      flops: by phase, and "mean".
      memory: temporary memory; None where it is not known.
      state_bytes: kept between steps beyond what SGD keeps.
      compile: time to compile.
    """

    library: str
    name: str
    interval: int
    times: dict[str, Ratio]
    flops: dict[str, float]
    memory: float | None
    state_bytes: int | None
    compile: float | None


def rows(records: Sequence[Record], network: str) -> list[Row]:
    """One for each case of a network and each of its intervals."""
    found = [record for record in records if record["network"] == network]
    bases = {library: next((r for r in found if r["library"] == library), None) for library in _LIBRARIES}
    return [_row(record, bases[record["library"]], k) for record in found for k in record["intervals"]]


def _row(record: Record, base: Any, interval: int) -> Row:
    phases = ("acting", "skipped") if interval > 1 else ("acting",)
    share = {"acting": 1 / interval, "skipped": 1 - 1 / interval}
    flops = {phase: record["flops"][phase] / base["flops"]["acting"] for phase in phases}
    seconds = {phase: record["seconds"][phase] for phase in phases if record["seconds"]}
    times = {phase: ratio(found, base["seconds"]["acting"]) for phase, found in seconds.items()}
    if seconds:
        mean = np.stack([share[phase] * np.asarray(found) for phase, found in seconds.items()])
        times["mean"] = ratio(mean.sum(0), base["seconds"]["acting"])
    compiled = "compile_seconds" in record
    return Row(
        library=record["library"],
        name=record["case"],
        interval=interval,
        times=times,
        flops={**flops, "mean": sum(share[phase] * found for phase, found in flops.items())},
        memory=record["temporary_bytes"] / base["temporary_bytes"] if compiled else None,
        state_bytes=record["state_bytes"] - base["state_bytes"] if compiled else None,
        compile=record["compile_seconds"] / base["compile_seconds"] if compiled else None,
    )


def table(results: Record, network: str) -> str:
    """All cases of a network."""
    header = ["method", "interval", "time, acting", "time, skipped", "time, mean", "FLOPs, acting", "FLOPs, mean"]
    lines = [
        [
            _LIBRARIES[row.library] + row.name,
            str(row.interval),
            *(_spread(row.times.get(phase)) for phase in ("acting", "skipped", "mean")),
            f"{row.flops['acting']:.2f}",
            f"{row.flops['mean']:.2f}",
            "" if row.memory is None else f"{row.memory:.2f}",
            "" if row.state_bytes is None else str(row.state_bytes),
            "" if row.compile is None else f"{row.compile:.1f}",
        ]
        for row in rows(results["records"], network)
    ]
    return markdown([*header, "temporary memory", "state, bytes", "compile time"], lines)


def step_table(results: Sequence[Record]) -> str:
    """The steps on which a method acts; the networks of several benchmarks side by side."""
    records = [record for result in results for record in result["records"]]
    networks = list(dict.fromkeys(record["network"] for record in records))
    header, lines = ["step"], {}
    for place, network in enumerate(networks):
        header += [f"{network}: time", "FLOPs", "memory"]
        for row in _every_step(rows(records, network)):
            line = lines.setdefault(_LIBRARIES[row.library] + row.name, [""] * 3 * len(networks))
            memory = "" if row.memory is None else f"{row.memory:.2f}"
            line[3 * place : 3 * place + 3] = _spread(row.times.get("acting")), f"{row.flops['acting']:.2f}", memory
    return markdown(header, [[name, *cells] for name, cells in lines.items()])


def _spread(found: Ratio | None) -> str:
    return "" if found is None else f"{found.median:.2f} ({found.low:.2f} to {found.high:.2f})"


def write_markdown(results: Record, folder: Path) -> Path:
    """The tables, and how they came about."""
    networks = list(dict.fromkeys(record["network"] for record in results["records"]))
    versions = ", ".join(f"{name} {version}" for name, version in results["made_with"].items())
    text = [
        "# What a training step costs",
        "",
        "Multiples of the cost of an SGD step of the same library. Time: median of the ratios within each round, with "
        "quartiles. FLOPs: of matrix products and convolutions in the compiled program (in that for the CPU where a "
        "GPU's libraries hide them; of torch.compile those of PyTorch without). State: kept between steps "
        "beyond SGD's. With an interval there are two programs, as in the trainer; memory and compilation are those of "
        "the steps on which the method acts.",
        "",
    ]
    for network in networks:
        base = base_sentence(results, network)
        text += [f"## {network}", "", base, "", table(results, network), ""]
    text += [
        f"- command: `{results['command']}`",
        f"- {results['started']}, {results['hardware']}, load average {results['load_average']:.1f} at the start",
        f"- {versions}",
        "",
    ]
    path = folder / "benchmark.md"
    write_atomically(path, "\n".join(text))
    return path


def base_sentence(results: Record, network: str) -> str:
    """One sentence on the SGD step that everything is relative to."""
    said = []
    for record in (r for r in results["records"] if r["network"] == network and r["case"] == "SGD"):
        seconds = sorted(record["seconds"].get("acting", []))
        time = f"{1e3 * seconds[len(seconds) // 2]:.1f} ms, " if seconds else ""
        memory = f", {record['temporary_bytes'] / 1e6:.1f} MB" if "temporary_bytes" in record else ""
        compiled = f", compiled in {record['compile_seconds']:.1f} s" if "compile_seconds" in record else ""
        said.append(f"{record['library']} {time}{record['flops']['acting'] / 1e9:.2f} GFLOP{memory}{compiled}")
    return "SGD's step: " + "; ".join(said) + "."


def conclusion(results: Record, network: str) -> str:
    """What the step of exact GAM costs, or that of the dearest case where it was not measured."""
    found = [row for row in _every_step(rows(results["records"], network)) if row.library == "jax"]
    row = next((row for row in found if row.name == "GAM"), max(found, key=lambda row: row.flops["acting"]))
    time = f"{row.times['acting'].median:.1f} times SGD's time and " if row.times else ""
    return f"{network}: a step of {row.name} takes {time}{row.flops['acting']:.1f} times SGD's FLOPs"


def draw(results: Record, folder: Path) -> Path:
    """A step's time and FLOPs relative to SGD's, a line for each case that acts on every step; a panel per network."""
    networks = list(dict.fromkeys(record["network"] for record in results["records"]))
    panels = {name: [row for row in rows(results["records"], name) if row.times] for name in networks}
    panels = {name: _every_step(found) for name, found in panels.items()}
    height = 1.4 + 0.27 * max(map(len, panels.values()))
    with style():
        figure, axes = plt.subplots(1, len(networks), figsize=(8 * len(networks), height), squeeze=False)
        figure.set_layout_engine("constrained")
        for axis, (network, found) in zip(axes[0], panels.items(), strict=True):
            _panel(axis, found, network)
        return save(figure, folder / "benchmark.png")


def _every_step(found: Sequence[Row]) -> list[Row]:
    """One row for each case: that of its shortest interval."""
    shortest: dict[tuple[str, str], Row] = {}
    for row in found:
        shortest.setdefault((row.library, row.name), row)
    return list(shortest.values())


def _panel(axis: Axes, found: Sequence[Row], network: str) -> None:
    for place, row in enumerate(found):
        time, color = row.times["acting"], _COLORS[row.library]
        spread = [[time.median - time.low], [time.high - time.median]]
        axis.errorbar(time.median, place, xerr=spread, fmt="o", color=color, markersize=5, elinewidth=1)
        axis.plot(row.flops["acting"], place, marker="|", markersize=12, markeredgewidth=2, color="#333333")
    axis.set_yticks(range(len(found)), [_LIBRARIES[row.library] + row.name for row in found], fontsize=9)
    axis.invert_yaxis()
    axis.set_xscale("log")
    ticks = [tick for tick in (1, 2, 3, 4, 5, 6, 8, 10, 20, 40, 60) if tick < axis.get_xlim()[1]]
    axis.set_xticks(ticks, list(map(str, ticks)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set(xlabel="relative to SGD's step in the same library")
    axis.set_title(f"{network}: time (dots, with quartiles) and FLOPs (bars)", fontsize=11)
    axis.grid(axis="x", alpha=0.3)
