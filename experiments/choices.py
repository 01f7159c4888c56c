"""Which hyper-parameters were good: how much validation accuracy each value costs, on every task."""

import math
from collections.abc import Sequence

import numpy as np

from experiments.recipes import label
from experiments.store import Record
from experiments.studies import Task
from experiments.tables import markdown


def choice_table(wanted: Sequence[Task], method: str, *names: str) -> str:
    """A row for each task: validation accuracy of the best trial with each value, relative to the best of all trials.

    The value is that of a hyper-parameter, or the product of several.
    In brackets how many trials had the value. Beside them the top Hessian eigenvalue of the base optimizer's networks.
    """
    own = [task for task in wanted if method in task.study.config.methods and task.study.config.tuned_in is None]
    found = [(task, _by_value(task, method, names)) for task in own]
    columns = sorted({value for _, scores in found for value in scores})
    rows = []
    for task, scores in found:
        best = max(max(accuracies) for accuracies in scores.values())
        cells = [_cell(scores[value], best) if value in scores else "" for value in columns]
        rows.append([task.label, *cells, _sharpness(task)])
    return markdown(
        [f"{label(method, 'sgd')}: {' x '.join(names)}", *(f"{value:g}" for value in columns), "top eigenvalue"], rows
    )


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
    text = f"{behind:.1f}".replace("-0.0", "0.0")
    return (f"**{text}**" if behind == 0 else text) + f" ({len(accuracies)})"


def _sharpness(task: Task) -> str:
    mean = task.study.mean(task.noise, task.study.config.methods[0], "top eigenvalue")
    return "" if math.isnan(mean) else f"{mean:.1f}"
