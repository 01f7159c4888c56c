"""Compares methods fairly: each is tuned on validation data with the same budget, then tested with fresh seeds."""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import rich.progress

from experiments.config import CompareConfig
from experiments.data import Split, digits
from experiments.fit import Trainer, evaluate, loss_fn
from experiments.optim import LABELS, OptimConfig
from experiments.provenance import session
from experiments.search import best_trial, trials
from experiments.store import Record, Store
from gam_jax.flatness import hessian_top_eigenvalues

TUNING_SEED = 1000
"""The first seed of the tuning. The final runs use 0, 1, ..., so that no seed is both selected on and reported."""


def check(config: CompareConfig) -> None:
    """Refuses what cannot run; call it before anything is written."""
    digits(config.data, 0.0, 0)
    for method in config.methods:
        trials(config, method)


def compare(config: CompareConfig, store: Store, progress: rich.progress.Progress, command: str) -> None:
    """Does what the store does not hold yet of the comparison, and appends it there run by run.

    Args:
      config: what to compare.
      store: the runs so far.
      progress: where to show progress.
      command: how the user started this, for the record.
    """
    candidates = {method: trials(config, method) for method in config.methods}
    split = functools.cache(functools.partial(digits, config.data))
    trainer = Trainer(config.hidden, config.batch_size, config.epochs)
    tasks = plan(config)
    missing = [task for task in tasks if task not in store]
    if missing:
        sessions = sum(record["kind"] == "session" for record in store.records)
        store.append({"kind": "session", "seed": sessions} | session(command))
    bar = progress.add_task("", total=len(tasks), completed=len(tasks) - len(missing))
    for task in missing:
        progress.update(bar, description=_describe(task))
        method, noise, seed = task["method"], task.get("noise", 0.0), task.get("seed", 0)
        trial = chosen_trial(store.records, noise, method) if task["kind"] == "test" else task.get("trial", 0)
        optim = candidates[method][trial]
        measured = _MEASURE[task["kind"]](trainer, optim, split(noise, seed), seed)
        store.append(task | {"hyperparameters": optim.tuned()} | measured)
        progress.advance(bar)


def plan(config: CompareConfig) -> list[Record]:
    """All runs in order: first every trial of every method, then the tests, seed by seed so that methods interleave."""
    costs = [{"kind": "cost", "method": method} for method in config.methods]
    tune = [
        {"kind": "tune", "noise": noise, "method": method, "trial": trial, "seed": TUNING_SEED + seed}
        for noise in config.noise
        for method in config.methods
        for trial in range(config.trials)
        for seed in range(config.tuning_seeds)
    ]
    test = [
        {"kind": "test", "noise": noise, "method": method, "seed": seed}
        for noise in config.noise
        for seed in range(config.seeds)
        for method in config.methods
    ]
    return [*costs, *tune, *test]


def chosen_trial(records: Iterable[Record], noise: float, method: str) -> int:
    """Index of the trial that the validation data prefer."""
    wanted = ("tune", noise, method)
    return best_trial(r for r in records if (r["kind"], r.get("noise"), r.get("method")) == wanted)


def _cost(trainer: Trainer, optim: OptimConfig, split: Split, seed: int) -> Record:
    return {"flops_per_step": _number(trainer.flops_per_step(optim, split.train))}


def _tune(trainer: Trainer, optim: OptimConfig, split: Split, seed: int) -> Record:
    params, _ = trainer.fit(optim, seed, split.train)
    scores = evaluate(params, split.validation)
    return {"validation_accuracy": _number(scores.accuracy), "validation_loss": _number(scores.loss)}


def _test(trainer: Trainer, optim: OptimConfig, split: Split, seed: int) -> Record:
    params, seconds = trainer.fit(optim, seed, split.train)
    train, test = evaluate(params, split.train), evaluate(params, split.test)
    eigenvalue = math.nan
    if math.isfinite(train.loss):  # a diverged run has no Hessian
        batches = jax.tree.map(lambda array: array[None], split.train)
        key = jax.random.key(seed)
        eigenvalue = hessian_top_eigenvalues(loss_fn, params, batches, key=key).values[0]
    return {
        "test_accuracy": _number(test.accuracy),
        "train_accuracy": _number(train.accuracy),
        "train_loss": _number(train.loss),
        "top_eigenvalue": _number(eigenvalue),
        "seconds": seconds,
    }


_MEASURE: dict[str, Callable[[Trainer, OptimConfig, Split, int], Record]] = {
    "cost": _cost,
    "tune": _tune,
    "test": _test,
}


def _number(value: Any) -> float | None:
    """A float that JSON holds exactly; None for inf and NaN."""
    return float(value) if math.isfinite(value) else None


def _describe(task: Record) -> str:
    if task["kind"] == "cost":
        return f"compiling {LABELS[task['method']]}"
    doing = "tuning" if task["kind"] == "tune" else "testing"
    return f"{doing} {LABELS[task['method']]}, {task['noise']:.0%} wrong labels"
