"""The comparison as one picture: every final run as a dot, the mean and its standard error on top."""

import textwrap
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import cast

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from experiments.config import CompareConfig, ModelConfig
from experiments.recipes import RECIPES, RecipeName, label
from experiments.store import Record
from experiments.summary import Estimate, Row, values

COLORS = {
    "plain": "#555555",
    "sam": "#0072b2",
    "gam": "#d55e00",
    "sam+gam": "#009e73",
    "accelerated_gam": "#e69f00",
    "asam": "#56b4e9",
    "gsam": "#3b4cc0",
    "gradient_norm_penalty": "#cc79a7",
    "c_flat": "#7a4f9f",
    "fad": "#b5a900",
}
"""Of each method in all pictures."""

_FEW = 5
"""Methods whose names stand upright beside each other."""


def network(model: ModelConfig) -> str:
    """The network's name; a ResNet-20 of another depth has the name that its paper gives it."""
    if model.depth is None:
        return model.name
    return f"resnet{6 * model.depth + 2}" if model.name == "resnet20" else f"{model.name} of {model.depth} layers"


def color(name: str) -> str:
    """Of a method or recipe, the latter from a palette of their own."""
    return COLORS[name] if name in COLORS else f"C{list(RECIPES).index(cast(RecipeName, name)) % 10}"


def style() -> AbstractContextManager[None]:
    """How all pictures look."""
    return plt.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})


def save(figure: Figure, path: Path) -> Path:
    """Writes a picture, whole or not at all, and closes it."""
    partial = path.with_name("partial.png")
    figure.savefig(partial, dpi=120, pil_kwargs={"optimize": True})
    plt.close(figure)
    return partial.replace(path)


def draw(config: CompareConfig, summary: Sequence[Row], records: Sequence[Record]) -> Path:
    """Test accuracy and, where it was measured, the top Hessian eigenvalue below it; one column per noise level."""
    eigenvalues = "eigenvalues" in config.measure
    columns, lines = len(config.noise), 1 + eigenvalues
    many = len(config.methods) > _FEW
    size = (1.6 + (0.8 if many else 1.15) * len(config.methods) * columns, 1.0 + 2.7 * lines + many)
    with style():
        figure, axes = plt.subplots(lines, columns, figsize=size, sharex=True, sharey="row", squeeze=False)
        figure.set_layout_engine("constrained")
        for column, noise in enumerate(config.noise):
            rows = [row for row in summary if row.noise == noise]
            _column(config, list(axes[:, column]), rows, records)
            axes[0, column].set_title("clean labels" if noise == 0 else f"{noise:.0%} of the training labels wrong")
        axes[0, 0].set_ylabel("test accuracy, %")
        if eigenvalues:
            axes[1, 0].set_ylabel("top Hessian eigenvalue\n(lower is flatter)")
        images = f", {config.data.train_size} training images" if config.data.train_size else ""
        task = f"{config.data.name}, {network(config.model)}{images}, every method tuned with the same budget"
        figure.suptitle(
            f"{textwrap.fill(task, int(11.5 * size[0]))}\n"  # as many characters as fit into the width
            f"pale dots: {config.seeds} seeds, strong dots: mean and standard error",
            fontsize=11,
        )
        return save(figure, config.workdir / "comparison.png")


def _column(config: CompareConfig, axes: Sequence[Axes], rows: Sequence[Row], records: Sequence[Record]) -> None:
    """One noise level."""
    for place, row in enumerate(rows):
        runs = values(records, row.noise, row.method, "test_accuracy")
        _strip(axes[0], place, 100 * runs, row.test_accuracy, color(row.method), "{:.1f}")
        if row.top_eigenvalue is not None:
            runs = values(records, row.noise, row.method, "end", "eigenvalues", 0)
            _strip(axes[1], place, runs, row.top_eigenvalue, color(row.method), "{:#.2g}")
    for axis in axes:
        axis.grid(axis="y", alpha=0.3)
    for sharpness in axes[1:]:
        sharpness.set_yscale("log")
        sharpness.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        sharpness.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        sharpness.yaxis.set_minor_locator(NullLocator())
    many = len(rows) > _FEW
    names = [label(row.method, config.base) for row in rows]
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
