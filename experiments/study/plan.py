"""The runs of a study."""

from collections.abc import Container, Iterable
from typing import Any

from experiments.common import store
from experiments.common.store import Record, Store
from experiments.optim.config import OptimConfig
from experiments.study.config import CompareConfig
from experiments.study.search import best_trial, from_base, num_trials, trials

KEY = ("kind", "noise", "method", "trial", "seed")
"""The fields that say which run of a study a record is about."""
TUNING_SEED = 1000
"""The first seed of the tuning. The final runs use 0, 1, ..., so that no seed is both selected on and reported."""


def key(record: Record) -> tuple[Any, ...]:
    """Which run of a study a record is about."""
    return store.key(record, KEY)


def plan(config: CompareConfig) -> list[Record]:
    """All runs in order: of every noise level first the trials, then the tests, with the methods interleaved."""
    costs: list[Record] = [{"kind": "cost", "method": method} for method in config.methods]
    runs = [run for noise in config.noise for run in (*tuning(config, noise, config.methods), *_tests(config, noise))]
    return [*costs, *runs]


def chosen_trial(records: Iterable[Record], noise: float, method: str) -> int:
    """Index of the trial that the validation data prefer."""
    wanted = ("tune", noise, method)
    return best_trial(r for r in records if (r["kind"], r.get("noise"), r.get("method")) == wanted)


def tuning(config: CompareConfig, noise: float, methods: Iterable[str]) -> list[Record]:
    tried = {method: num_trials(config, method) for method in methods}
    return [
        {"kind": "tune", "noise": noise, "method": method, "trial": trial, "seed": TUNING_SEED + seed}
        for trial in range(max(tried.values()))
        for seed in range(config.tuning_seeds)
        for method in tried
        if trial < tried[method]
    ]


def _tests(config: CompareConfig, noise: float) -> list[Record]:
    return [
        {"kind": "test", "noise": noise, "method": method, "seed": seed}
        for seed in range(config.seeds)
        for method in config.methods
    ]


def is_ready(config: CompareConfig, task: Record, store: Container[Record]) -> bool:
    """Whether all that decides a run is known: of a test, every trial of its method at its noise level."""
    needed = [task["method"]] if task["kind"] == "test" else []
    if task["kind"] == "tune" and from_base(config, task["method"]):
        needed = [config.methods[0]]
    return all(run in store for method in needed for run in tuning(config, task["noise"], [method]))


def settings(config: CompareConfig, task: Record, store: Store) -> list[OptimConfig]:
    """What the method of a run tries at its noise level."""
    name, chosen = task["method"], None
    if task["kind"] != "cost" and from_base(config, name):
        first = config.methods[0]
        base = trials(config, first)[chosen_trial(store.records, task["noise"], first)]
        chosen = base.tuned()
    return trials(config, name, chosen)


def trial(config: CompareConfig, task: Record, store: Store) -> int:
    """The trial whose hyper-parameters a run has."""
    if task["kind"] == "test":
        return chosen_trial(store.records, task["noise"], task["method"])
    return task.get("trial", 0)
