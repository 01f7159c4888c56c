"""What a comparison leaves for its readers: a CSV with every final run, and a report in Markdown."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from experiments.common.store import Record, write_atomically
from experiments.data import DATA_SETS
from experiments.data.config import SPLIT_PER_SEED
from experiments.models.config import network
from experiments.optim.recipes import RECIPES, label
from experiments.study.config import CompareConfig
from experiments.study.plan import TUNING_SEED
from experiments.study.report import figures
from experiments.study.report.study import Study
from experiments.study.report.tables import (
    chosen_table,
    correlation_table,
    domain_table,
    edges,
    flatness_table,
    grid_table,
    paired_table,
    result_table,
    tuned_names,
)

_RUN = ("noise", "method", "seed")
_SCORES = ("diverged", "test_accuracy", "test_loss", "train_accuracy", "train_loss", "generalization_gap")


def publish(study: Study) -> list[Path]:
    """Writes pictures, CSV and report into the study's folder, and returns where."""
    config = study.config
    pictures = [figures.draw(study)]
    if len(config.noise) > 2:
        pictures.append(figures.draw_noise(study))
    if not RECIPES.keys().isdisjoint(config.methods):
        pictures.append(figures.draw_frontier(study))
    if len(figures.ratios(config)) > 3:
        pictures.append(figures.draw_ratios(study))
    if "flatness" in config.measure:
        pictures.append(figures.draw_flatness(study))
    return [*pictures, write_csv(study), write_markdown(study, pictures)]


def write_csv(study: Study) -> Path:
    """One line per final run, hyper-parameters included; run times are left out, so that it is reproducible."""
    config = study.config
    runs, names = study.final(), tuned_names(config)
    measured = [_measured(config, record) for record in runs]
    columns = list(dict.fromkeys(name for row in measured for name in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_RUN, *_SCORES, *columns, *names])
    for record, row in zip(runs, measured, strict=True):
        chosen = [record["hyperparameters"].get(name, "") for name in names]
        scores = [record[name] for name in (*_RUN, *_SCORES)]
        writer.writerow([*scores, *(row.get(name, "") for name in columns), *chosen])
    path = config.workdir / "results.csv"
    write_atomically(path, text.getvalue())
    return path


def write_markdown(study: Study, pictures: Sequence[Path]) -> Path:
    """The report: result, paired differences, chosen hyper-parameters, and how it all came about."""
    path = study.config.workdir / "report.md"
    sections = [
        *_result(study, pictures),
        *_paired(study),
        *(_flatness(study) if study.config.measure else []),
        *_hyperparameters(study),
        *_setting(study),
    ]
    write_atomically(path, "\n".join(sections))
    return path


def task_name(config: CompareConfig) -> str:
    """Data, network and base optimizer."""
    return f"{config.data.name}, {network(config.model)}, {config.base}"


def _result(study: Study, pictures: Sequence[Path]) -> list[str]:
    config = study.config
    base, runs = study.label(config.methods[0]), len(study.summary) * config.seeds
    diverged = sum(row.diverged for row in study.summary)
    stopped = f"**{diverged} of the {runs} final runs diverged**" if diverged else f"None of the {runs} runs diverged"
    names = [study.label(method) for method in config.methods]
    methods = ", ".join(names) if len(names) <= 5 else f"{len(names)} methods"
    return [
        f"# {methods} on {task_name(config)}",
        "",
        "A comparison at small scale: one network, one data set. It says nothing about the rank of the methods on",
        "other problems.",
        "",
        *(f"![{path.stem}]({path.name})" for path in pictures),
        "",
        "## Result",
        "",
        f"Mean and standard error over {_seeds(0, config.seeds)}; a seed decides label noise, initial parameters,",
        f"{_split(config)} *Over {base}* is the mean difference in percentage points,",
        "paired by seed. Training loss is the mean cross-entropy over all training images with the labels that were",
        f"trained on, wrong ones included. {_eigenvalue(config)}{stopped}; means are over those that did not.",
        "Step time is the median ratio of whole runs of the same seed; FLOPs are those of matrix products and",
        "convolutions in the compiled step, the mean over an interval.",
        "",
        result_table(study),
        "",
        *(["By held-out domain:", "", domain_table(study), ""] if DATA_SETS[config.data.name].domains else []),
    ]


def _split(config: CompareConfig) -> str:
    """What a seed decides, and what not."""
    domains = DATA_SETS[config.data.name].domains
    if domains:
        return (
            f"batch order, and which domain is held out as the test set ({', '.join(domains)} in turn), the same\n"
            "for every method. Hyper-parameters are chosen on the other domains, for all held-out ones together."
        )
    if config.data.name in SPLIT_PER_SEED:
        order, fixed = "batch order and training images", "The test set is fixed"
    else:
        order, fixed = "batch order", "The test set is fixed, and so are training and validation images"
    return f"{order}, the same for every method.\n{fixed}, so the standard error leaves out its own sampling."


def _eigenvalue(config: CompareConfig) -> str:
    if "eigenvalues" not in config.measure:
        return ""
    images = f"the first {config.measure_examples} training images"
    return f"The top Hessian eigenvalue is that of the same loss over {images}, without augmentation. "


def _paired(study: Study) -> list[str]:
    return [
        "## Paired differences in test accuracy",
        "",
        "In percentage points, over the same seeds; *better in* so many seeds the method named first was ahead. A run "
        "that diverged is worse than one that did not; the mean is over seeds where neither did. No correction for the "
        "number of comparisons.",
        "",
        paired_table(study),
        "",
    ]


def _flatness(study: Study) -> list[str]:
    return [
        "## Flatness",
        "",
        f"Of the training loss on the first {study.config.measure_examples} training images, without augmentation and "
        "weight decay; mean and standard error over the seeds. R0 and R1 are maxima found by ascent, hence lower "
        "bounds. At the end:",
        "",
        flatness_table(study, "end"),
        "",
        "At half-time:",
        "",
        flatness_table(study, "half"),
        "",
        "Does flatness predict generalization? Spearman's rank correlation over all final runs of a noise level, "
        "methods together, with a 95 % percentile bootstrap over the seeds. Methods differ in more than flatness, so "
        "this is no evidence of a cause.",
        "",
        correlation_table(study),
        "",
    ]


def _hyperparameters(study: Study) -> list[str]:
    config, found = study.config, edges(study)
    warnings = ["Chosen at the edge of its grid, beyond which the best may lie:", "", *(f"- {line}" for line in found)]
    return [
        "## Hyper-parameters",
        "",
        f"Chosen on validation images with their true labels, by mean accuracy over "
        f"{_seeds(TUNING_SEED, config.tuning_seeds)}, ties broken by the validation loss. Each method tried "
        f"{config.trials} points of its grid, drawn at random where the grid is larger. The test set played no part. "
        f"The validation accuracy of the winner is the best of many, hence optimistic.{_order(config)}",
        "",
        chosen_table(study),
        "",
        grid_table(study),
        "",
        *(warnings if found else ["No chosen value lies at the edge of its grid."]),
        "",
    ]


def _order(config: CompareConfig) -> str:
    """How the tuning departs from the usual."""
    base = label(config.methods[0], config.base)
    shared = f" {base} alone tuned learning rate and weight decay, on all of its grid; the others took them over."
    elsewhere = f" The trials are those of the study {config.tuned_in and config.tuned_in.name}."
    return shared * config.base_first + elsewhere * (config.tuned_in is not None)


def _setting(study: Study) -> list[str]:
    config, spent = study.config, study.hours()
    size = "all" if config.data.train_size is None else config.data.train_size
    warmup = f", after a warm-up of {config.warmup:.0%} of the steps" if config.warmup else ""
    decay = "added to the gradient after the method" if config.base == "sgd" else "decoupled, of matrices only"
    return [
        "## Setting",
        "",
        f"- Data: {config.data.name}; {config.data.validation:.0%} of the images that may be trained on are for "
        f"validation, and {size} of the others are trained on, augmentation {config.data.augment}. Wrong labels are "
        "spread evenly over the other classes, in the training set only.",
        f"- Network: {network(config.model)}, {_network(config)}; {config.epochs} epochs of batches of "
        f"{config.batch_size}, {config.base} with momentum {config.momentum}, learning rate with a cosine to 0"
        f"{warmup}, weight decay {decay}.",
        f"- Time: {spent['tune']:.2f} hours of tuning and {spent['test']:.2f} hours of final runs, summed over runs on "
        "one core each, compilation and measurements left out.",
        *[
            f"- Command, {s['started']}: `{s['command']}`; {s['hardware']}; Python {s['python']}."
            for s in study.records
            if s["kind"] == "session"
        ],
        "- Versions: " + ", ".join(f"{name} {version}" for name, version in study.made_with.items()) + ".",
        "",
    ]


def _network(config: CompareConfig) -> str:
    model = config.model
    if model.name == "mlp":
        return "hidden layers of " + ", ".join(map(str, model.hidden))
    return f"width {model.width:.3g}, {_image(config)}"


def _image(config: CompareConfig) -> str:
    size = config.data.image_size or DATA_SETS[config.data.name].image_shape[0]
    return f"images of {size} x {size} pixels"


def _measured(config: CompareConfig, record: Record) -> dict[str, float | None]:
    """What was measured of a run at half-time and at the end, by the name of a column."""
    found: dict[str, float | None] = {}
    for stage in ("half", "end"):
        for name, value in (record.get(stage) or {}).items():
            places = config.rho if name in ("R0", "R1") else range(1, config.k + 1)
            values = zip(places, value, strict=True) if isinstance(value, list) else [("", value)]
            found |= {f"{stage}_{name}" + (f"_{place}" if place else ""): number for place, number in values}
    return found


def _seeds(first: int, count: int) -> str:
    return f"seed {first}" if count == 1 else f"{count} seeds ({first} to {first + count - 1})"
