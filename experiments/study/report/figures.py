"""The comparison as one picture: every final run as a dot, the mean and its standard error on top."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from experiments.common.plotting import save, style
from experiments.models.config import network
from experiments.optim.methods import METHODS
from experiments.optim.recipes import RECIPES
from experiments.study.config import CompareConfig
from experiments.study.report.conclusion import headline, labels
from experiments.study.report.statistics import Estimate, Row
from experiments.study.report.study import Study, measures

_FEW = 5
"""Methods whose names stand upright beside each other."""


def color(name: str) -> str:
    """Of a method or recipe, the latter from a palette of their own."""
    return METHODS[name].color if name in METHODS else f"C{list(RECIPES).index(name) % 10}"


def draw(study: Study) -> Path:
    """Test accuracy and, where it was measured, the top Hessian eigenvalue below it; one column per noise level."""
    config = study.config
    eigenvalues = "eigenvalues" in config.measure
    columns, lines = len(config.noise), 1 + eigenvalues
    many = len(config.methods) > _FEW
    size = (1.6 + (0.8 if many else 1.15) * len(config.methods) * columns, 1.0 + 2.7 * lines + many)
    with style():
        figure, axes = plt.subplots(lines, columns, figsize=size, sharex=True, sharey="row", squeeze=False)
        figure.set_layout_engine("constrained")
        for column, noise in enumerate(config.noise):
            rows = [row for row in study.summary if row.noise == noise]
            _column(study, list(axes[:, column]), rows)
            axes[0, column].set_title(f"{noise:.0%} of the training labels wrong" if noise else "clean labels")
        axes[0, 0].set_ylabel("test accuracy, %")
        if eigenvalues:
            axes[1, 0].set_ylabel("top Hessian eigenvalue\n(lower is flatter)")
        images = f", {config.data.train_size} training images" if config.data.train_size else ""
        task = f"{config.data.name}, {network(config.model)}{images}, every method tuned with the same budget"
        width = int(11.5 * size[0])  # as many characters as fit
        figure.suptitle(textwrap.fill(headline(study), int(0.9 * width)), fontsize=11, weight="bold")
        dots = f"pale dots: {config.seeds} seeds, strong dots: mean and standard error"
        figure.supxlabel(f"{textwrap.fill(task, width)}\n{dots}", fontsize=11)
        return save(figure, config.workdir / "comparison.png")


def _column(study: Study, axes: Sequence[Axes], rows: Sequence[Row]) -> None:
    """One noise level."""
    for place, row in enumerate(rows):
        runs = study.values(row.noise, row.method, "test_accuracy")
        _strip(axes[0], place, 100 * runs, row.test_accuracy, color(row.method), "{:.1f}")
        if row.top_eigenvalue is not None:
            runs = study.values(row.noise, row.method, "end", "eigenvalues", 0)
            _strip(axes[1], place, runs, row.top_eigenvalue, color(row.method), "{:#.2g}")
    for axis in axes:
        axis.grid(axis="y", alpha=0.3)
    for sharpness in axes[1:]:
        sharpness.set_yscale("log")
        sharpness.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        sharpness.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        sharpness.yaxis.set_minor_locator(NullLocator())
    many = len(rows) > _FEW
    names = [study.label(row.method) for row in rows]
    axes[-1].set_xticks(range(len(rows)), names, rotation=35 * many, ha="right" if many else "center")
    axes[-1].set_xlim(-0.5, len(rows) - 0.3)


def _strip(axes: Axes, place: int, runs: np.ndarray, estimate: Estimate, color: str, form: str) -> None:
    """One method: its runs as dots, spread sideways, and beside them the mean with its standard error."""
    spread = np.linspace(-0.2, 0.08, len(runs))
    axes.scatter(place + spread, runs, s=26, color=color, alpha=0.35, linewidths=0)
    axes.errorbar(place + 0.2, estimate.mean, estimate.error, fmt="o", color=color, capsize=4, markersize=7)
    text = form.format(estimate.mean).rstrip(".")
    axes.annotate(
        text, (place + 0.2, estimate.mean), (8, 0), textcoords="offset points", va="center", color=color, weight="bold"
    )


def draw_noise(study: Study) -> Path:
    """Test accuracy over the share of wrong labels, with standard errors (Fig. C.2 of the paper)."""
    config = study.config
    with style():
        figure, axis = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
        for method in config.methods:
            rows = sorted((row for row in study.summary if row.method == method), key=lambda row: row.noise)
            x, accuracy = [100 * row.noise for row in rows], [row.test_accuracy for row in rows]
            name = study.label(method)
            means, errors, _ = zip(*accuracy, strict=True)
            axis.errorbar(x, means, errors, marker="o", markersize=4, capsize=3, color=color(method), label=name)
        axis.set(xlabel="training labels that are wrong, %", ylabel="test accuracy, %")
        axis.set_title("mean over seeds, with standard errors", fontsize=11)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
        return save(figure, config.workdir / "noise.png")


def draw_frontier(study: Study) -> Path:
    """What each method gains over the first one, against what its step costs in gradients; a panel per noise level."""
    config = study.config
    with style():
        size = (11.5 * len(config.noise), 6)
        figure, axes = plt.subplots(1, len(config.noise), figsize=size, squeeze=False, layout="constrained")
        base = study.label(config.methods[0])
        for noise, axis in zip(config.noise, axes[0], strict=True):
            rows = sorted((row for row in study.summary if row.noise == noise), key=lambda row: -row.gain.estimate.mean)
            for number, row in enumerate(rows, 1):
                gain, is_recipe = row.gain.estimate, row.method in RECIPES
                mark = {"marker": "o" if is_recipe else "D", "markersize": 5 if is_recipe else 8, "capsize": 2}
                name = f"{number}  {study.label(row.method)}"
                axis.errorbar(row.flop_ratio, gain.mean, gain.error, color=color(row.method), label=name, **mark)
                axis.annotate(str(number), (row.flop_ratio, gain.mean), (6, 3), textcoords="offset points", fontsize=9)
            axis.set(xscale="log", xlabel=f"cost of a step (FLOPs, {base} = 1)", title=labels(noise))
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


def draw_ratios(study: Study) -> Path:
    """Test accuracy against measured time for each share of GAM's steps (Fig. 4 of the paper)."""
    config = study.config
    with style():
        figure, axis = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
        shares = ratios(config)
        for noise in config.noise:
            rows = {row.method: row for row in study.summary if row.noise == noise}
            time = [rows[method].time_ratio for method in shares]
            means, errors, _ = zip(*(rows[method].test_accuracy for method in shares), strict=True)
            axis.errorbar(time, means, errors, marker="o", markersize=4, capsize=3, label=labels(noise))
            for x, y, share in zip(time, means, shares.values(), strict=True):
                axis.annotate(f"{share:g}", (x, y), (5, 5), textcoords="offset points", fontsize=9)
        base = study.label(config.methods[0])
        axis.set(xlabel=f"measured time of training ({base} = 1)", ylabel="test accuracy, %")
        axis.set_title("numbers: share of the steps that are GAM's", fontsize=11)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
        return save(figure, config.workdir / "ratios.png")


def draw_flatness(study: Study) -> Path:
    """Every measure of flatness at half-time and at the end, with standard errors (Fig. 3); a row per noise level.

    Below the top eigenvalue the others that were measured, pale.
    """
    config = study.config
    stages = {"half": measures(config, "half"), "end": measures(config, "end")}
    names, lines = [*stages["end"]], len(config.noise)
    count = len(config.methods)
    with style():
        size = (1.0 + 2.9 * len(names), 1.2 + 2.7 * lines)
        figure, axes = plt.subplots(lines, len(names), figsize=size, squeeze=False, layout="constrained")
        for noise, line in zip(config.noise, axes, strict=True):
            for axis, name in zip(line, names, strict=True):
                for number, method in enumerate(config.methods):
                    x = np.arange(2) + 0.7 * ((number + 0.5) / count - 0.5)
                    paths = [stages[stage][name] for stage in stages]
                    found = [Estimate.of(study.values(noise, method, *path)) for path in paths]
                    means, errors, _ = zip(*found, strict=True)
                    mark = {"fmt": "o", "markersize": 4, "color": color(method)}
                    axis.errorbar(x, means, errors, label=study.label(method), **mark)
                    for rank in range(1, config.k if name == "top eigenvalue" else 1):
                        below = [Estimate.of(study.values(noise, method, *p[:-1], rank)).mean for p in paths]
                        axis.plot(x, below, "_", markersize=4, color=color(method), alpha=0.5)
                axis.set(yscale="log", xlim=(-0.5, 1.5), title=name)
                axis.set_xticks([0, 1], ["half-time", "end"])
                axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
                axis.yaxis.set_minor_locator(NullLocator())
                axis.grid(axis="y", alpha=0.3)
            line[0].set_ylabel(labels(noise))
        handles = axes[0, 0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside upper center", ncols=min(count, 6), frameon=False)
        return save(figure, config.workdir / "flatness.png")
