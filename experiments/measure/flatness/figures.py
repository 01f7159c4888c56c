"""Tables and pictures of how flat measured checkpoints are, several runs together: R0, R1, spectra, local minima."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import NullLocator

from experiments.common.markdown import markdown
from experiments.common.plotting import save, style
from experiments.measure.flatness.landscape_figures import draw_landscape, landscape_table
from experiments.measure.flatness.looks import looks
from experiments.measure.flatness.measure import Result

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


def _flatness(results: Sequence[Result], path: Path) -> Path:
    """R0 and R1 over the radius; pale dots are where the other starts of the ascent ended."""
    figure, axes = plt.subplots(1, 2, figsize=(9.0, 4.2), layout="constrained")
    for axis, kind, factor in zip(axes, _KINDS, (0.5, 1.0), strict=True):
        for look, result in zip(looks(results), results, strict=True):
            found = _curve(result, kind)
            rho = np.array([m["rho"] for m in found])
            quadratic = factor * result["measured"]["top_eigenvalues"]["values"][0] * rho**2
            axis.plot(rho, quadratic, ":", linewidth=1, color=look.color)
            for m in found:
                axis.plot([m["rho"]] * len(m["ends"]), m["ends"], "_", color=look.color, alpha=0.5, markersize=7)
            values = [m["value"] for m in found]
            axis.plot(rho, values, look.line, marker="o", markersize=5, color=look.color, label=look.label)
        axis.set(xscale="log", yscale="log", xlabel="radius ρ")
        radii = [m["rho"] for m in _curve(results[0], kind)]
        axis.set_xticks(radii, [f"{r:g}" for r in radii])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("R0: largest increase of the loss")
    axes[1].set_ylabel("R1: ρ times the largest gradient norm")
    axes[0].legend(frameon=False)
    figure.suptitle(
        "Training loss within a ball of radius ρ: the largest of many ascents, whose ends are the dashes\n"
        "dotted: what the top Hessian eigenvalue gives at a minimum, ρ²λ/2 and ρ²λ",
        fontsize=10,
    )
    return save(figure, path)


def _top_eigenvalues(results: Sequence[Result], path: Path) -> Path:
    figure, (counts, ranks) = plt.subplots(1, 2, figsize=(9.5, 4.2), layout="constrained")
    spectra = [np.array(result["measured"]["top_eigenvalues"]["values"], float) for result in results]
    positive = [spectrum[spectrum > 0] for spectrum in spectra]
    everything = np.concatenate(positive)
    bins = np.geomspace(everything.min() * 0.999, everything.max() * 1.001, 26)
    for look, result, spectrum in zip(looks(results), results, positive, strict=True):
        trace = result["measured"]["trace"]
        label = f"{look.label}, trace {trace['value']:.1f} ± {trace['standard_error']:.1f}"
        counts.hist(spectrum, bins, histtype="stepfilled", color=look.color, alpha=0.15)
        counts.hist(spectrum, bins, histtype="step", color=look.color, linestyle=look.line, linewidth=1.6, label=label)
        ranks.plot(1 + np.arange(len(spectrum)), spectrum, look.line, color=look.color, marker=".", label=look.label)
    counts.set(xscale="log", xlabel="eigenvalue", ylabel=f"number among the top {len(spectra[0])}")
    ranks.set(yscale="log", xlabel="rank", ylabel="eigenvalue")
    ranks.grid(alpha=0.3)
    figure.legend(*counts.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return save(figure, path)


def _spectral_density(results: Sequence[Result], path: Path) -> Path:
    """One row per run on common axes, smoothed with a common bandwidth."""
    size = (7.5, 1.0 + 1.25 * len(results))
    figure, axes = plt.subplots(len(results), 1, figsize=size, sharex=True, sharey=True, squeeze=False)
    figure.set_layout_engine("constrained")
    nodes = [np.array(result["measured"]["density"]["nodes"], float) for result in results]
    least, most = np.nanmin([np.nanmin(n) for n in nodes]), np.nanmax([np.nanmax(n) for n in nodes])
    bandwidth = (most - least) / 500
    grid = np.linspace(least - 5 * bandwidth, most + 5 * bandwidth, 4000)
    for axis, look, result, places in zip(axes[:, 0], looks(results), results, nodes, strict=True):
        weights = np.array(result["measured"]["density"]["weights"])
        bumps = np.exp(-(((grid[:, None, None] - np.nan_to_num(places)) / bandwidth) ** 2) / 2)
        density = (bumps * weights).sum((1, 2)) / (len(places) * bandwidth * (2 * np.pi) ** 0.5)
        axis.fill_between(grid, density, 1e-9, color=look.color, alpha=0.25, linewidth=0)
        axis.plot(grid, density, look.line, color=look.color, linewidth=1.2)
        axis.annotate(
            look.label, (0.99, 0.95), xycoords="axes fraction", ha="right", va="top", color=look.color, weight="bold"
        )
        axis.set(yscale="log", ylim=(1e-5, 1e3))
        axis.grid(alpha=0.3)
    axes[-1, 0].set_xlabel("Hessian eigenvalue")
    figure.supylabel("spectral density", fontsize=11)
    return save(figure, path)


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
