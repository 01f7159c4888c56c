"""From the recorded runs of a comparison to means, standard errors and paired differences."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import rankdata, t

from experiments.common.store import Record
from experiments.study.config import CompareConfig


class Estimate(NamedTuple):
    """A mean over seeds, its standard error, and their number."""

    mean: float
    error: float
    size: int

    @classmethod
    def of(cls, values: np.ndarray) -> "Estimate":
        """Of the finite values; those of runs that diverged are NaN."""
        finite = values[np.isfinite(values)]
        mean = float(np.mean(finite)) if len(finite) > 0 else math.nan
        error = float(np.std(finite, ddof=1) / math.sqrt(len(finite))) if len(finite) > 1 else math.nan
        return cls(mean, error, len(finite))

    @property
    def interval(self) -> float:
        """Half of the 95 % confidence interval, by Student's t distribution: 2.8 standard errors for 5 seeds."""
        return float(t.ppf(0.975, self.size - 1)) * self.error

    @property
    def is_clear(self) -> bool:
        """Whether zero is outside of that interval."""
        return abs(self.mean) > self.interval


class Difference(NamedTuple):
    """A paired difference between two methods: per seed, both saw the same data, noise, initialisation and batches.

    Attributes:
      estimate: over the seeds where neither diverged.
      wins: seeds where the first was better, or the other one diverged.
      losses: seeds where it was worse, or it alone diverged.
    """

    estimate: Estimate
    wins: int
    losses: int


@dataclasses.dataclass(frozen=True)
class Row:
    """One method at one noise level, over the seeds that did not diverge. Accuracies in percent."""

    noise: float
    method: str
    diverged: int
    test_accuracy: Estimate
    gain: Difference
    train_loss: Estimate
    top_eigenvalue: Estimate | None
    time_ratio: float
    flop_ratio: float


def values(records: Sequence[Record], noise: float, method: str, *path: str | int) -> np.ndarray:
    """What the final runs of a method recorded at a path of names and places, by seed; NaN where there is nothing."""
    found = {
        record["seed"]: _at(record, path)
        for record in records
        if record["kind"] == "test" and (record["noise"], record["method"]) == (noise, method)
    }
    return np.array([found[seed] for seed in sorted(found)])


def _where_finite(records: Sequence[Record], noise: float, method: str, field: str) -> np.ndarray:
    """As :func:`values`, with NaN for the runs that diverged."""
    diverged = values(records, noise, method, "diverged").astype(bool)
    return np.where(diverged, math.nan, values(records, noise, method, field))


def _median(values: np.ndarray) -> float:
    """Of the finite values."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) > 0 else math.nan


def _at(record: Any, path: Sequence[str | int]) -> float:
    for step in path:
        if record is None:
            break
        record = record[step]
    return math.nan if record is None else record


def difference(records: Sequence[Record], noise: float, method: str, other: str) -> Difference:
    """Test accuracy of ``method`` minus that of ``other``, in percentage points, paired by seed."""
    one, two = (100 * values(records, noise, name, "test_accuracy") for name in (method, other))
    rank_one, rank_two = (np.nan_to_num(accuracies, nan=-1.0) for accuracies in (one, two))
    return Difference(Estimate.of(one - two), int(np.sum(rank_one > rank_two)), int(np.sum(rank_one < rank_two)))


def summarize(config: CompareConfig, records: Sequence[Record]) -> list[Row]:
    """One row per noise level and method. Gains and ratios are relative to the first method, normally SGD.

    The time ratio is the median, over the final runs of all noise levels, of the ratio to the first method's run with
    the same seed, which ran just before.
    """
    base = config.methods[0]
    flops = {record["method"]: record["flops_per_step"] for record in records if record["kind"] == "cost"}

    def eigenvalue(noise: float, method: str) -> Estimate | None:
        known = "eigenvalues" in config.measure
        return Estimate.of(values(records, noise, method, "end", "eigenvalues", 0)) if known else None

    def seconds(method: str) -> np.ndarray:
        """NaN where the run diverged and stopped early."""
        return np.concatenate([_where_finite(records, noise, method, "seconds") for noise in config.noise])

    return [
        Row(
            noise=noise,
            method=method,
            diverged=int(sum(values(records, noise, method, "diverged"))),
            test_accuracy=Estimate.of(100 * values(records, noise, method, "test_accuracy")),
            gain=difference(records, noise, method, base),
            train_loss=Estimate.of(values(records, noise, method, "train_loss")),
            top_eigenvalue=eigenvalue(noise, method),
            time_ratio=_median(seconds(method) / seconds(base)),
            flop_ratio=(flops[method] or math.nan) / (flops[base] or math.nan),
        )
        for noise in config.noise
        for method in config.methods
    ]


def plus_minus(estimate: Estimate, digits: int) -> str:
    """A mean and its standard error."""
    return f"{estimate.mean:.{digits}f} ± {estimate.error:.{digits}f}"


def signed(estimate: Estimate) -> str:
    """A difference and its standard error."""
    return f"{estimate.mean:+.2f} ± {estimate.error:.2f}"


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
