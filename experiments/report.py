"""What a comparison leaves for its readers: a table, a CSV with every final run, and a report in Markdown."""

import csv
import io
import itertools
from collections.abc import Sequence
from pathlib import Path

from experiments.compare import TUNING_SEED
from experiments.config import CompareConfig
from experiments.optim import HYPERPARAMETERS, LABELS
from experiments.provenance import provenance
from experiments.search import grid_size
from experiments.store import Record, write_atomically
from experiments.summary import Difference, Estimate, Row, difference

_ALL = HYPERPARAMETERS["sam+gam"]
_RUN = ("noise", "method", "seed")
_MEASURED = ("test_accuracy", "train_accuracy", "train_loss", "top_eigenvalue")


def table(summary: Sequence[Row]) -> str:
    """The result, aligned for a terminal and valid Markdown at once."""
    base = LABELS[summary[0].method]
    header = ["wrong labels", "method", "test accuracy %", f"over {base}", "training loss", "top eigenvalue"]
    rows = [
        [
            f"{row.noise:.0%}",
            LABELS[row.method],
            _plus_minus(row.test_accuracy, 2),
            "" if LABELS[row.method] == base else f"{_signed(row.gain.estimate)}",
            _plus_minus(row.train_loss, 3),
            _plus_minus(row.top_eigenvalue, 2),
            f"{row.time_ratio:.1f} x",
            f"{row.flop_ratio:.2f} x",
        ]
        for row in summary
    ]
    return markdown([*header, "step time", "step FLOPs"], rows)


def write_csv(config: CompareConfig, records: Sequence[Record]) -> Path:
    """One line per final run, hyper-parameters included; run times are left out, so that it is reproducible."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_RUN, *_MEASURED, *_ALL])
    for record in _final(config, records):
        chosen = [record["hyperparameters"].get(name, "") for name in _ALL]
        writer.writerow([*(record[name] for name in _RUN), *(record[name] for name in _MEASURED), *chosen])
    path = config.workdir / "results.csv"
    write_atomically(path, text.getvalue())
    return path


def write_markdown(config: CompareConfig, summary: Sequence[Row], records: Sequence[Record]) -> Path:
    """The report: result, paired differences, chosen hyper-parameters, and how it all came about."""
    path = config.workdir / "report.md"
    write_atomically(path, "\n".join(_sections(config, summary, records)))
    return path


def _sections(config: CompareConfig, summary: Sequence[Row], records: Sequence[Record]) -> list[str]:
    methods = [LABELS[method] for method in config.methods]
    sessions = [record for record in records if record["kind"] == "session"]
    return [
        f"# {', '.join(methods)} on handwritten digits",
        "",
        "A demonstration at small scale: one small network, one small data set. It shows that the methods work and "
        "what they cost; it says nothing about their rank on other problems.",
        "",
        "![Test accuracy and sharpness of each method](comparison.png)",
        "",
        "## Result",
        "",
        f"Mean and standard error over {_seeds(0, config.seeds)}; a seed decides training images, label "
        "noise, initial parameters and batch order, the same for every method. The test set is fixed, so the standard "
        f"error leaves out its own sampling. *Over {methods[0]}* is the mean difference in percentage points, paired "
        "by seed. Training loss and top Hessian eigenvalue are those of the mean cross-entropy over all training "
        "images with the labels that were trained on, wrong ones included. Step time is the median ratio of runs that "
        "took turns on one machine; FLOPs are counted by XLA in the compiled step.",
        "",
        table(summary),
        "",
        "## Paired differences in test accuracy",
        "",
        "In percentage points, over the same seeds; *better in* so many seeds the method named first was "
        "ahead. No correction for the number of comparisons.",
        "",
        _paired_table(config, records),
        "",
        "## Hyper-parameters",
        "",
        f"Chosen on validation images with their true labels, by mean accuracy over "
        f"{_seeds(TUNING_SEED, config.tuning_seeds)}, ties broken by the validation loss. Each method "
        f"tried {config.trials} points of its grid, drawn at random where the grid is larger. The test set played no "
        "part. The validation accuracy of the winner is the best of many, hence optimistic.",
        "",
        _chosen_table(config, records),
        "",
        _grid_table(config),
        "",
        "## Setting",
        "",
        f"- Data: scikit-learn's digits, {config.data.train_size} training and {config.data.test_size} test images, "
        "the rest for validation. Wrong labels are spread evenly over the other classes, in the training set only.",
        f"- Network: fully connected, {' - '.join(map(str, (64, *config.hidden, 10)))}, ReLU; {config.steps} steps of "
        f"{config.batch_size} images ({config.epochs} epochs), momentum {config.momentum}, learning rate with a cosine "
        "to 0, weight decay added to the gradient after SAM and GAM.",
        *[f"- Command, {s['started']}: `{s['command']}`; {s['hardware']}; Python {s['python']}." for s in sessions],
        "- Versions: " + ", ".join(f"{name} {version}" for name, version in provenance().items()) + ".",
        "",
    ]


def _paired_table(config: CompareConfig, records: Sequence[Record]) -> str:
    rows = []
    for noise, (other, method) in itertools.product(config.noise, itertools.combinations(config.methods, 2)):
        found = difference(records, noise, method, other)
        rows.append([f"{noise:.0%}", f"{LABELS[method]} - {LABELS[other]}", *_cells(found, config.seeds)])
    return markdown(["wrong labels", "methods", "difference", "better in", "worse in", "equal in"], rows)


def _cells(found: Difference, seeds: int) -> list[str]:
    return [_signed(found.estimate), *map(str, (found.wins, found.losses, seeds - found.wins - found.losses))]


def _chosen_table(config: CompareConfig, records: Sequence[Record]) -> str:
    rows = []
    for record in _final(config, records):
        if record["seed"] == 0:
            scores = [
                100 * r["validation_accuracy"]
                for r in records
                if r["kind"] == "tune"
                and all(r[name] == record[name] for name in ("noise", "method", "hyperparameters"))
            ]
            chosen = [f"{record['hyperparameters'].get(name, '')}" for name in _ALL]
            validation = f"{sum(scores) / len(scores):.2f}"
            rows.append([f"{record['noise']:.0%}", LABELS[record["method"]], *chosen, validation])
    return markdown(["wrong labels", "method", *_ALL, "validation accuracy %"], rows)


def _grid_table(config: CompareConfig) -> str:
    rows = [
        [LABELS[method], *(_values(config, name) if name in HYPERPARAMETERS[method] else "" for name in _ALL)]
        + [f"{config.trials} of {grid_size(config, method)}"]
        for method in config.methods
    ]
    return markdown(["grid", *_ALL, "points tried"], rows)


def _values(config: CompareConfig, name: str) -> str:
    return ", ".join(f"{value:g}" for value in getattr(config.grid, name))


def _final(config: CompareConfig, records: Sequence[Record]) -> list[Record]:
    """The final runs, ordered by noise, method and seed."""
    runs = [record for record in records if record["kind"] == "test"]
    return sorted(runs, key=lambda r: (r["noise"], config.methods.index(r["method"]), r["seed"]))


def _seeds(first: int, count: int) -> str:
    return f"seed {first}" if count == 1 else f"{count} seeds ({first} to {first + count - 1})"


def _plus_minus(estimate: Estimate, digits: int) -> str:
    return f"{estimate.mean:.{digits}f} ± {estimate.error:.{digits}f}"


def _signed(estimate: Estimate) -> str:
    return f"{estimate.mean:+.2f} ± {estimate.error:.2f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )
