"""How a measured checkpoint appears in all pictures and tables: its name, its colour, its line."""

import itertools
from collections.abc import Sequence

from experiments.measure.flatness.measure import Result
from experiments.optim.methods import METHODS
from gam_jax.flatness._plots import COLORS, Look


def looks(results: Sequence[Result]) -> list[Look]:
    """One colour per run: that of its method, where no two runs share it. Steps of one run differ by their line."""
    runs = [_run(result) for result in results]
    used = [result["checkpoint"]["config"]["optim"]["method"] for result in results]
    methods = dict(zip(runs, used, strict=True))
    distinct = len(set(methods.values())) == len(methods)
    cycle = itertools.cycle(COLORS)
    colors = {run: METHODS[method].color if distinct else next(cycle) for run, method in methods.items()}
    found = []
    for place, (run, result) in enumerate(zip(runs, results, strict=True)):
        averaging = result["checkpoint"]["config"]["averaging"]
        averaged = "" if averaging == "none" else f" + {averaging.upper()}"
        label = METHODS[methods[run]].label + averaged + ("" if distinct else f" ({run})")
        if runs.count(run) > 1:
            label += f", step {result['checkpoint']['step']}"
        line = ("-", "--", ":", "-.")[runs[:place].count(run) % 4]
        found.append(Look(label, colors[run], line))
    return found


def _run(result: Result) -> str:
    return result["checkpoint"]["name"].rpartition("-")[0]
