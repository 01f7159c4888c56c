"""Pictures of the loss around measured checkpoints, several runs together: along lines, and on planes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import BoundaryNorm

from experiments.common.markdown import markdown
from experiments.common.plotting import save, style
from experiments.measure.flatness.looks import looks
from experiments.measure.flatness.measure import Result
from gam_jax.flatness import _plots


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


def draw_landscape(results: Sequence[Result], folder: Path) -> list[Path]:
    """All pictures of ``landscape``."""
    with style():
        return [_lines(results, folder / "lines.png"), _planes(results, folder / "planes.png")]


def _lines(results: Sequence[Result], path: Path) -> Path:
    slices = [_slices(result) for result in results]
    return save(_plots.draw_lines(looks(results), slices[0][0], [losses for _, losses in slices]), path)


def _slices(result: Result) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates of the one-dimensional slices, and their losses, [slices, points]."""
    lines = [m for name, m in result["measured"].items() if name.startswith("line")]
    return np.array(lines[0]["x"]), np.array([line["values"] for line in lines], float)


def _planes(results: Sequence[Result], path: Path) -> Path:
    """The loss on the planes of the first two directions, in one scale; bold where it is 1 above the network's own."""
    columns = min(4, len(results))
    rows = -(-len(results) // columns)
    size = (0.9 + 2.6 * columns, 0.4 + 2.95 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    figure.set_layout_engine("compressed")
    planes = [result["measured"]["plane"] for result in results]
    losses = [np.array(plane["values"], float) for plane in planes]
    least, most = np.nanmin(losses), np.nanpercentile(losses, 99)
    levels = least + max(most - least, 1e-6) * np.linspace(0, 1, 21) ** 2  # evenly spaced around a minimum
    colors = BoundaryNorm(levels, 256, extend="max")
    drawn: Any = None
    for axis, look, result, plane, loss in zip(axes.flat, looks(results), results, planes, losses, strict=False):
        x, own = plane["x"], loss[len(loss) // 2, len(loss) // 2]
        drawn = axis.contourf(x, plane["y"], loss, levels, norm=colors, extend="max", cmap="viridis")
        axis.contour(x, plane["y"], loss, levels, colors="white", linewidths=0.4, alpha=0.6)
        if np.nanmax(loss) > own + 1:
            axis.contour(x, plane["y"], loss, [own + 1], colors="white", linewidths=2.2)
        axis.plot(0, 0, "o", color="white", markersize=4)
        accuracy = result["measured"]["point"]["test_accuracy"]
        axis.set_title(look.label, color=look.color, weight="bold", fontsize=15, pad=22)
        axis.annotate(
            f"test accuracy {accuracy:.0%}", (0.5, 1.03), xycoords="axes fraction", ha="center", fontsize=11.5
        )
        axis.set(aspect="equal", xticks=(x[0], 0, x[-1]), yticks=(x[0], 0, x[-1]))
    for axis in axes.flat[len(results) :]:
        axis.set_visible(False)
    meaning = "two random directions, in units of the weights; bold: the loss is 1 higher than in the middle"
    figure.supxlabel(meaning, fontsize=11.5)
    bar = figure.colorbar(drawn, ax=axes, label="training loss", format="%.2g")
    bar.set_ticks(levels[::4])
    return save(figure, path)
