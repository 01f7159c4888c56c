"""Learning curves of one run as a picture."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from experiments.common.plotting import save, style
from experiments.common.store import Record


def draw_curves(records: Sequence[Record], title: str, path: Path, edge: float | None = None) -> Path:
    """Loss and accuracy over the epochs, in training and in evaluation, and more if there is more.

    Args:
      records: of a run.
      title: of the picture.
      path: where to write it.
      edge: learning rate times top eigenvalue above which the optimizer is unstable on a quadratic, if that is known.
    """
    train = [record for record in records if record["kind"] == "train"]
    evaluation = [record for record in records if record["kind"] == "evaluation"]
    curvature = [record for record in records if record["kind"] == "curvature"]
    flatness = [name for name in (train[-1] if train else {}) if name.endswith(("grad_norm", "flatness"))]
    with style():
        columns = 2 + bool(flatness) + bool(curvature)
        figure, axes = plt.subplots(1, columns, figsize=(1 + 4 * columns, 3.6), layout="constrained")
        for axis, quantity in zip(axes, ("loss", "accuracy"), strict=False):
            axis.plot(*_series(train, quantity), color="#555555", label="training, as it goes")
            for part, color in (("validation", "#0072b2"), ("test", "#d55e00")):
                x, y = _series(evaluation, f"{part}_{quantity}")
                if x:
                    axis.plot(x, y, color=color, marker="o", markersize=3, label=part)
            axis.set(xlabel="epoch", title=quantity)
            axis.legend(frameon=False)
        for name in flatness:
            axes[2].semilogy(*_series(train, name), label=name.replace("_", " "))
        if flatness:
            axes[2].set(xlabel="epoch", title="seen by the optimizer")
            axes[2].legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
        if curvature:
            x, values = _series(curvature, "top_eigenvalue")
            axes[-1].semilogy(x, values, color="#0072b2", marker=".", label="top Hessian eigenvalue")
            if edge is not None:
                rates = _series(curvature, "learning_rate")[1]
                line = [edge / rate if rate > 0 else math.nan for rate in rates]
                axes[-1].semilogy(x, line, "--", color="#d55e00", label=f"{edge:g} / learning rate")
            axes[-1].set(xlabel="epoch", title="edge of stability")
            axes[-1].legend(frameon=False, fontsize="small")
        for axis in axes:
            axis.grid(alpha=0.3)
        figure.suptitle(title)
    return save(figure, path)


def _series(records: Sequence[Record], name: str) -> tuple[list[float], list[float]]:
    found = [(record["epoch"], record[name]) for record in records if name in record]
    return [x for x, _ in found], [y for _, y in found]
