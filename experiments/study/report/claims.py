"""What the paper claims, and what the studies measured of it."""

from collections.abc import Sequence

import numpy as np

from experiments.common.markdown import markdown
from experiments.study.report.over_tasks import PREDICTORS, count, geometric_mean, ratios, samples
from experiments.study.report.statistics import OUTCOMES, signed
from experiments.study.report.study import Study, Task, tasks


def paper_table(studies: Sequence[Study]) -> str:
    """A row for each claim of the paper; how it is counted stands above :func:`evidence.claim_table`."""
    wanted = tasks(studies)
    error, gap = OUTCOMES["test error"], OUTCOMES["test loss - training loss"]
    rows = [
        ["GAM improves on its base optimizer", _compared(wanted, "gam", "plain")],
        ["GAM improves on SAM", _compared(wanted, "gam", "sam")],
        ["SAM + GAM is better than SAM", _compared(wanted, "sam+gam", "sam")],
        ["accelerated GAM is as good as GAM, for 4 gradients", _compared(wanted, "accelerated_gam", "gam")],
        ["GAM's minima are flatter than those of the base optimizer", _flatter(wanted, "gam", "plain")],
        ["and flatter than SAM's", _flatter(wanted, "gam", "sam")],
        ["R1 tells the gap of test and training loss better than R0 and the top eigenvalue", _told(studies, gap)],
        ["so it does among networks of one method", _told(studies, gap, within=True)],
        ["R1 tells the test error better than R0 and the top eigenvalue", _told(studies, error)],
    ]
    return markdown(["claim of the paper", "measured here"], rows)


def _compared(wanted: Sequence[Task], method: str, other: str) -> str:
    found = count(wanted, method, other)
    clear = f"clearly better on {found.clearly_better} of {found.tasks} tasks, clearly worse on {found.clearly_worse}"
    return f"{clear}; {signed(found.mean)} points in the mean"


def _flatter(wanted: Sequence[Task], method: str, other: str) -> str:
    said = []
    for measure in ("top eigenvalue", "R1 at 0.1"):
        found = ratios(wanted, method, other, measure)
        said.append(
            f"{measure} {geometric_mean(found):.2f} of theirs, less on {np.sum(found < 1)} of {len(found)} tasks"
        )
    return "; ".join(said)


def _told(studies: Sequence[Study], outcome: object, *, within: bool = False) -> str:
    """The mean rank correlation over tasks of each measure."""
    found = samples(studies, outcome)
    every = [one.correlations(np.arange(one.outcome.shape[1]), within=within) for one in found]
    mean = np.mean(every, axis=0)
    return "rank correlation: " + ", ".join(
        f"{name} {value:+.2f}" for name, value in zip(PREDICTORS, mean, strict=True)
    )
