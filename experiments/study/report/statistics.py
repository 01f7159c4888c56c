"""From the recorded runs of a comparison to means, standard errors and paired differences."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t

from experiments.config import CompareConfig
from experiments.store import Record


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
