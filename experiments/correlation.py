"""Does flatness tell how well a network generalizes? Rank correlations over all final runs of a comparison."""

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


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation where both are finite; NaN if there is nothing to compare."""
    finite = np.isfinite(x) & np.isfinite(y)
    if len({*x[finite]}) < 2 or len({*y[finite]}) < 2:
        return float("nan")
    return float(np.corrcoef(rankdata(x[finite]), rankdata(y[finite]))[0, 1])


def correlate(x: np.ndarray, y: np.ndarray) -> Correlation:
    """The correlation over methods and seeds, arrays of shape (methods, seeds).

    The interval is a percentile bootstrap over seeds, since the methods of one seed share its data.
    """
    rng, seeds = np.random.default_rng(0), x.shape[1]
    draws = [rng.integers(0, seeds, seeds) for _ in range(_RESAMPLES)]
    low, high = np.nanpercentile([spearman(x[:, d].ravel(), y[:, d].ravel()) for d in draws], (2.5, 97.5))
    return Correlation(spearman(x.ravel(), y.ravel()), float(low), float(high))


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
                cells.append(f"{found.value:+.2f} ({found.low:+.2f} to {found.high:+.2f})")
        rows.append([name, *cells])
    columns = [f"{noise:.0%}: {outcome}" for noise in config.noise for outcome in OUTCOMES]
    return markdown(["measure at the end", *columns], rows)
