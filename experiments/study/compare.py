"""Compares methods fairly: each is tuned on validation data with the same budget, then tested with fresh seeds."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rich.progress

from experiments.common.errors import require
from experiments.common.provenance import provenance, session
from experiments.common.store import Record, Store, open_store, read_records, refuse_other
from experiments.data import DATA_SETS, open_data
from experiments.data.config import SPLIT_PER_SEED
from experiments.optim.chain import make_chain
from experiments.optim.config import OptimConfig
from experiments.optim.recipes import label, recipe
from experiments.study.adopt import adopt
from experiments.study.config import CompareConfig
from experiments.study.job import Wanted, make_job
from experiments.study.plan import KEY, is_ready, key, plan, settings, trial
from experiments.study.pool import open_pool
from experiments.study.search import trials
from experiments.train.setup import assemble


def check(config: CompareConfig) -> None:
    """Refuses what cannot run; call it before anything is written. A finished study needs nothing, not its data."""
    if _is_finished(config):
        return
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


def _is_finished(config: CompareConfig) -> bool:
    path = config.workdir / "results.jsonl"
    there = {key(record) for record in read_records(path)} if path.exists() else set()
    return all(key(task) in there for task in plan(config))


@contextlib.contextmanager
def open_study(config: CompareConfig) -> Iterator[Store]:
    """The records of a study, in its folder; what made them, in ``Store.about``, may be other code.

    Raises:
      UserError: if the folder cannot be written, is in use, or holds another study.
    """
    identity, about = {"config": config.identity()}, {"made_with": provenance()}
    with open_store(config.workdir, identity, "results.jsonl", KEY, about=about, complete=_complete) as store:
        yield store


def _complete(identity: Any) -> Any:
    """An identity of an older version, with the fields that came later; as it is if it is none of a study."""
    try:
        return identity | {"config": CompareConfig.of(Path(), identity["config"]).identity()}
    except (AttributeError, KeyError, TypeError, ValueError):
        return identity


def compare(config: CompareConfig, store: Store, progress: rich.progress.Progress, command: str) -> None:
    """Does what the store does not hold yet of the comparison, and appends each run as it ends, in any order.

    Args:
      config: what to compare.
      store: the runs so far.
      progress: where to show progress.
      command: how the user started this, for the record.

    Raises:
      UserError: if a run cannot be made, a worker died, or other code made the runs that are there.
    """
    tasks = plan(config)
    waiting = [task for task in tasks if task not in store]
    if not waiting:
        return
    refuse_other(config.workdir, {"made_with": store.about.get("made_with")}, {"made_with": provenance()}, "--workdir")
    adopt(config, store, [task for task in tasks if task["kind"] == "tune"])
    waiting = [task for task in waiting if task not in store]
    if not waiting:
        return
    sessions = sum(record["kind"] == "session" for record in store.records)
    store.append({"kind": "session", "seed": sessions} | session(command))
    bar = progress.add_task("", total=len(tasks), completed=len(tasks) - len(waiting))
    with open_pool(config.workers) as pool:
        while waiting or pool.is_busy:
            while pool.is_free and (task := next((task for task in waiting if is_ready(config, task, store)), None)):
                waiting.remove(task)
                optim = settings(config, task, store)[trial(config, task, store)]
                what = _describe(config, task)
                progress.update(bar, description=what)
                pool.send(task | {"hyperparameters": optim.tuned()}, what, _job(config, task, optim))
            task, measured = pool.wait()
            store.append(task | measured)
            progress.advance(bar)


def _job(config: CompareConfig, task: Record, optim: OptimConfig) -> Record:
    run = config.run(task["method"], optim, task.get("noise", config.noise[0]), task.get("seed", 0))
    return make_job(task["kind"], run, Wanted.of(config))


def _describe(config: CompareConfig, task: Record) -> str:
    method = label(task["method"], config.base)
    if task["kind"] == "cost":
        return f"compiling {method}"
    doing = "tuning" if task["kind"] == "tune" else "testing"
    return f"{doing} {method}, {task['noise']:.0%} wrong labels, seed {task['seed']}"
