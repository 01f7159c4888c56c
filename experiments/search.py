"""Hyper-parameter search with the same budget for every method."""

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from experiments.config import CompareConfig, require
from experiments.optim import HYPERPARAMETERS, METHODS, Method, OptimConfig

_SHARES: dict[str, tuple[str, ...]] = {"accelerated_gam": ("gam_alpha", "beta"), "fad": ("gam_alpha",)}
"""Weights that are shares in these methods: larger values than 1 in the common grid are not for them."""


def method_grid(config: CompareConfig, method: Method) -> dict[str, tuple[float, ...]]:
    """The values that a method may choose from, by hyper-parameter."""
    shares = _SHARES.get(method, ())
    return {
        name: tuple(value for value in getattr(config.grid, name) if value <= 1 or name not in shares)
        for name in HYPERPARAMETERS[method]
    }


def grid_size(config: CompareConfig, method: Method) -> int:
    """Number of settings in the grid of a method."""
    return math.prod(map(len, method_grid(config, method).values()))


def trials(config: CompareConfig, method: Method) -> list[OptimConfig]:
    """The settings that a method tries: ``config.trials`` distinct points of its grid, in the order of the grid.

    All of the grid where it is that small; otherwise drawn at random, always the same ones.
    """
    grid = method_grid(config, method)
    points = list(itertools.product(*grid.values()))
    require(
        len(points) >= config.trials,
        f"every method gets the same number of trials, but the grid of {method!r} has {len(points)} points for "
        f"trials={config.trials}: widen the grid or ask for fewer trials",
    )
    rng = np.random.default_rng([0, METHODS.index(method)])
    drawn = np.sort(rng.choice(len(points), config.trials, replace=False))
    base: Any = {"base": config.base, "momentum": config.momentum, "warmup": config.warmup}
    interval = 1 if method == "plain" else config.interval
    return [
        OptimConfig(method=method, interval=interval, **base, **dict(zip(grid, points[i], strict=True))) for i in drawn
    ]


def best_trial(records: Iterable[Mapping[str, Any]]) -> int:
    """The trial with the best mean validation accuracy over its seeds; ties go to the lower validation loss.

    A trial of which a run diverged loses against every other; of such trials the first wins.
    """
    scores: dict[int, list[tuple[float, float]]] = {}
    for record in records:
        diverged = record["diverged"]
        score = (-math.inf, -math.inf) if diverged else (record["validation_accuracy"], -record["validation_loss"])
        scores.setdefault(record["trial"], []).append(score)
    return max(sorted(scores), key=lambda trial: tuple(np.mean(scores[trial], axis=0)))
