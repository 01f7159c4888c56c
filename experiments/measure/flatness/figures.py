"""Tables and pictures of how flat measured checkpoints are, several runs together: R0, R1, spectra, local minima."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.common.markdown import markdown
from experiments.common.plotting import save, style
from experiments.measure.flatness.landscape_figures import draw_landscape, landscape_table
from experiments.measure.flatness.looks import looks
from experiments.measure.flatness.measure import Result
from gam_jax.flatness import _plots

_KINDS = {"R0": "zeroth_order_flatness", "R1": "first_order_flatness"}


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


def draw_flatness(results: Sequence[Result], folder: Path) -> list[Path]:
    """All pictures of ``flatness``."""
    with style():
        return [
            _flatness(results, folder / "flatness.png"),
            _top_eigenvalues(results, folder / "top_eigenvalues.png"),
            _spectral_density(results, folder / "spectral_density.png"),
            _local_minima(results, folder / "local_minima.png"),
        ]


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


TABLES = {"flatness": flatness_tables, "landscape": landscape_table}
DRAW = {"flatness": draw_flatness, "landscape": draw_landscape}
"""Numbers and pictures of each kind of measurements."""
