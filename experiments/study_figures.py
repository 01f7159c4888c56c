"""Pictures of a comparison beyond its result: accuracy over label noise and cost, flatness over radius and time."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import NullLocator

from experiments.config import CompareConfig
from experiments.picture import color, save, style
from experiments.recipes import RECIPES, label
from experiments.store import Record
from experiments.summary import Estimate, Row, values


def _labels(noise: float) -> str:
    return f"{noise:.0%} wrong labels" if noise else "clean labels"


def draw_noise(config: CompareConfig, summary: Sequence[Row]) -> Path:
    """Test accuracy over the share of wrong labels, with standard errors (Fig. C.2 of the paper)."""
    with style():
        figure, axis = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
        for method in config.methods:
            rows = sorted((row for row in summary if row.method == method), key=lambda row: row.noise)
            x, accuracy = [100 * row.noise for row in rows], [row.test_accuracy for row in rows]
            name = label(method, config.base)
            means, errors = zip(*accuracy, strict=True)
            axis.errorbar(x, means, errors, marker="o", markersize=4, capsize=3, color=color(method), label=name)
        axis.set(xlabel="training labels that are wrong, %", ylabel="test accuracy, %")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
        return save(figure, config.workdir / "noise.png")


def draw_frontier(config: CompareConfig, summary: Sequence[Row]) -> Path:
    """What each method gains over the first one, against what its step costs in gradients; a panel per noise level."""
    with style():
        size = (11.5 * len(config.noise), 6)
        figure, axes = plt.subplots(1, len(config.noise), figsize=size, squeeze=False, layout="constrained")
        base = label(config.methods[0], config.base)
        for noise, axis in zip(config.noise, axes[0], strict=True):
            rows = sorted((row for row in summary if row.noise == noise), key=lambda row: -row.gain.estimate.mean)
            for number, row in enumerate(rows, 1):
                (mean, error), is_recipe = row.gain.estimate, row.method in RECIPES
                mark = {"marker": "o" if is_recipe else "D", "markersize": 5 if is_recipe else 8, "capsize": 2}
                name = f"{number}  {label(row.method, config.base)}"
                axis.errorbar(row.flop_ratio, mean, error, color=color(row.method), label=name, **mark)
                axis.annotate(str(number), (row.flop_ratio, mean), (6, 3), textcoords="offset points", fontsize=9)
            axis.set(xscale="log", xlabel=f"cost of a step (FLOPs, {base} = 1)", title=_labels(noise))
            axis.set(ylabel=f"gain in test accuracy over {base}, percentage points")
            axis.set_xticks([1, 1.5, 2, 3, 4, 5, 6, 7], ["1", "1.5", "2", "3", "4", "5", "6", "7"])
            axis.xaxis.set_minor_locator(NullLocator())
            axis.grid(alpha=0.3)
            axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=9)
        return save(figure, config.workdir / "frontier.png")


def ratios(config: CompareConfig) -> dict[str, float]:
    """The methods that take GAM's steps in place of some of the base optimizer's, and in place of how many."""
    found = {"plain": 0.0, "gam": 1.0}
    for name, (method, _, options, _) in RECIPES.items():
        if method == "gam" and options.keys() == {"interval", "between", "max_ratio"} and options["between"] == "skip":
            found[name] = 1 / options["interval"]
    return {name: ratio for name, ratio in sorted(found.items(), key=lambda item: item[1]) if name in config.methods}


def draw_ratios(config: CompareConfig, summary: Sequence[Row]) -> Path:
    """Test accuracy against measured time for each share of GAM's steps (Fig. 4 of the paper)."""
    with style():
        figure, axis = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
        shares = ratios(config)
        for noise in config.noise:
            rows = {row.method: row for row in summary if row.noise == noise}
            time = [rows[method].time_ratio for method in shares]
            means, errors = zip(*(rows[method].test_accuracy for method in shares), strict=True)
            axis.errorbar(time, means, errors, marker="o", markersize=4, capsize=3, label=_labels(noise))
            for x, y, share in zip(time, means, shares.values(), strict=True):
                axis.annotate(f"{share:g}", (x, y), (5, 5), textcoords="offset points", fontsize=9)
        base = label(config.methods[0], config.base)
        axis.set(xlabel=f"measured time of training ({base} = 1)", ylabel="test accuracy, %")
        axis.set_title("numbers: share of the steps that are GAM's", fontsize=11)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
        return save(figure, config.workdir / "ratios.png")


def draw_flatness(config: CompareConfig, records: Sequence[Record]) -> Path:
    """R1 over the radius, and the top eigenvalues, at half-time and at the end (Fig. 3); a row per noise level."""
    wanted = [quantity for quantity in ("flatness", "eigenvalues") if quantity in config.measure]
    rows, columns = len(config.noise), 2 * len(wanted)
    size = (1.5 + 3.0 * columns, 0.9 + 2.9 * rows)
    with style():
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
        figure.set_layout_engine("constrained")
        for noise, line in zip(config.noise, axes, strict=True):
            for half, end in zip(line[::2], line[1::2], strict=True):
                end.sharey(half)
            panels = [(quantity, stage) for quantity in wanted for stage in ("half", "end")]
            for axis, (quantity, stage) in zip(line, panels, strict=True):
                radii = quantity == "flatness"
                places = np.array(config.rho) if radii else 1 + np.arange(config.k)
                for method in config.methods:
                    path = (stage, "R1" if radii else "eigenvalues")
                    runs = [values(records, noise, method, *path, i) for i in range(len(places))]
                    means, errors = zip(*map(Estimate.of, runs), strict=True)
                    name = label(method, config.base)
                    axis.errorbar(places, means, errors, marker="o", markersize=3, color=color(method), label=name)
                axis.set(yscale="log", xscale="log" if radii else "linear", xlabel="radius ρ" if radii else "rank")
                axis.set_xticks(places, [f"{place:g}" for place in places])
                axis.xaxis.set_minor_locator(NullLocator())
                axis.set_title(f"{noise:.0%} wrong, {'half-time' if stage == 'half' else 'end'}", fontsize=10)
                axis.grid(alpha=0.3)
            for axis, quantity in zip(line[::2], wanted, strict=True):
                axis.set_ylabel("R1" if quantity == "flatness" else "Hessian eigenvalue")
        handles = axes[0, 0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside upper center", ncols=5, frameon=False)
        return save(figure, config.workdir / "flatness.png")
