"""The benchmark: compiles every case, counts what it does, and times all of them side by side."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import rich.progress

from experiments.common.errors import UserError
from experiments.common.hlo import parse
from experiments.common.hlo_cost import matmul_flops
from experiments.common.provenance import provenance, session
from experiments.common.store import write_json
from experiments.data import Batch
from experiments.measure.cost import peers
from experiments.measure.cost.cases import Case, Step, cases, train_config
from experiments.measure.cost.config import BenchmarkConfig, Network
from experiments.measure.cost.stand_in import random_batch, set_up_without_data
from experiments.measure.cost.timing import Runner, runner, time_rounds
from experiments.train.compiled import HIDING

Record = dict[str, Any]
"""One case: network, library, name, intervals, its counts, and its times in seconds by phase, one for each round."""


class Timed(NamedTuple):
    """A phase of a case, and where its times go."""

    record: Record
    phase: str
    runner: Runner


def benchmark(
    config: BenchmarkConfig, command: str, progress: rich.progress.Progress, say: Callable[[str], None]
) -> Record:
    """Measures, and writes ``benchmark.json`` anew whenever something is known.

    Args:
      config: what to measure.
      command: how the user started this, for the record.
      progress: where to show progress.
      say: tells the user what is done.
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
        found = list(cases(config, network))
        bar = progress.add_task("", total=len(found) + config.rounds)
        for case in found:
            progress.update(bar, description=f"{network}: compiling {case.name}")
            record, programs = measure_compiled(network, case, batch)
            say(f"{network}: compiled {case.name} in {record['compile_seconds']:.1f} s")
            records.append(record)
            timed += _timed(record, case, programs, batch) if config.rounds else []
            write_json(path, results)
            progress.advance(bar)
        if config.peers:
            progress.update(bar, description=f"{network}: the steps in PyTorch")
            for record, run in peers.torch_cases(config, network, batch):
                records.append(record)
                timed.append(Timed(record, "acting", run))
        progress.update(bar, description=f"{network}: timing {len(timed)} kinds of steps, {config.rounds} rounds")
        _time(config, timed, lambda bar=bar: (write_json(path, results), progress.advance(bar)))
        say(f"{network}: timed {len(timed)} kinds of steps, {config.rounds} rounds")
    results["load_average_at_end"] = os.getloadavg()[0]
    write_json(path, results)
    return results


def results_path(config: BenchmarkConfig) -> Path:
    """Where the numbers are."""
    return config.workdir / "benchmark.json"


def measure_compiled(network: Network, case: Case, batch: Batch) -> tuple[Record, dict[str, Any]]:
    """Compiles a case; returns what its programs do, and the programs by phase. Memory is that of the acting step."""
    start = time.perf_counter()
    abstract = jax.eval_shape(case.init)
    lowered = jax.jit(case.steps["acting"], donate_argnums=0).lower(abstract, batch)
    traced = time.perf_counter()
    acting: Any = lowered.compile()
    done = time.perf_counter()
    programs = {"acting": acting}
    for phase, step in case.steps.items():
        is_new = step is not case.steps["acting"]
        programs[phase] = jax.jit(step, donate_argnums=0).lower(abstract, batch).compile() if is_new else acting
    branch = {"acting": max, "skipped": min}
    counted = lambda phase: parse(_countable(case.steps[phase], programs[phase], abstract, batch))  # noqa: E731
    return {
        "network": network,
        "library": "jax",
        "case": case.name,
        "intervals": case.intervals,
        "flops": {phase: counted(phase).total(matmul_flops, branch[phase]) for phase in programs},
        "xla_flops": (acting.cost_analysis() or {}).get("flops"),
        "temporary_bytes": acting.memory_analysis().temp_size_in_bytes,
        "state_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract.opt_state)),
        "trace_seconds": traced - start,
        "compile_seconds": done - traced,
        "seconds": {},
    }, programs


def _countable(step: Step, program: Any, state: Any, batch: Batch) -> str:
    """The compiled program; where a GPU's libraries hide its products, the one that XLA makes for the CPU."""
    text = program.as_text()
    if not any(library in text for library in HIDING):
        return text
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        compiled: Any = jax.jit(step, donate_argnums=0).lower(state, jax.eval_shape(lambda: batch)).compile()
        return compiled.as_text()


def _timed(record: Record, case: Case, programs: dict[str, Any], batch: Batch) -> list[Timed]:
    return [
        Timed(record, phase, runner(case, program, batch, count))
        for count, (phase, program) in enumerate(programs.items())
    ]


def _time(config: BenchmarkConfig, timed: list[Timed], save: Callable[[], object]) -> None:
    def keep(seconds: np.ndarray) -> None:
        for one, times in zip(timed, seconds.T, strict=True):
            one.record["seconds"][one.phase] = [round(float(t), 7) for t in times]
        save()

    time_rounds([one.runner for one in timed], config.warmup, config.rounds, keep)


def _made_with(config: BenchmarkConfig) -> dict[str, str]:
    found = peers.torch_version() if config.peers else None
    libraries = {"torch": found} if found else {}
    return {**provenance(), **libraries}
