"""The benchmark: compiles every case, counts what it does, and times all of them side by side."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.benchmarks import peers
from experiments.benchmarks.cases import Case, cases, train_config
from experiments.benchmarks.config import BenchmarkConfig, Network
from experiments.benchmarks.count import matmul_flops
from experiments.benchmarks.hlo import parse
from experiments.benchmarks.stand_in import random_batch, set_up_without_data
from experiments.benchmarks.timing import Runner, runner, time_rounds
from experiments.config import UserError
from experiments.data import Batch
from experiments.provenance import provenance, session
from experiments.store import write_json

Record = dict[str, Any]
"""One case: network, library, name, interval, its counts, and its times in seconds by phase, one for each round."""
PHASES = ("acting", "skipped")
"""Steps on which the method acts, and those between them."""


class Timed(NamedTuple):
    """A phase of a case, and where its times go."""

    record: Record
    phase: str
    runner: Runner


def benchmark(config: BenchmarkConfig, command: str, say: Callable[[str], None]) -> Record:
    """Measures, and writes ``benchmark.json`` anew whenever something is known.

    Args:
      config: what to measure.
      command: how the user started this, for the record.
      say: tells the user how far it is.
    """
    results: Record = {"made_with": _made_with(config), **session(command), "load_average": os.getloadavg()[0]}
    records: list[Record] = []
    results["records"] = records
    path = results_path(config)
    try:
        config.workdir.mkdir(parents=True, exist_ok=True)
        write_json(path, results)
    except OSError as error:
        raise UserError(f"cannot write results to --workdir {config.workdir}: {error}") from error
    for network in config.networks:
        timed = []
        batch = random_batch(set_up_without_data(train_config(config, network)).pipeline.data_set, config.batch_size)
        for case in cases(config, network):
            record, compiled = measure_compiled(network, case, batch)
            say(f"{network}: compiled {_title(record)} in {record['compile_seconds']:.1f} s")
            records.append(record)
            timed += _timed(record, case, compiled, batch) if config.rounds else []
            write_json(path, results)
        if config.peers:
            for record, run in peers.torch_cases(train_config(config, network), network, batch):
                records.append(record)
                timed.append(Timed(record, "acting", run))
        _time(config, timed, lambda: write_json(path, results))
        say(f"{network}: timed {len(timed)} kinds of steps, {config.rounds} rounds")
    results["load_average_at_end"] = os.getloadavg()[0]
    write_json(path, results)
    return results


def results_path(config: BenchmarkConfig) -> Path:
    """Where the numbers are."""
    return config.workdir / "benchmark.json"


def measure_compiled(network: Network, case: Case, batch: Batch) -> tuple[Record, Any]:
    """Compiles a case; returns what its program does, and the program."""
    start = time.perf_counter()
    lowered = jax.jit(case.step, donate_argnums=0).lower(jax.eval_shape(case.init), batch)
    traced = time.perf_counter()
    compiled: Any = lowered.compile()
    done = time.perf_counter()
    program = parse(compiled.as_text())
    state = jax.tree.leaves(jax.eval_shape(case.init).opt_state)
    return {
        "network": network,
        "library": "jax",
        "case": case.name,
        "interval": case.interval,
        "flops": {phase: program.total(matmul_flops, choose) for phase, choose in zip(PHASES, (max, min), strict=True)},
        "xla_flops": (compiled.cost_analysis() or {}).get("flops"),
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "state_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in state),
        "trace_seconds": traced - start,
        "compile_seconds": done - traced,
        "seconds": {},
    }, compiled


def _timed(record: Record, case: Case, compiled: Any, batch: Batch) -> list[Timed]:
    phases = PHASES if case.interval > 1 else PHASES[:1]
    return [Timed(record, phase, runner(case, compiled, batch, count)) for count, phase in enumerate(phases)]


def _time(config: BenchmarkConfig, timed: list[Timed], save: Callable[[], None]) -> None:
    def keep(seconds: np.ndarray) -> None:
        for one, times in zip(timed, seconds.T, strict=True):
            one.record["seconds"][one.phase] = [round(float(t), 7) for t in times]
        save()

    time_rounds([one.runner for one in timed], config.warmup, config.rounds, keep)


def _title(record: Record) -> str:
    return record["case"] + (f", interval {record['interval']}" if record["interval"] > 1 else "")


def _made_with(config: BenchmarkConfig) -> dict[str, str]:
    found = peers.torch_version() if config.peers else None
    libraries = {"torch": found} if found else {}
    return {**provenance(), **libraries}
