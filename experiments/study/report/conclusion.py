"""What a finished study says, in a sentence: how a method fares against its base, and whether that is clear."""

from experiments.study.report.statistics import Row, plus_minus
from experiments.study.report.study import Study

_FEW = 5
"""Methods that are named; more are counted."""


def conclusion(study: Study) -> str:
    """A line for each noise level: the accuracies of one method and the base optimizer, and which methods differ."""
    base = study.label(study.config.methods[0])
    subject = _subject(study)
    lines = []
    for noise in study.config.noise:
        row, first = study.row(noise, subject), study.row(noise, study.config.methods[0])
        said = f"{labels(noise)}: {study.label(subject)} {plus_minus(row.test_accuracy, 2)} % test accuracy"
        if subject != study.config.methods[0]:
            wins = f"better on {row.gain.wins} of {study.config.seeds} seeds"
            said += f" against {base}'s {plus_minus(first.test_accuracy, 2)} %, {wins}; {_verdict(study, noise)}"
        lines.append(said)
    return "\n".join(lines)


def headline(study: Study) -> str:
    """For a picture: what the method gains over the base optimizer at each noise level."""
    subject, base = _subject(study), study.label(study.config.methods[0])
    if subject == study.config.methods[0]:
        return f"Test accuracy of {base}"
    rows = [study.row(noise, subject) for noise in study.config.noise]
    gains = [
        f"{row.gain.estimate.mean:+.1f} ± {row.gain.estimate.error:.1f} with {labels(row.noise)}"
        + ("" if row.gain.estimate.is_clear else " (within the noise)")
        for row in rows
    ]
    return f"{study.label(subject)} over {base}, points of test accuracy: {', '.join(gains)}"


def labels(noise: float) -> str:
    """A noise level in words."""
    return f"{noise:.0%} wrong labels" if noise else "clean labels"


def _subject(study: Study) -> str:
    """The method that a conclusion is about: GAM, or the first one beside the base optimizer."""
    methods = study.config.methods
    return "gam" if "gam" in methods else methods[min(1, len(methods) - 1)]


def _verdict(study: Study, noise: float) -> str:
    """Which methods differ from the base optimizer by more than the noise: zero is outside the 95 % interval."""
    base, *others = study.config.methods
    rows = [study.row(noise, method) for method in others]
    kinds = {
        "clearly better:": [row for row in rows if row.gain.estimate.is_clear and row.gain.estimate.mean > 0],
        "clearly worse:": [row for row in rows if row.gain.estimate.is_clear and row.gain.estimate.mean < 0],
        "no clear difference:": [row for row in rows if not row.gain.estimate.is_clear],
    }
    many = len(others) > _FEW
    found = [f"{kind} {len(rows) if many else _names(study, rows)}" for kind, rows in kinds.items() if rows]
    return f"over {study.label(base)} {'; '.join(found)}"


def _names(study: Study, rows: list[Row]) -> str:
    return ", ".join(study.label(row.method) for row in rows)
