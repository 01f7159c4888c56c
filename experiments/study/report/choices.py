"""Which radii and weights were good: what validation images said of every trial of every study."""

import math
from collections.abc import Sequence

import numpy as np

from experiments.common.markdown import markdown
from experiments.common.store import Record
from experiments.optim.recipes import label
from experiments.study.report.study import Task

_NEAR = 1.0
"""Percentage points behind the best trial that still count as good."""


def choice_table(wanted: Sequence[Task], method: str, *names: str) -> str:
    """A row for each task: validation accuracy of the best trial with each value, relative to the best of all trials.

    The value is that of a hyper-parameter, or the product of several.
    In brackets how many trials had the value. Beside them the top Hessian eigenvalue of the base optimizer's networks.
    """
    found = [(task, _by_value(task, method, names)) for task in _own(wanted, method)]
    columns = sorted({value for _, scores in found for value in scores})
    rows = []
    for task, scores in found:
        best = max(max(accuracies) for accuracies in scores.values())
        cells = [_cell(scores[value], best) if value in scores else "" for value in columns]
        rows.append([task.label, *cells, _sharpness(task)])
    return markdown(
        [f"{label(method, 'sgd')}: {' x '.join(names)}", *(f"{value:g}" for value in columns), "top eigenvalue"], rows
    )


def strength_table(wanted: Sequence[Task]) -> str:
    """A row for each task: which products of GAM's rho and alpha were good, and what larger ones cost.

    Validation accuracy of the best trial with each product, relative to the best of all trials.
    """
    rows = []
    for task in _own(wanted, "gam"):
        scores = {value: max(found) for value, found in _by_value(task, "gam", ("gam_rho", "gam_alpha")).items()}
        behind = {value: scores[value] - max(scores.values()) for value in sorted(scores)}
        good = [value for value in behind if behind[value] > -_NEAR]
        larger = [f"{value:g}: {_points(behind[value])}" for value in behind if value > max(good)]
        base = label(task.study.config.methods[0], task.study.config.base)
        rows.append([task.label, base, _sharpness(task), ", ".join(f"{v:g}" for v in good), ", ".join(larger)])
    header = ["task", "base", "top eigenvalue", "alpha x rho within a point of the best", "larger: points behind"]
    return markdown(header, rows)


def _own(wanted: Sequence[Task], method: str) -> list[Task]:
    """Those on which the method had trials of its own."""
    return [task for task in wanted if method in task.study.config.methods and task.study.config.tuned_in is None]


def _by_value(task: Task, method: str, names: Sequence[str]) -> dict[float, list[float]]:
    """Mean validation accuracy in percent of every trial, by the value; 0 if it diverged."""
    study, noise = task
    trials: dict[int, list[Record]] = {}
    for record in study.records:
        if (record["kind"], record.get("noise"), record.get("method")) == ("tune", noise, method):
            trials.setdefault(record["trial"], []).append(record)
    scores: dict[float, list[float]] = {}
    for runs in trials.values():
        accuracy = float(np.mean([100 * (run["validation_accuracy"] or 0.0) for run in runs]))
        value = math.prod(runs[0]["hyperparameters"][name] for name in names)
        scores.setdefault(round(value, 6), []).append(accuracy)
    return scores


def _cell(accuracies: Sequence[float], best: float) -> str:
    behind = max(accuracies) - best
    text = _points(behind)
    return (f"**{text}**" if behind == 0 else text) + f" ({len(accuracies)})"


def _points(behind: float) -> str:
    return f"{behind:.1f}".replace("-0.0", "0.0")


def _sharpness(task: Task) -> str:
    mean = task.study.mean(task.noise, task.study.config.methods[0], "top eigenvalue")
    return "" if math.isnan(mean) else f"{mean:.1f}"
