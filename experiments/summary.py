"""From the recorded runs of a comparison to means, standard errors and paired differences."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.config import CompareConfig
from experiments.store import Record


class Estimate(NamedTuple):
    """A mean over seeds and its standard error."""

    mean: float
    error: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Estimate":
        return cls(float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(len(values))))


class Difference(NamedTuple):
    """A paired difference between two methods: per seed, both saw the same data, noise, initialisation and batches."""

    estimate: Estimate
    wins: int
    losses: int


@dataclasses.dataclass(frozen=True)
class Row:
    """One method at one noise level, over all seeds. Accuracies in percent."""

    noise: float
    method: str
    test_accuracy: Estimate
    gain: Difference
    train_loss: Estimate
    top_eigenvalue: Estimate
    time_ratio: float
    flop_ratio: float


def values(records: Sequence[Record], noise: float, method: str, field: str) -> np.ndarray:
    """What the final runs of a method recorded under ``field``, by seed; NaN where a run diverged."""
    found = {
        record["seed"]: math.nan if record[field] is None else record[field]
        for record in records
        if record["kind"] == "test" and (record["noise"], record["method"]) == (noise, method)
    }
    return np.array([found[seed] for seed in sorted(found)])


def difference(records: Sequence[Record], noise: float, method: str, other: str) -> Difference:
    """Test accuracy of ``method`` minus that of ``other``, in percentage points, paired by seed."""
    one, two = (100 * values(records, noise, name, "test_accuracy") for name in (method, other))
    return Difference(Estimate.of(one - two), int(np.sum(one > two)), int(np.sum(one < two)))


def summarize(config: CompareConfig, records: Sequence[Record]) -> list[Row]:
    """One row per noise level and method. Gains and ratios are relative to the first method, normally SGD.

    The time ratio is the median, over the final runs of all noise levels, of the ratio to the first method's run with
    the same seed, which ran just before.
    """
    base = config.methods[0]
    flops = {record["method"]: record["flops_per_step"] for record in records if record["kind"] == "cost"}

    def seconds(method: str) -> np.ndarray:
        return np.concatenate([values(records, noise, method, "seconds") for noise in config.noise])

    return [
        Row(
            noise=noise,
            method=method,
            test_accuracy=Estimate.of(100 * values(records, noise, method, "test_accuracy")),
            gain=difference(records, noise, method, base),
            train_loss=Estimate.of(values(records, noise, method, "train_loss")),
            top_eigenvalue=Estimate.of(values(records, noise, method, "top_eigenvalue")),
            time_ratio=float(np.median(seconds(method) / seconds(base))),
            flop_ratio=(flops[method] or math.nan) / (flops[base] or math.nan),
        )
        for noise in config.noise
        for method in config.methods
    ]
