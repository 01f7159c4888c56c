"""Does flatness tell how well a network generalizes? Rank correlations over the final runs of a task, and of many."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from experiments.config import CompareConfig
from experiments.store import Record
from experiments.summary import values
from experiments.tables import markdown, measures

_RESAMPLES = 2000
OUTCOMES: dict[str, Callable[..., np.ndarray]] = {
    "test loss - training loss": lambda *of: values(*of, "generalization_gap"),
    "test error": lambda *of: 1 - values(*of, "test_accuracy"),
}
"""What flatness may predict."""


class Correlation(NamedTuple):
    """Spearman's rank correlation, and where 95 % of it lie when the seeds are drawn anew."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.2f} ({self.low:+.2f} to {self.high:+.2f})"


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation along the last axis, where both are finite; NaN if there is nothing to compare."""
    both = np.isfinite(x) & np.isfinite(y)
    ranks = [rankdata(np.where(both, values, np.nan), axis=-1, nan_policy="omit") for values in (x, y)]
    count = both.sum(-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        x, y = (np.where(both, rank - np.nansum(rank, -1, keepdims=True) / count, 0.0) for rank in ranks)
        return (x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1))


def correlate(x: np.ndarray, y: np.ndarray) -> Correlation:
    """The correlation over methods and seeds, arrays of shape (methods, seeds).

    The interval is a percentile bootstrap over seeds, since the methods of one seed share its data.
    """
    return pool([Sample(x[None], y)], within=False)[0][0]


class Sample(NamedTuple):
    """The final runs of a task.

    Attributes:
      measures: flatness, shape (measures, methods, seeds).
      outcome: what it may predict, (methods, seeds).
    """

    measures: np.ndarray
    outcome: np.ndarray

    def correlations(self, seeds: np.ndarray, *, within: bool) -> np.ndarray:
        """Of each measure with the outcome over some seeds, with any leading axes: shape (measures, *axes).

        Methods together, or the mean over single methods.
        """
        x, y = np.moveaxis(self.measures[..., seeds], 1, -2), np.moveaxis(self.outcome[..., seeds], 0, -2)
        if within:
            single = spearman(x, y)
            known = np.isfinite(single)
            with np.errstate(invalid="ignore"):
                return np.where(known, single, 0.0).sum(-1) / known.sum(-1)
        return spearman(x.reshape(*x.shape[:-2], -1), y.reshape(*y.shape[:-2], -1))


def pool(samples: Sequence[Sample], *, within: bool) -> tuple[list[Correlation], list[Correlation]]:
    """The mean rank correlation over tasks of each measure, and by how much that of the first one is above it.

    The intervals are percentile bootstraps over the seeds of each task; they say nothing of other tasks.
    """
    rng = np.random.default_rng(0)
    sizes = [sample.outcome.shape[1] for sample in samples]
    drawn = [rng.integers(0, size, (_RESAMPLES, size)) for size in sizes]
    seeds = [np.vstack([np.arange(size), draws]) for size, draws in zip(sizes, drawn, strict=True)]
    of = [sample.correlations(rows, within=within) for sample, rows in zip(samples, seeds, strict=True)]
    mean = np.mean(of, axis=0)
    return _intervals(mean), _intervals(mean[:1] - mean)


def _intervals(values: np.ndarray) -> list[Correlation]:
    """Of arrays whose last axis has the value, then those of the resamples."""
    low, high = np.nanpercentile(values[:, 1:], (2.5, 97.5), axis=1)
    return [Correlation(*map(float, found)) for found in zip(values[:, 0], low, high, strict=True)]


def correlation_table(config: CompareConfig, records: Sequence[Record]) -> str:
    """A row for each measure; a column for each noise level and outcome."""
    rows = []
    for name, path in measures(config, "end").items():
        cells = []
        for noise in config.noise:
            x = np.stack([values(records, noise, method, *path) for method in config.methods])
            for outcome in OUTCOMES.values():
                y = np.stack([outcome(records, noise, method) for method in config.methods])
                found = correlate(x, y)
                cells.append(str(found))
        rows.append([name, *cells])
    columns = [f"{noise:.0%}: {outcome}" for noise in config.noise for outcome in OUTCOMES]
    return markdown(["measure at the end", *columns], rows)
