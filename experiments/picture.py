"""The comparison as one picture: every final run as a dot, the mean and its standard error on top."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from experiments.config import CompareConfig
from experiments.optim import LABELS
from experiments.store import Record
from experiments.summary import Estimate, Row, values

COLORS = {"plain": "#555555", "sam": "#0072b2", "gam": "#d55e00", "sam+gam": "#009e73"}


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
    """Test accuracy (top) and top Hessian eigenvalue (bottom), one column per noise level."""
    columns = len(config.noise)
    size = (1.6 + 1.15 * len(config.methods) * columns, 6.4)
    with style():
        figure, axes = plt.subplots(2, columns, figsize=size, sharex=True, sharey="row", squeeze=False)
        figure.set_layout_engine("constrained")
        for column, noise in enumerate(config.noise):
            rows = [row for row in summary if row.noise == noise]
            accuracy, sharpness = axes[:, column]
            accuracy.grid(axis="y", alpha=0.3)
            sharpness.grid(axis="y", alpha=0.3)
            accuracy.set_title("clean labels" if noise == 0 else f"{noise:.0%} of the training labels wrong")
            for place, row in enumerate(rows):
                runs = values(records, noise, row.method, "test_accuracy")
                _strip(accuracy, place, 100 * runs, row.test_accuracy, COLORS[row.method], "{:.1f}")
                runs = values(records, noise, row.method, "top_eigenvalue")
                _strip(sharpness, place, runs, row.top_eigenvalue, COLORS[row.method], "{:#.2g}")
            sharpness.set_yscale("log")
            sharpness.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            sharpness.yaxis.set_major_formatter(FormatStrFormatter("%g"))
            sharpness.yaxis.set_minor_locator(NullLocator())
            sharpness.set_xticks(range(len(rows)), [LABELS[row.method] for row in rows])
            sharpness.set_xlim(-0.5, len(rows) - 0.3)
        axes[0, 0].set_ylabel("test accuracy, %")
        axes[1, 0].set_ylabel("top Hessian eigenvalue\n(lower is flatter)")
        figure.suptitle(
            f"Handwritten digits, {config.data.train_size} training images, every method tuned with the same budget\n"
            f"pale dots: {config.seeds} seeds, strong dots: mean and standard error",
            fontsize=11,
        )
        return save(figure, config.workdir / "comparison.png")


def _strip(axes: Axes, place: int, runs: np.ndarray, estimate: Estimate, color: str, form: str) -> None:
    """One method: its runs as dots, spread sideways, and beside them the mean with its standard error."""
    spread = np.linspace(-0.2, 0.08, len(runs))
    axes.scatter(place + spread, runs, s=26, color=color, alpha=0.35, linewidths=0)
    axes.errorbar(place + 0.2, estimate.mean, estimate.error, fmt="o", color=color, capsize=4, markersize=7)
    text = form.format(estimate.mean)
    axes.annotate(
        text, (place + 0.2, estimate.mean), (8, 0), textcoords="offset points", va="center", color=color, weight="bold"
    )
