"""What is counted over the tasks of several studies: who is better, how much flatter, and what flatness tells."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.study.report.statistics import Estimate, Sample, difference, values
from experiments.study.report.study import Study, Task, measures, tasks

PREDICTORS = ("R1 at 0.1", "R0 at 0.1", "top eigenvalue")
"""What may predict generalization; the first is compared with the others."""


class Count(NamedTuple):
    """On how many tasks one method is better than another one, and by how much in the mean over tasks."""

    tasks: int
    better: int
    clearly_better: int
    clearly_worse: int
    mean: Estimate


def count(wanted: Sequence[Task], method: str, other: str) -> Count:
    """Over the tasks that have both; runs that studies share, the same to the last digit, count once."""
    found = dict.fromkeys(
        difference(study.records, noise, method, other).estimate
        for study, noise in wanted
        if {method, other} <= {*study.config.methods}
    )
    clear = [one.mean for one in found if one.is_clear]
    better = sum(mean > 0 for mean in clear)
    means = np.array([one.mean for one in found])
    return Count(len(found), int(np.sum(means > 0)), better, len(clear) - better, Estimate.of(means))


def ratios(wanted: Sequence[Task], method: str, other: str, measure: str) -> np.ndarray:
    """How flat a method's networks are, relative to those of another one, on each task that has both."""
    found = np.array(
        [
            study.mean(noise, method, measure) / study.mean(noise, other, measure)
            for study, noise in wanted
            if {method, other} <= {*study.config.methods}
        ]
    )
    return found[found > 0]


def geometric_mean(ratios: np.ndarray) -> float:
    """What several ratios have in common."""
    return float(np.exp(np.log(ratios).mean()))


def samples(studies: Sequence[Study], outcome: Any) -> list[Sample]:
    """The tasks on which all measures were taken."""
    found = []
    for study, noise in tasks(studies):
        places = measures(study.config, "end")
        if not {*PREDICTORS} <= places.keys():
            continue
        of = [(study.records, noise, method) for method in study.config.methods]
        flat = np.array([[values(*one, *places[name]) for one in of] for name in PREDICTORS])
        found.append(Sample(flat, np.array([outcome(*one) for one in of])))
    return found
