"""Compiles the trainer's step for many chips, none of which need exist, and reads off what it will need on each."""

import dataclasses
import re
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import rich.progress
from jax.sharding import PartitionSpec

from experiments.common.errors import require
from experiments.common.hlo import parse
from experiments.common.hlo_cost import collectives, matmul_flops, memory_bytes
from experiments.common.provenance import provenance
from experiments.common.store import write_json
from experiments.data import Batch
from experiments.measure.cost.aot_report import table, write_markdown
from experiments.measure.cost.chips import Chip, describe
from experiments.measure.cost.config import AotConfig, Perturbation
from experiments.measure.cost.stand_in import set_up_without_data
from experiments.models.config import ModelConfig
from experiments.models.shards import AXES
from experiments.optim.chain import make_chain
from experiments.optim.config import OptimConfig
from experiments.optim.methods import Method
from experiments.train.compiled import MethodPrograms, Step, TaskPrograms
from experiments.train.config import DevicesConfig, TrainConfig
from experiments.train.mesh import Mesh, make_mesh
from experiments.train.setup import Setup
from experiments.train.shards import gathers
from experiments.train.state import TrainState
from gam_jax import HvpMode

LoadTrain = Callable[[str, Method], TrainConfig]
"""The training run of a name, with its hyper-parameters for a method."""


class Variant(NamedTuple):
    """One way to train.

    Attributes:
      method: the method.
      perturbation: global: as on one device; per_replica: each chip perturbs with the gradient of its own examples.
      fsdp: columns of the mesh (:class:`experiments.train.config.DevicesConfig`); with 1 each chip has a copy.
    """

    method: Method
    perturbation: Perturbation
    fsdp: int


def compile_all(
    config: AotConfig, load_train: LoadTrain, command: str, progress: rich.progress.Progress, say: Callable[[str], None]
) -> Path:
    """Compiles all variants for the slice; writes the numbers as they come, and then the report.

    Args:
      config: what to compile.
      load_train: the training run of a name, for a method.
      command: how the user started this, for the record.
      progress: where to show progress.
      say: takes the numbers, as they come.

    Returns:
      Where the report is.

    Raises:
      UserError: if the slice is unknown, a config does not fit it, or, when all is written, a program its memory.
    """
    devices, chip = describe(config.topology)
    path = config.workdir / f"{config.config}-{config.topology.replace(':', '-')}.json"
    records: list[dict[str, Any]] = []
    results = {
        "config": config.config,
        "topology": config.topology,
        "chips": len(devices),
        "batch_size": config.batch_size,
        "model": describe_model(config.model),
        "assumptions": chip._asdict(),
        "command": command,
        "made_with": provenance() | {"libtpu": version("libtpu")},
        "records": records,
    }
    config.workdir.mkdir(parents=True, exist_ok=True)
    wanted = variants(config)
    bar = progress.add_task("", total=len(wanted))
    for variant in wanted:
        progress.update(bar, description=f"compiling {variant.method}, {variant.perturbation}, fsdp={variant.fsdp}")
        records.append(measure(config, load_train, variant, devices, chip))
        write_json(path, results)
        say(table(records[-1:]))
        progress.advance(bar)
    report = write_markdown(results, chip, path.with_suffix(".md"))
    misfits = [record for record in records if not record["fits"]]
    require(not misfits, f"{'; '.join(map(too_large, misfits))}. The numbers are in {report}")
    return report


def describe_model(model: ModelConfig) -> str:
    """What is not the default of a network."""
    changed = [f for f in dataclasses.fields(model) if f.name != "name" and getattr(model, f.name) != f.default]
    return ", ".join([model.name, *(f"{f.name} {getattr(model, f.name)}" for f in changed)])


def too_large(record: dict[str, Any]) -> str:
    """What does not fit, in numbers."""
    memory = record["memory"]
    return (
        f"{record['method']}, {record['perturbation']}, fsdp={record['fsdp']}, needs {memory['peak'] / 2**30:.2f} GiB "
        f"of {memory['available'] / 2**30:.2f} GiB a chip: try a larger --fsdp, a smaller --batch-size or --model.remat"
    )


def variants(config: AotConfig) -> list[Variant]:
    """All that the config asks for and that make sense: SGD perturbs nothing, and a replica has all parameters."""
    return [
        Variant(method, perturbation, fsdp)
        for fsdp in config.fsdp
        for method in config.methods
        for perturbation in config.perturbation
        if perturbation == "global" or (method != "plain" and fsdp == 1)
    ]


def train_config(config: AotConfig, load_train: LoadTrain, variant: Variant) -> TrainConfig:
    """The training run."""
    return dataclasses.replace(
        load_train(config.config, variant.method),
        workdir=config.workdir,
        model=config.model,
        batch_size=config.batch_size,
        devices=DevicesConfig(fsdp=variant.fsdp),
    )


def measure(
    config: AotConfig, load_train: LoadTrain, variant: Variant, devices: Sequence[Any], chip: Chip
) -> dict[str, Any]:
    """Compiles one variant; what its step needs on each chip, or that it does not fit."""
    train = train_config(config, load_train, variant)
    mesh = make_mesh(train.devices, train.batch_size, devices)
    setup = set_up_without_data(train)
    start = time.perf_counter()
    lowered = lower(setup, mesh, variant.perturbation, config.hvp)
    traced = time.perf_counter()
    record: dict[str, Any] = {
        **variant._asdict(),
        "parts": len(devices) if gathers(setup, mesh) else variant.fsdp,
        "hvp": config.hvp,
        "chips": len(devices),
        "batch_size": train.batch_size,
        "trace_seconds": traced - start,
    }
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = memory_needed(str(error))
        if needed is None:
            raise
        return record | {"fits": False, "memory": {"peak": needed, "available": chip.memory_bytes}}
    record["compile_seconds"] = time.perf_counter() - traced
    return record | needs(compiled, chip, len(devices))


def lower(setup: Setup, mesh: Mesh, perturbation: Perturbation, hvp: HvpMode) -> Any:
    """The trainer's step, traced; with per_replica inside a shard_map."""
    replicas: Any = {"axis_name": AXES, "per_replica": True} if perturbation == "per_replica" else {}
    chain = make_chain(setup.config.optim, setup.loss_fn, setup.steps, hvp=hvp, **replicas)

    def init() -> TrainState:  # of replicas, which keep no mismatch
        state = setup.init()
        return state._replace(opt_state=chain.tx.init(state.params))

    programs = MethodPrograms(setup._replace(init=init), TaskPrograms(setup, mesh))
    step = programs.step(hvp=hvp, **replicas)
    return programs.lower(_on_each_replica(step, mesh) if replicas else step)


def _on_each_replica(one: Step, mesh: Mesh) -> Step:
    """The trainer's step on the rows of each replica; what the optimizer does not average is averaged here."""

    def step(optim: OptimConfig, seed: jax.Array, state: TrainState, batch: Batch) -> TrainState:
        new = one(optim, seed, state, batch)
        added = jax.lax.psum(jax.tree.map(lambda after, before: after - before, new.sums, state.sums), AXES)
        return new._replace(
            model_state=jax.lax.pmean(new.model_state, AXES),
            sums=jax.tree.map(lambda before, more: before + more, state.sums, added),
            broken=jax.lax.pmax(new.broken, AXES),
        )

    whole = PartitionSpec()
    specs = (whole, whole, whole, PartitionSpec(AXES))
    return jax.shard_map(step, mesh=mesh.devices, in_specs=specs, out_specs=whole, check_vma=False)


def needs(compiled: Any, chip: Chip, devices: int) -> dict[str, Any]:
    """What a compiled step needs on each chip: arithmetic, memory, communication, and time at peak rates."""
    program = parse(compiled.as_text())
    found = collectives(program, devices)
    memory = compiled.memory_analysis()
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    flops, moved = program.total(matmul_flops), program.total(memory_bytes)
    seconds = {
        "compute": flops / chip.flops,
        "memory": moved / chip.memory_bandwidth,
        "network": sum(collective.wire_bytes for collective in found.values()) / chip.network_bandwidth,
    }
    return {
        "instructions": sum(map(len, program.computations.values())),
        "fits": kept + memory.temp_size_in_bytes <= chip.memory_bytes,
        "flops": flops,
        "memory_traffic_bytes": moved,
        "memory": {
            "kept": kept,
            "temporary": memory.temp_size_in_bytes,
            "peak": kept + memory.temp_size_in_bytes,
            "available": chip.memory_bytes,
        },
        "collectives": {kind: collective._asdict() for kind, collective in found.items()},
        "seconds": seconds,
        "step_seconds": {"overlapped": max(seconds.values()), "in_turn": sum(seconds.values())},
    }


def memory_needed(message: str) -> float | None:
    """Bytes that a compiler says a program needs when it does not fit; None for other errors."""
    found = re.search(r"(?:Used |HLO temporaries \()([\d.]+)([KMGT])\)? (?:of|exceeds available)", message)
    return float(found.group(1)) * 2 ** (10 * ("KMGT".index(found.group(2)) + 1)) if found else None
