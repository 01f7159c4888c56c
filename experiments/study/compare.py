"""Compares methods fairly: each is tuned on validation data with the same budget, then tested with fresh seeds."""

from collections.abc import Container, Iterable

import rich.progress

from experiments.config import SPLIT_PER_SEED, CompareConfig, require
from experiments.data import DATA_SETS, open_data
from experiments.job import Wanted, make_job
from experiments.optim import OptimConfig
from experiments.pool import open_pool
from experiments.provenance import session
from experiments.recipes import label, recipe
from experiments.search import best_trial, from_base, num_trials, trials
from experiments.setup import assemble, make_chain
from experiments.store import Record, Store
from experiments.tuned import adopt

TUNING_SEED = 1000
"""The first seed of the tuning. The final runs use 0, 1, ..., so that no seed is both selected on and reported."""


def check(config: CompareConfig) -> None:
    """Refuses what cannot run; call it before anything is written."""
    candidates = {name: trials(config, name) for name in config.methods}
    data = config.data
    require(DATA_SETS[data.name].in_memory, f"{data.name} does not fit into memory, and a comparison needs that")
    require(
        data.name not in SPLIT_PER_SEED or data.split_seed == 0,
        f"of {data.name} each seed draws its own split: data.split_seed must be 0, got {data.split_seed}",
    )
    pipeline = open_data(data, seed=0, batch_size=config.batch_size, process_index=0, process_count=1)
    first = config.methods[0]
    require(not config.base_first or recipe(first).method == "plain", f"base_first needs plain first, got {first!r}")
    setup = assemble(config.run(first, candidates[first][0], config.noise[0], seed=0), pipeline)
    for optims in candidates.values():
        for optim in optims:
            make_chain(optim, setup.loss_fn, setup.steps)


def compare(config: CompareConfig, store: Store, progress: rich.progress.Progress, command: str) -> None:
    """Does what the store does not hold yet of the comparison, and appends each run as it ends, in any order.

    Args:
      config: what to compare.
      store: the runs so far.
      progress: where to show progress.
      command: how the user started this, for the record.

    Raises:
      UserError: if a run cannot be made, or a worker died.
    """
    tasks = plan(config)
    adopt(config, store, [task for task in tasks if task["kind"] == "tune"])
    waiting = [task for task in tasks if task not in store]
    if not waiting:
        return
    sessions = sum(record["kind"] == "session" for record in store.records)
    store.append({"kind": "session", "seed": sessions} | session(command))
    bar = progress.add_task("", total=len(tasks), completed=len(tasks) - len(waiting))
    with open_pool(config.workers) as pool:
        while waiting or pool.is_busy:
            while pool.is_free and (task := next((task for task in waiting if _is_ready(config, task, store)), None)):
                waiting.remove(task)
                optim = _settings(config, task, store)[_trial(config, task, store)]
                what = _describe(config, task)
                progress.update(bar, description=what)
                pool.send(task | {"hyperparameters": optim.tuned()}, what, _job(config, task, optim))
            task, measured = pool.wait()
            store.append(task | measured)
            progress.advance(bar)


def plan(config: CompareConfig) -> list[Record]:
    """All runs in order: of every noise level first the trials, then the tests, with the methods interleaved."""
    costs: list[Record] = [{"kind": "cost", "method": method} for method in config.methods]
    runs = [run for noise in config.noise for run in (*_tuning(config, noise, config.methods), *_tests(config, noise))]
    return [*costs, *runs]


def chosen_trial(records: Iterable[Record], noise: float, method: str) -> int:
    """Index of the trial that the validation data prefer."""
    wanted = ("tune", noise, method)
    return best_trial(r for r in records if (r["kind"], r.get("noise"), r.get("method")) == wanted)


def _tuning(config: CompareConfig, noise: float, methods: Iterable[str]) -> list[Record]:
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


def _is_ready(config: CompareConfig, task: Record, store: Container[Record]) -> bool:
    """Whether all that decides a run is known: of a test, every trial of its method at its noise level."""
    needed = [task["method"]] if task["kind"] == "test" else []
    if task["kind"] == "tune" and from_base(config, task["method"]):
        needed = [config.methods[0]]
    return all(run in store for method in needed for run in _tuning(config, task["noise"], [method]))


def _settings(config: CompareConfig, task: Record, store: Store) -> list[OptimConfig]:
    """What the method of a run tries at its noise level."""
    name, chosen = task["method"], None
    if task["kind"] != "cost" and from_base(config, name):
        first = config.methods[0]
        base = trials(config, first)[chosen_trial(store.records, task["noise"], first)]
        chosen = base.tuned()
    return trials(config, name, chosen)


def _trial(config: CompareConfig, task: Record, store: Store) -> int:
    """The trial whose hyper-parameters a run has."""
    if task["kind"] == "test":
        return chosen_trial(store.records, task["noise"], task["method"])
    return task.get("trial", 0)


def _job(config: CompareConfig, task: Record, optim: OptimConfig) -> Record:
    run = config.run(task["method"], optim, task.get("noise", config.noise[0]), task.get("seed", 0))
    return make_job(task["kind"], run, Wanted.of(config))


def _describe(config: CompareConfig, task: Record) -> str:
    method = label(task["method"], config.base)
    if task["kind"] == "cost":
        return f"compiling {method}"
    doing = "tuning" if task["kind"] == "tune" else "testing"
    return f"{doing} {method}, {task['noise']:.0%} wrong labels, seed {task['seed']}"
