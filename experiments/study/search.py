"""Hyper-parameter search with the same budget for every method."""

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from experiments.common.errors import require
from experiments.optim.config import OptimConfig
from experiments.optim.methods import BASE, METHODS
from experiments.optim.recipes import hyperparameters, recipe
from experiments.study.config import CompareConfig


def method_grid(config: CompareConfig, name: str) -> dict[str, tuple[float, ...]]:
    """The values that a method or recipe may choose from, by hyper-parameter."""
    shares, taken = METHODS[recipe(name).method].shares, from_base(config, name)
    return {
        field: tuple(value for value in getattr(config.grid, field) if value <= 1 or field not in shares)
        for field in hyperparameters(name)
        if field not in taken
    }


def from_base(config: CompareConfig, name: str) -> tuple[str, ...]:
    """The hyper-parameters that a method or recipe takes over from the first method."""
    return BASE if config.base_first and name != config.methods[0] else ()


def grid_size(config: CompareConfig, name: str) -> int:
    """Number of settings in the grid of a method or recipe."""
    return math.prod(map(len, method_grid(config, name).values()))


def num_trials(config: CompareConfig, name: str) -> int:
    """How many settings a method or recipe tries.

    With ``base_first`` the first method tries all of its grid, and what has nothing of its own to tune one.
    """
    is_base = config.base_first and name == config.methods[0]
    return grid_size(config, name) if is_base or not method_grid(config, name) else config.trials


def trials(config: CompareConfig, name: str, chosen: Mapping[str, float] | None = None) -> list[OptimConfig]:
    """The settings that a method tries: ``config.trials`` distinct points of its grid, in the order of the grid.

    All of the grid where it is that small; otherwise drawn at random, always the same ones. A recipe tries the points
    of its method.

    Args:
      config: the comparison.
      name: of the method or recipe.
      chosen: what the first method has chosen, to be taken over with ``base_first``; if not given, the first values of
        the grid.
    """
    method, options = recipe(name).method, recipe(name).options
    grid = method_grid(config, name)
    points = list(itertools.product(*grid.values()))
    tried = num_trials(config, name)
    require(
        len(points) >= tried,
        f"every method gets the same number of trials, but the grid of {name!r} has {len(points)} points for "
        f"trials={tried}: widen the grid or ask for fewer trials",
    )
    rng = np.random.default_rng([0, METHODS[method].trial_seed])
    drawn = np.sort(rng.choice(len(points), tried, replace=False))
    taken = {field: (chosen or {}).get(field, getattr(config.grid, field)[0]) for field in from_base(config, name)}
    base: Any = {"base": config.base, "momentum": config.momentum, "warmup": config.warmup, **options, **taken}
    return [OptimConfig(method=method, **base, **dict(zip(grid, points[i], strict=True))) for i in drawn]


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
