"""The training step over a grid of networks, slices, batches and methods, compiled for the slices: one record a cell.

Records are lines of ``aot.jsonl``. A cell that has one is not compiled again, so that a grid goes on after any stop,
and a larger grid of the same config may go into the same folder.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import rich.progress

from experiments.common.identity import to_json
from experiments.common.provenance import provenance
from experiments.common.store import open_store
from experiments.measure.cost.aot import LoadTrain, Variant, measure
from experiments.measure.cost.aot_grid_report import line, write_markdown
from experiments.measure.cost.chips import describe
from experiments.measure.cost.config import AotConfig, AotGridConfig
from experiments.models.config import ModelConfig, ModelName
from experiments.optim.methods import Method

CELL = ("network", "topology", "images", "method", "fsdp")
"""What a record is about."""


class Cell(NamedTuple):
    """One step to compile.

    Attributes:
      network: the network.
      topology: the slice, such as v5e:4x4.
      images: on each chip.
      method: the method.
      fsdp: chips among which parameters and optimizer state are divided; with 1 each has a copy.
    """

    network: ModelName
    topology: str
    images: int
    method: Method
    fsdp: int


def cells(config: AotGridConfig) -> Iterator[Cell]:
    """All that the config asks for; the first list changes slowest."""
    lists = (config.networks, config.topologies, config.images, config.methods, config.fsdp)
    return itertools.starmap(Cell, itertools.product(*lists))


def compile_grid(
    config: AotGridConfig,
    load_train: LoadTrain,
    command: str,
    progress: rich.progress.Progress,
    say: Callable[[str], None],
) -> Path:
    """Compiles all cells that have no record yet, and writes the report of all that have one.

    Args:
      config: what to compile.
      load_train: the training run of a name, for a method.
      command: how the user started this, for the records.
      progress: where to show progress.
      say: takes a line for each cell.

    Returns:
      Where the report is.

    Raises:
      UserError: if a slice is unknown or the folder holds a grid of another config. What does not fit into the memory
        of a chip is a result.
    """
    wanted = list(cells(config))
    made_with = {**provenance(), "libtpu": version("libtpu"), "command": command}
    bar = progress.add_task("", total=len(wanted))
    with open_store(config.workdir, _identity(config, load_train), "aot.jsonl", CELL) as store:
        for cell in wanted:
            progress.update(bar, description=f"compiling {cell.network}, {cell.topology}, {cell.images}, {cell.method}")
            if cell._asdict() not in store:
                store.append({**measure_cell(config, load_train, cell), "made_with": made_with})
                say(line(store.records[-1]))
            progress.advance(bar)
        return write_markdown(config.config, store.records, config.workdir / "aot.md")


def measure_cell(config: AotGridConfig, load_train: LoadTrain, cell: Cell) -> dict[str, Any]:
    """Compiles one cell; what its step needs on each chip."""
    devices, chip = describe(cell.topology)
    one = AotConfig(
        config=config.config,
        model=_model(config, load_train, cell.network),
        batch_size=cell.images * len(devices),
        topology=cell.topology,
        hvp=config.hvp,
        workdir=config.workdir,
    )
    record = measure(one, load_train, Variant(cell.method, "global", cell.fsdp), devices, chip)
    return {**cell._asdict(), "base": load_train(config.config, cell.method).optim.base, **record}


def _model(config: AotGridConfig, load_train: LoadTrain, network: ModelName) -> ModelConfig:
    return dataclasses.replace(load_train(config.config, "plain").model, name=network)


def _identity(config: AotGridConfig, load_train: LoadTrain) -> dict[str, Any]:
    """What all records of a folder have in common."""
    run = load_train(config.config, "plain")
    return {"config": config.config, "hvp": config.hvp, "model": to_json(run.model, ("name",))}
