"""Pictures of several studies together: what each method gains on each task, and what flatness predicts."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from experiments.common.plotting import save, style
from experiments.optim.recipes import label
from experiments.study.report.evidence import PAPER
from experiments.study.report.figures import color
from experiments.study.report.over_tasks import PREDICTORS, samples
from experiments.study.report.statistics import OUTCOMES, pool
from experiments.study.report.study import Study, Task, tasks


def draw(studies: Sequence[Study], output: Path) -> list[Path]:
    """All pictures; that of predictions only where flatness was measured."""
    with style():
        found = [
            _gains([task for task in tasks(studies) if not {*PAPER}.isdisjoint(task.study.config.methods)], output)
        ]
        if samples(studies, OUTCOMES["test error"]):
            found.append(_prediction(studies, output))
    return found


def _gains(wanted: Sequence[Task], output: Path) -> Path:
    """A line for each task, a dot for each method, with its 95 % confidence interval."""
    figure, axis = plt.subplots(figsize=(8.0, 1.3 + 0.42 * len(wanted)), layout="constrained")
    for place, name in enumerate(PAPER):
        lines = [line for line, task in enumerate(wanted) if name in task.study.config.methods]
        gains = [wanted[line].study.row(wanted[line].noise, name).gain.estimate for line in lines]
        y = np.array(lines) + 0.17 * (place - (len(PAPER) - 1) / 2)
        x, bars = [gain.mean for gain in gains], [gain.interval for gain in gains]
        axis.errorbar(x, y, xerr=bars, fmt="o", markersize=5, color=color(name), label=label(name, "sgd"))
    axis.axvline(0, color="#555555", linewidth=1)
    axis.set_yticks(range(len(wanted)), [task.label for task in wanted])
    axis.set_ylim(len(wanted) - 0.5, -0.5)
    axis.set_xlabel("gain over the base optimizer,\npercentage points (bars: 95 % intervals)")
    axis.grid(axis="x", alpha=0.3)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=len(PAPER), frameon=False)
    return save(figure, output / "gains.png")


def _prediction(studies: Sequence[Study], output: Path) -> Path:
    """The rank correlation of each measure with each outcome: of single tasks pale, beside them the mean."""
    figure, axes = plt.subplots(1, 4, figsize=(12.0, 4.0), sharey=True, layout="constrained")
    panels = [(name, outcome, within) for name, outcome in OUTCOMES.items() for within in (False, True)]
    for axis, (name, outcome, within) in zip(axes, panels, strict=True):
        found = samples(studies, outcome)
        single = np.array([one.correlations(np.arange(one.outcome.shape[1]), within=within) for one in found])
        for place, (mean, low, high) in enumerate(pool(found, within=within)[0]):
            axis.plot(
                np.full(len(single), place - 0.15), single[:, place], "o", color=f"C{place}", alpha=0.3, markersize=5
            )
            axis.errorbar(place + 0.1, mean, [[mean - low], [high - mean]], fmt="o", color=f"C{place}", capsize=4)
        axis.axhline(0, color="#555555", linewidth=1)
        axis.set_xticks(range(len(PREDICTORS)), [name.replace(" ", "\n", 1) for name in PREDICTORS], fontsize=9)
        axis.set_title(f"{name}\n{'within one method' if within else 'all networks of a task'}", fontsize=10)
        axis.grid(axis="y", alpha=0.3)
    axes[0].set_ylabel("Spearman's rank correlation")
    return save(figure, output / "prediction.png")
