"""What several studies say together: one report, made from all of their runs."""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from experiments.common.markdown import markdown
from experiments.common.store import write_atomically
from experiments.optim.methods import METHODS, Method
from experiments.optim.recipes import RECIPES, label, recipe
from experiments.study.report.choices import choice_table
from experiments.study.report.over_tasks import PREDICTORS, count, geometric_mean, ratios, samples
from experiments.study.report.statistics import OUTCOMES, Estimate, plus_minus, pool, signed, values
from experiments.study.report.study import Study, Task, tasks

PAPER: tuple[Method, ...] = ("sam", "gam", "sam+gam", "accelerated_gam")
"""What the paper compares with the base optimizer."""
_CLAIMS = (*((name, "plain") for name in PAPER), ("sam+gam", "sam"), ("gam", "sam"), ("accelerated_gam", "gam"))
_MEASURES = (*PREDICTORS, "trace")


def write(studies: Sequence[Study], output: Path, pictures: Iterable[Path], command: str) -> Path:
    """Writes ``evidence.md``."""
    links = [f"![{path.stem}]({path.name})" for path in pictures]
    path = output / "evidence.md"
    sections = (_flatness, _prediction, _others, _choices, _sources)
    text = [*_gains(studies, links), *(line for section in sections for line in section(studies))]
    write_atomically(path, "\n".join([*text, f"Command: `{command}`", ""]))
    return path


def _gains(studies: Sequence[Study], links: Sequence[str]) -> list[str]:
    return [
        "# What the studies say together",
        "",
        *links,
        "",
        "## Gains over the base optimizer",
        "",
        "Test accuracy in percent, mean and standard error over seeds; gains in percentage points, paired by seed; in "
        "bold those whose 95 % confidence interval (Student's t) excludes zero, either way. Every study is here, and "
        "every task of it.",
        "",
        gain_table(tasks(studies), PAPER),
        "",
        "Counted over these tasks, runs that two studies share once (tasks also share data, so they are not "
        "independent): how often the interval of the difference excludes zero, and its mean over tasks with the "
        "standard error of that.",
        "",
        claim_table(tasks(studies)),
        "",
    ]


def gain_table(wanted: Sequence[Task], methods: Sequence[str]) -> str:
    """A row for each task: accuracy of the base optimizer, and what each method gains."""
    rows = []
    for study, noise in wanted:
        config = study.config
        base = study.row(noise, config.methods[0])
        gains = [_gain(study, noise, name) if name in config.methods else "" for name in methods]
        name = f"{label(base.method, config.base)} {plus_minus(base.test_accuracy, 2)}"
        fit = Estimate.of(100 * values(study.records, noise, base.method, "train_accuracy"))
        rows.append([Task(study, noise).label, f"{config.seeds}", name, f"{fit.mean:.1f}", *gains])
    return markdown(["task", "seeds", "base", "its training accuracy", *(label(name, "sgd") for name in methods)], rows)


def _gain(study: Study, noise: float, method: str) -> str:
    row = study.row(noise, method)
    diverged = f" ({row.diverged} diverged)" if row.diverged else ""
    text = signed(row.gain.estimate)
    return (f"**{text}**" if row.gain.estimate.is_clear else text) + diverged


def claim_table(wanted: Sequence[Task]) -> str:
    """How often one method is better than another one."""
    rows = []
    for method, other in _CLAIMS:
        found = count(wanted, method, other)
        if found.tasks == 0:
            continue
        names = f"{label(method, 'sgd')} - {'base' if other == 'plain' else label(other, 'sgd')}"
        rows.append([names, *map(str, found[:-1]), signed(found.mean)])
    return markdown(["methods", "tasks", "better", "clearly better", "clearly worse", "mean over tasks"], rows)


def _flatness(studies: Sequence[Study]) -> list[str]:
    return [
        "## Flatness at the end of training",
        "",
        "Each method's mean over the base optimizer's on the same task; geometric mean over tasks, and in how many "
        "tasks the method is flatter (below 1).",
        "",
        flatness_table(tasks(studies)),
        "",
    ]


def flatness_table(wanted: Sequence[Task]) -> str:
    """How flat each method's networks are, relative to those of the base optimizer."""
    rows = []
    for name in PAPER:
        cells = []
        for measure in _MEASURES:
            found = ratios(wanted, name, "plain", measure)
            flatter = f"({np.sum(found < 1)} of {len(found)})"
            cells.append(f"{geometric_mean(found):.2f} {flatter}" if len(found) > 0 else "")
        rows.append([label(name, "sgd"), *cells])
    return markdown(["method", *_MEASURES], rows)


def _prediction(studies: Sequence[Study]) -> list[str]:
    found = samples(studies, OUTCOMES["test error"])
    networks = sum(sample.outcome.size for sample in found)
    return [
        "## Does flatness predict generalization?",
        "",
        "Spearman's rank correlation with flatness of the training loss, positive where flatter networks do better: "
        f"the mean over the {len(found)} tasks where all of these were measured, {networks} networks, with "
        "95 % percentile bootstraps over the seeds of each task. *Together*: over all networks of a task, whose "
        "methods differ in more than flatness. *Within*: over the seeds of one method, then the mean over methods. "
        "*R1 minus*: by how much the correlation of R1 is above it.",
        "",
        prediction_table(studies),
        "",
    ]


def prediction_table(studies: Sequence[Study]) -> str:
    """A row for each outcome, way of comparing, and measure."""
    rows = []
    for (name, outcome), within in itertools.product(OUTCOMES.items(), (False, True)):
        found = samples(studies, outcome)
        if not found:
            continue
        correlations, above = pool(found, within=within)
        for measure, value, lead in zip(PREDICTORS, correlations, above, strict=True):
            minus = "" if measure == PREDICTORS[0] else str(lead)
            rows.append([name, "within" if within else "together", measure, str(value), minus])
    return markdown(["predicts", "networks", "measure", "rank correlation", "R1 minus"], rows)


def _others(studies: Sequence[Study]) -> list[str]:
    """The neighbours, and the recipes."""
    family = [*(name for name in METHODS if name not in ("plain", *PAPER)), "swad"]
    neighbours = [task for task in tasks(studies) if not {*family}.isdisjoint(task.study.config.methods)]
    cheap = [task for task in tasks(studies) if {"gam", "gam_skip_10"} <= {*task.study.config.methods}]
    return [
        "## The neighbours",
        "",
        gain_table(neighbours, [*PAPER, *family]),
        "",
        "## Cheaper steps",
        "",
        "Gain over the base optimizer, and in brackets the FLOPs of a step relative to it.",
        "",
        recipe_table(cheap),
        "",
    ]


def recipe_table(wanted: Sequence[Task]) -> str:
    """A row for each way to take a step."""
    names = [*PAPER, *(name for name in RECIPES if recipe(name).averaging == "none")]
    rows = []
    for name in names:
        cells = []
        for study, noise in wanted:
            there = name in study.config.methods
            cells.append(f"{_gain(study, noise, name)} ({study.row(noise, name).flop_ratio:.2f})" if there else "")
        rows.append([label(name, "sgd"), *cells])
    return markdown(["step", *(task.label for task in wanted)], [row for row in rows if any(row[1:])])


def _choices(studies: Sequence[Study]) -> list[str]:
    wanted = (("sam", "sam_rho"), ("gam", "gam_rho"), ("gam", "gam_alpha"), ("gam", "gam_rho", "gam_alpha"))
    tables = [(choice_table(tasks(studies), *names), "") for names in wanted]
    return [
        "## Which radii and weights were good",
        "",
        "Validation accuracy in percentage points of the best trial with each value, below the best of all trials of "
        "the method; in brackets how many trials had the value. Few trials are a noisy guide. Beside them the top "
        "Hessian eigenvalue at the end of the base optimizer's runs, where it was measured.",
        "",
        *(line for pair in tables for line in pair),
    ]


def _sources(studies: Sequence[Study]) -> list[str]:
    rows = []
    for study in studies:
        spent = study.hours()
        made = f"jax {study.made_with['jax']}, source {study.made_with['source']}"
        runs = len(study.made_here())
        rows.append([study.name, str(runs), f"{spent['tune']:.2f} + {spent['test']:.2f}", made])
    return [
        "## Sources",
        "",
        "Core hours of training (tuning + final runs), compilation and measurements left out. Commands, seeds, "
        "hardware, grids and choices are in the report of each study.",
        "",
        markdown(["study", "runs", "core hours", "made with"], rows),
        "",
    ]
