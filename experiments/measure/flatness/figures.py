"""Pictures of measured checkpoints, several runs together: spectra, flatness over rho, local minima, landscapes."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.common.markdown import markdown
from experiments.common.plotting import save, style
from experiments.measure.flatness.measure import Result
from experiments.optim.methods import METHODS
from gam_jax.flatness import _plots
from gam_jax.flatness._plots import Look

_KINDS = {"R0": "zeroth_order_flatness", "R1": "first_order_flatness"}


def looks(results: Sequence[Result]) -> list[Look]:
    """One colour per run: that of its method, where no two runs share it. Steps of one run differ by their line."""
    runs = [_run(result) for result in results]
    used = [result["checkpoint"]["config"]["optim"]["method"] for result in results]
    methods = dict(zip(runs, used, strict=True))
    distinct = len(set(methods.values())) == len(methods)
    cycle = itertools.cycle(_plots.COLORS)
    colors = {run: METHODS[method].color if distinct else next(cycle) for run, method in methods.items()}
    found = []
    for place, (run, result) in enumerate(zip(runs, results, strict=True)):
        averaging = result["checkpoint"]["config"]["averaging"]
        averaged = "" if averaging == "none" else f" + {averaging.upper()}"
        label = METHODS[methods[run]].label + averaged + ("" if distinct else f" ({run})")
        if runs.count(run) > 1:
            label += f", step {result['checkpoint']['step']}"
        line = ("-", "--", ":", "-.")[runs[:place].count(run) % 4]
        found.append(Look(label, colors[run], line))
    return found


def _run(result: Result) -> str:
    return result["checkpoint"]["name"].rpartition("-")[0]


def flatness_tables(results: Sequence[Result]) -> str:
    """The measured numbers, aligned for a terminal and valid Markdown at once."""
    return point_table(results) + "\n\n" + radius_table(results)


def point_table(results: Sequence[Result]) -> str:
    """A row for each run: what was measured at its parameters, and close to them."""
    header = ["run", "training loss", "training accuracy %", "test accuracy %", "gradient norm"]
    header += ["parameter norm", "top eigenvalue", "trace", "local minima"]
    rows = []
    for look, result in zip(looks(results), results, strict=True):
        measured = result["measured"]
        point, trace, turns = measured["point"], measured["trace"], measured["local_minima"]
        rows.append(
            [
                look.label,
                f"{point['loss']:.3f}",
                f"{100 * point['accuracy']:.1f}",
                f"{100 * point['test_accuracy']:.1f}",
                f"{point['gradient_norm']:.3f}",
                f"{point['parameter_norm']:.1f}",
                f"{measured['top_eigenvalues']['values'][0]:.2f}",
                f"{trace['value']:.1f} ± {trace['standard_error']:.1f}",
                f"{turns['mean_minima']:.2f} ± {turns['minima_standard_error']:.2f}",
            ]
        )
    return markdown(header, rows)


def radius_table(results: Sequence[Result]) -> str:
    """A row for each radius: R0 and R1 of every run."""
    columns = []
    for look, result in zip(looks(results), results, strict=True):
        for kind in _KINDS:
            columns.append([f"{kind} {look.label}", *(f"{m['value']:.4f}" for m in _curve(result, kind))])
    radii = [f"{m['rho']:g}" for m in _curve(results[0], "R0")]
    by_radius = list(zip(["ρ", *radii], *sorted(columns, key=lambda column: column[0][:2]), strict=True))
    return markdown(by_radius[0], by_radius[1:])


def landscape_table(results: Sequence[Result]) -> str:
    """How far the loss rises towards both ends of the one-dimensional slices: mean and standard error over them."""
    rows, x = [], np.zeros(1)
    for look, result in zip(looks(results), results, strict=True):
        x, losses = _slices(result)
        found = rises(result)
        error = found.std(ddof=1) / len(found) ** 0.5
        rows.append([look.label, f"{losses[0, len(x) // 2]:.3f}", f"{found.mean():.3f} ± {error:.3f}"])
    return markdown(["run", "training loss", f"rise at distance {x[-1]:g}"], rows)


def rises(result: Result) -> np.ndarray:
    """How far the loss rises from the middle of each one-dimensional slice to its ends, in the mean of both."""
    x, losses = _slices(result)
    return (losses[:, 0] + losses[:, -1]) / 2 - losses[:, len(x) // 2]


def draw_flatness(results: Sequence[Result], folder: Path) -> list[Path]:
    """All pictures of ``flatness``."""
    with style():
        return [
            _flatness(results, folder / "flatness.png"),
            _top_eigenvalues(results, folder / "top_eigenvalues.png"),
            _spectral_density(results, folder / "spectral_density.png"),
            _local_minima(results, folder / "local_minima.png"),
        ]


def draw_landscape(results: Sequence[Result], folder: Path) -> list[Path]:
    """All pictures of ``landscape``."""
    with style():
        return [_lines(results, folder / "lines.png"), _planes(results, folder / "planes.png")]


def _curve(result: Result, kind: str) -> list[Any]:
    """The measurements of R0 or R1, by radius."""
    found = [m for name, m in result["measured"].items() if name.startswith(_KINDS[kind])]
    return sorted(found, key=lambda m: m["rho"])


def _radii(result: Result, kind: str) -> _plots.Radii:
    found = _curve(result, kind)
    return _plots.Radii(*([m[name] for m in found] for name in ("rho", "value", "ends")))


def _flatness(results: Sequence[Result], path: Path) -> Path:
    zeroth, first = ([_radii(result, kind) for result in results] for kind in ("R0", "R1"))
    top = [result["measured"]["top_eigenvalues"]["values"][0] for result in results]
    return save(_plots.draw_radii(looks(results), zeroth, first, top), path)


def _top_eigenvalues(results: Sequence[Result], path: Path) -> Path:
    spectra = [result["measured"]["top_eigenvalues"]["values"] for result in results]
    traces = [result["measured"]["trace"] for result in results]
    errors = [(trace["value"], trace["standard_error"]) for trace in traces]
    return save(_plots.draw_eigenvalues(looks(results), spectra, errors), path)


def _spectral_density(results: Sequence[Result], path: Path) -> Path:
    found = [result["measured"]["density"] for result in results]
    nodes, weights = ([density[name] for density in found] for name in ("nodes", "weights"))
    return save(_plots.draw_density(looks(results), nodes, weights), path)


def _local_minima(results: Sequence[Result], path: Path) -> Path:
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8), sharey=True, layout="constrained")
    found = [result["measured"]["local_minima"] for result in results]
    most = max(2, *(max(m[kind]) for m in found for kind in ("minima", "maxima")))
    width = 0.8 / len(results)
    for axis, kind in zip(axes, ("minima", "maxima"), strict=True):
        for place, (look, m) in enumerate(zip(looks(results), found, strict=True)):
            at = np.arange(most + 1) + (place - (len(results) - 1) / 2) * width
            label = f"{look.label}: {m['mean_minima']:.2f} ± {m['minima_standard_error']:.2f} minima"
            axis.bar(at, np.bincount(m[kind], minlength=most + 1), width, color=look.color, label=label)
        axis.set_xticks(range(most + 1))
        axis.set_xlabel(f"local {kind} within 0.1 along a direction")
    axes[0].set_ylabel("number of random directions")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return save(figure, path)


def _lines(results: Sequence[Result], path: Path) -> Path:
    slices = [_slices(result) for result in results]
    return save(_plots.draw_lines(looks(results), slices[0][0], [losses for _, losses in slices]), path)


def _slices(result: Result) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates of the one-dimensional slices, and their losses, [slices, points]."""
    lines = [m for name, m in result["measured"].items() if name.startswith("line")]
    return np.array(lines[0]["x"]), np.array([line["values"] for line in lines], float)


def _planes(results: Sequence[Result], path: Path) -> Path:
    planes = [result["measured"]["plane"] for result in results]
    drawn: Any = [(plane["x"], plane["y"], plane["values"]) for plane in planes]
    return save(_plots.draw_planes(looks(results), drawn), path)


TABLES = {"flatness": flatness_tables, "landscape": landscape_table}
DRAW = {"flatness": draw_flatness, "landscape": draw_landscape}
"""Numbers and pictures of each kind of measurements."""
