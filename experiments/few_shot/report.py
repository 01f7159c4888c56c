"""What a few-shot study says: a table, a picture, and a report in Markdown."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from experiments.common.markdown import markdown
from experiments.common.plotting import save, style
from experiments.common.store import Record, write_atomically
from experiments.few_shot.config import METHODS, FewShotConfig
from experiments.few_shot.study import candidates, chosen
from experiments.models.config import network
from experiments.study.report.statistics import Estimate, plus_minus, signed


def scores(records: Sequence[Record], method: str, name: str) -> np.ndarray:
    """Of the final runs of a method in percent, shape (seeds, sessions); NaN where there is none."""
    found = {r["seed"]: r[name] for r in records if (r["kind"], r.get("method")) == ("test", method)}
    return 100 * np.array([found[seed] for seed in sorted(found)], float)


def forgetting(records: Sequence[Record], method: str) -> np.ndarray:
    """How much accuracy the base classes have lost since the base session, percentage points, (seeds, sessions)."""
    base = scores(records, method, "base_accuracy")
    return base[:, :1] - base


def result_table(config: FewShotConfig, records: Sequence[Record]) -> str:
    """Accuracy after each session, and what became of the base classes and of the new ones."""
    sessions = scores(records, config.methods[0], "accuracy").shape[1]
    header = ["method", *(f"session {i}, {config.base_classes + i} classes" for i in range(sessions))]
    header += ["over frozen base, last", "forgetting, base classes", "new classes, last"]
    frozen = scores(records, "frozen", "accuracy")[:, -1]
    rows = []
    for method in config.methods:
        accuracy = scores(records, method, "accuracy")
        rows.append(
            [
                METHODS[method].label,
                *(plus_minus(Estimate.of(column), 1) for column in accuracy.T),
                "" if method == "frozen" else signed(Estimate.of(accuracy[:, -1] - frozen)),
                plus_minus(Estimate.of(forgetting(records, method)[:, -1]), 1),
                plus_minus(Estimate.of(scores(records, method, "new_accuracy")[:, -1]), 1),
            ]
        )
    return markdown(header, rows)


def chosen_table(config: FewShotConfig, records: Sequence[Record]) -> str:
    """The hyper-parameters of each method, and how many settings it tried."""
    names = list(dict.fromkeys(name for method in config.methods for name in METHODS[method].own))
    rows = []
    for method in config.methods:
        numbers = chosen(config, records, method)
        tried = len(candidates(config, records, method))
        cells = [
            f"{numbers[name]:g}" + ("" if name in METHODS[method].own else " (base's)") if name in numbers else ""
            for name in names
        ]
        rows.append([METHODS[method].label, str(tried), *cells])
    return markdown(["method", "trials", *names], rows)


def draw(config: FewShotConfig, records: Sequence[Record]) -> Path:
    """Accuracy over all classes seen so far, over the base classes and over the new ones, after each session."""
    panels = {"accuracy": "all classes seen so far", "base_accuracy": "base classes", "new_accuracy": "new classes"}
    with style():
        figure, axes = plt.subplots(1, len(panels), figsize=(13, 4.2), layout="constrained")
        for axis, (name, title) in zip(axes, panels.items(), strict=True):
            for number, method in enumerate(config.methods):
                columns = scores(records, method, name).T
                there = [i for i, column in enumerate(columns) if np.isfinite(column).any()]
                means, errors, _ = zip(*(Estimate.of(columns[i]) for i in there), strict=True)
                x = np.array(there) + 0.06 * (number - (len(config.methods) - 1) / 2)
                mark = {"marker": "o", "markersize": 4, "capsize": 2, "color": METHODS[method].color}
                axis.errorbar(x, means, errors, label=METHODS[method].label, **mark)
            axis.set(xlabel="session", title=title)
            axis.set_xticks(range(scores(records, config.methods[0], name).shape[1]))
            axis.grid(alpha=0.3)
        axes[0].set_ylabel("test accuracy, %")
        axes[0].legend(frameon=False)
        return save(figure, config.workdir / "few_shot.png")


def conclusion(config: FewShotConfig, records: Sequence[Record]) -> str:
    """The result in a sentence."""
    last = {m: Estimate.of(scores(records, m, "accuracy")[:, -1]) for m in config.methods}
    said = ", ".join(f"{METHODS[m].label} {plus_minus(e, 1)} %" for m, e in last.items())
    return f"after the last session, over {config.seeds} seeds: {said}"


def publish(config: FewShotConfig, records: Sequence[Record], made_with: dict[str, str]) -> list[Path]:
    """Writes picture and report into the study's folder, and returns where."""
    picture = draw(config, records)
    started = [record for record in records if record["kind"] == "session"]
    text = [
        f"# Few-shot class-incremental learning on {config.data.name}, {network(config.model)}",
        "",
        f"![accuracy after each session]({picture.name})",
        "",
        f"{config.base_classes} base classes with all their images, then one new class with {config.shots} images in",
        f"each session; {config.shots} images of each old class are kept. Test by nearest class mean, %, among the",
        f"classes seen so far; mean and standard error over {config.seeds} seeds, each with its own order of the",
        "classes, images and initial parameters, the same for every method. Forgetting is the accuracy that the base",
        "classes have lost since the base session, percentage points. Joint training starts anew in each session with",
        "all images so far.",
        "",
        result_table(config, records),
        "",
        "## Hyper-parameters",
        "",
        "Chosen by the validation accuracy after the last session, over all classes, mean of",
        f"{config.tuning_seeds} seeds that are not those of the test. Validation images are never trained on.",
        "",
        chosen_table(config, records),
        "",
        "## How it was made",
        "",
        *(f"- `{r['command']}`, {r['started']}, {r['hardware']}, Python {r['python']}" for r in started),
        "- " + ", ".join(f"{name} {value}" for name, value in made_with.items()),
        "",
    ]
    path = config.workdir / "report.md"
    write_atomically(path, "\n".join(text))
    return [picture, path]
