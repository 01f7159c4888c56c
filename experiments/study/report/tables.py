"""The tables of a comparison: its result, paired differences, and which hyper-parameters were chosen from which."""

import dataclasses
import itertools
import json
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from experiments.common.markdown import markdown
from experiments.data import DATA_SETS
from experiments.optim.recipes import hyperparameters, recipe
from experiments.study.config import CompareConfig
from experiments.study.report.statistics import (
    OUTCOMES,
    Difference,
    Estimate,
    correlate,
    difference,
    plus_minus,
    signed,
)
from experiments.study.report.study import Study, measures
from experiments.study.search import from_base, grid_size, method_grid, num_trials


def tuned_names(config: CompareConfig) -> list[str]:
    """The hyper-parameters of all methods that are compared, in the order of the grid."""
    used = {name for method in config.methods for name in hyperparameters(method)}
    return [field.name for field in dataclasses.fields(config.grid) if field.name in used]


def result_table(study: Study) -> str:
    """The result, aligned for a terminal and valid Markdown at once."""
    config, summary = study.config, study.summary
    base = config.methods[0]
    header = ["wrong labels", "method", "test accuracy %", f"over {study.label(base)}", "training loss"]
    header += ["top eigenvalue"] if "eigenvalues" in config.measure else []
    rows = []
    for row in summary:
        diverged = f" ({row.diverged} of {config.seeds} diverged)" if row.diverged else ""
        cells = [
            f"{row.noise:.0%}",
            study.label(row.method),
            plus_minus(row.test_accuracy, 2) + diverged,
            "" if row.method == base else signed(row.gain.estimate),
            plus_minus(row.train_loss, 3),
        ]
        cells += [plus_minus(row.top_eigenvalue, 2)] if row.top_eigenvalue else []
        rows.append([*cells, f"{row.time_ratio:.1f} x", f"{row.flop_ratio:.2f} x"])
    return markdown([*header, "step time", "step FLOPs"], rows)


def saving_table(study: Study) -> str:
    """What each way to take a step costs, and what it gains; the options as a user of the library writes them."""
    base, *others = study.summary
    rows = []
    for row in others:
        options = _options(recipe(row.method).options)
        rows.append([study.label(row.method), options, f"{row.flop_ratio:.2f}", signed(row.gain.estimate)])
    name = f"{study.label(base.method)} ({plus_minus(base.test_accuracy, 2)})"
    return markdown(["step", "options", "step FLOPs", f"gain in test accuracy over {name}"], rows)


def _options(options: Mapping[str, Any]) -> str:
    """Those that are not the default, as code."""
    said = {"curvature_share": "share={}", "late": "interval=late_phase(steps, {})"}
    given = {name: value for name, value in options.items() if value not in ("skip", None)}
    code = [said.get(name, name + "={}").format(json.dumps(value)) for name, value in given.items()]
    return f"`{', '.join(code)}`" if code else ""


def paired_table(study: Study) -> str:
    """Every method against every other one, at each noise level."""
    config = study.config
    rows = []
    for noise, (other, method) in itertools.product(config.noise, itertools.combinations(config.methods, 2)):
        found = difference(study.records, noise, method, other)
        names = f"{study.label(method)} - {study.label(other)}"
        rows.append([f"{noise:.0%}", names, *_cells(found, config.seeds)])
    return markdown(["wrong labels", "methods", "difference", "better in", "worse in", "equal in"], rows)


def _cells(found: Difference, seeds: int) -> list[str]:
    return [signed(found.estimate), *map(str, (found.wins, found.losses, seeds - found.wins - found.losses))]


def domain_table(study: Study) -> str:
    """Test accuracy on each domain that was held out, of the seeds that held it out."""
    config = study.config
    domains, rows = DATA_SETS[config.data.name].domains, []
    for noise, method in itertools.product(config.noise, config.methods):
        accuracy = 100 * study.values(noise, method, "test_accuracy")
        found = [plus_minus(Estimate.of(accuracy[i :: len(domains)]), 2) for i in range(len(domains))]
        rows.append([f"{noise:.0%}", study.label(method), *found])
    return markdown(["wrong labels", "method", *domains], rows)


def chosen_table(study: Study) -> str:
    """What the validation data chose, with its mean validation accuracy, and how many runs of the tuning diverged."""
    config = study.config
    names, rows = tuned_names(config), []
    for record in study.chosen():
        mine = [
            r
            for r in study.records
            if r["kind"] == "tune" and (r["noise"], r["method"]) == (record["noise"], record["method"])
        ]
        scores = [r["validation_accuracy"] for r in mine if r["hyperparameters"] == record["hyperparameters"]]
        found = [f"{record['hyperparameters'].get(name, '')}" for name in names]
        validation = "diverged" if None in scores else f"{100 * sum(scores) / len(scores):.2f}"
        diverged = f"{sum(r['diverged'] for r in mine)} of {len(mine)}"
        rows.append([f"{record['noise']:.0%}", study.label(record["method"]), *found, validation, diverged])
    return markdown(["wrong labels", "method", *names, "validation accuracy %", "tuning runs that diverged"], rows)


def grid_table(study: Study) -> str:
    """The grid of each method, and how much of it was tried."""
    config = study.config
    names, rows = tuned_names(config), []
    for method in config.methods:
        grid = method_grid(config, method)
        taken = dict.fromkeys(from_base(config, method), f"as {study.label(config.methods[0])}")
        values = [taken.get(name, ", ".join(f"{value:g}" for value in grid.get(name, ()))) for name in names]
        tried = f"{num_trials(config, method)} of {grid_size(config, method)}"
        rows.append([study.label(method), *values, tried])
    return markdown(["grid", *names, "points tried"], rows)


def flatness_table(study: Study, stage: Literal["half", "end"]) -> str:
    """Mean and standard error of every measure of flatness."""
    config = study.config
    rows = []
    for noise, method in itertools.product(config.noise, config.methods):
        found = [Estimate.of(study.values(noise, method, *path)) for path in measures(config, stage).values()]
        cells = [f"{one.mean:.3g} ± {one.error:.1g}" for one in found]
        rows.append([f"{noise:.0%}", study.label(method), *cells])
    return markdown(["wrong labels", "method", *measures(config, stage)], rows)


def edges(study: Study) -> list[str]:
    """Which chosen values are the smallest or the largest that could be chosen: the best may lie beyond."""
    config = study.config
    found = []
    for record in study.chosen():
        for name, value in record["hyperparameters"].items():
            grid = method_grid(config, record["method"]).get(name, ())
            if len(grid) > 1 and value in (min(grid), max(grid)):
                which = "smallest" if value == min(grid) else "largest"
                method = study.label(record["method"])
                found.append(f"{method} at {record['noise']:.0%}: {name} = {value:g} is the {which} value of its grid")
    return found


def correlation_table(study: Study) -> str:
    """A row for each measure; a column for each noise level and outcome."""
    config = study.config
    rows = []
    for name, path in measures(config, "end").items():
        cells = []
        for noise in config.noise:
            x = np.stack([study.values(noise, method, *path) for method in config.methods])
            for outcome in OUTCOMES.values():
                y = np.stack([outcome(study.records, noise, method) for method in config.methods])
                found = correlate(x, y)
                cells.append(str(found))
        rows.append([name, *cells])
    columns = [f"{noise:.0%}: {outcome}" for noise in config.noise for outcome in OUTCOMES]
    return markdown(["measure at the end", *columns], rows)
