"""Checkpoints of training runs: written whole or not at all, and restored with all that they were trained on."""

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments.config import TrainConfig, UserError, require
from experiments.data import Examples, Split, digits
from experiments.fit import evaluate, layer_sizes
from experiments.models import mlp
from experiments.store import read_json

_FOLDER = "checkpoints"
Scores = dict[str, Any]


class Run(NamedTuple):
    """A restored checkpoint.

    Attributes:
      name: of the run's folder, and the step.
      config: what it was trained with.
      step: training steps so far.
      params: the parameters.
      train: the examples that it was trained on, with their wrong labels.
      scores: what was measured when it was saved.
    """

    name: str
    config: TrainConfig
    step: int
    params: mlp.Params
    train: Examples
    scores: Scores

    def identity(self) -> dict[str, Any]:
        """What was measured, as JSON holds it: how it was trained, and a fingerprint of the parameters."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(self.params):
            digest.update(np.asarray(leaf).tobytes())
        return {"name": self.name, "config": self.config.identity(), "step": self.step} | {
            "parameters": digest.hexdigest()[:12]
        }


class Checkpoints:
    """The checkpoints of one run, in ``workdir/checkpoints/STEP``."""

    def __init__(self, manager: ocp.CheckpointManager):
        self._manager = manager

    def __contains__(self, step: int) -> bool:
        return step in self._manager.all_steps()

    def scores(self, step: int) -> Scores:
        """What was measured when a checkpoint was saved."""
        return self._manager.restore(step, args=ocp.args.Composite(scores=ocp.args.JsonRestore()))["scores"]

    def last(self) -> str:
        """Where the last one is, in words."""
        step = self._manager.latest_step()
        return "No checkpoint was saved" if step is None else f"Saved before: {self._manager.directory / str(step)}"

    def save(self, step: int, params: mlp.Params, scores: Scores) -> None:
        """Writes one checkpoint; returns when it is on disk.

        Raises:
          UserError: if the disk refuses.
        """
        parts = ocp.args.Composite(params=ocp.args.StandardSave(params), scores=ocp.args.JsonSave(scores))
        try:
            self._manager.save(step, args=parts)
        except (OSError, ValueError) as error:  # tensorstore reports a full disk as a ValueError
            raise UserError(f"cannot write checkpoint {self._manager.directory / str(step)}: {error}") from error


@contextlib.contextmanager
def open_checkpoints(workdir: Path) -> Iterator[Checkpoints]:
    """The checkpoints of a run, for the one process that writes them."""
    with _manager(workdir.absolute() / _FOLDER, write=True) as manager:
        yield Checkpoints(manager)


def _manager(folder: Path, *, write: bool) -> ocp.CheckpointManager:
    """Orbax on a folder. What it reads is arrays and JSON: nothing in a checkpoint is ever run."""
    handlers: Any = {"params": ocp.StandardCheckpointHandler(), "scores": ocp.JsonCheckpointHandler()}
    options = ocp.CheckpointManagerOptions(create=write, enable_async_checkpointing=False)
    return ocp.CheckpointManager(folder, options=options, item_handlers=handlers)


def restore(place: Path) -> Run:
    """Restores one checkpoint, its data and its labels.

    Args:
      place: the folder of a run, for its last checkpoint, or of one checkpoint.

    Raises:
      UserError: if there is none, if it does not fit the network of its config, or if the loss on the training
        data is not the one that was recorded with it.
    """
    workdir, step = _locate(place.absolute())
    config = _config(workdir, place)
    split = _data(config, workdir)
    params, scores = _read(workdir / _FOLDER / str(step), layer_sizes(config.hidden, split.train))
    loss = evaluate(params, split.train).loss
    require(
        math.isclose(loss, scores["train_loss"], rel_tol=1e-3),
        f"{place} was saved with a training loss of {scores['train_loss']:.6g}, and here it is {loss:.6g}: the data "
        "or the network are not those that it was trained with",
    )
    return Run(f"{workdir.name}-{step}", config, step, params, split.train, scores)


def _locate(place: Path) -> tuple[Path, int]:
    """The folder of the run, and the step."""
    require(place.is_dir(), f"there is no folder {place}: give --checkpoint the --workdir of a training run")
    if place.parent.name == _FOLDER and place.name.isdigit():
        return place.parent.parent, int(place.name)
    require((place / "config.json").exists(), f"{place} is not the --workdir of a training run: no config.json in it")
    folder = place / _FOLDER
    steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    require(bool(steps), f"{place} holds no checkpoint: was it trained to half-time?")
    return place, max(steps)


def _config(workdir: Path, place: Path) -> TrainConfig:
    try:
        return TrainConfig.of(workdir, read_json(workdir / "config.json")["config"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{place} is not a run of this version's `train` (config.json: {error!r})") from error


def _data(config: TrainConfig, workdir: Path) -> Split:
    try:
        return digits(config.data, config.noise, config.seed)
    except (TypeError, ValueError) as error:
        raise UserError(f"{workdir / 'config.json'} does not fit the data: {error}") from error


def _read(folder: Path, sizes: tuple[int, ...]) -> tuple[mlp.Params, Scores]:
    """The parameters and scores in the folder of one checkpoint."""
    expected = jax.eval_shape(lambda key: mlp.init(key, sizes), jax.random.key(0))
    try:
        with _manager(folder.parent, write=False) as manager:
            stored = manager.item_metadata(int(folder.name))["params"]
            _check_same_leaves(folder, stored.tree, expected)
            parts = ocp.args.Composite(params=ocp.args.StandardRestore(expected), scores=ocp.args.JsonRestore())
            found = manager.restore(int(folder.name), args=parts)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, AttributeError, json.JSONDecodeError) as error:
        raise UserError(f"checkpoint {folder} is damaged or not a checkpoint: {error}") from error
    return found["params"], found["scores"]


def _check_same_leaves(folder: Path, stored: Any, expected: Any) -> None:
    """Names the leaves in which a checkpoint and the network differ."""
    there, here = (
        {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in jax.tree.leaves_with_path(t)}
        for t in (stored, expected)
    )
    differing = [
        f"  {name}: {there.get(name, 'absent')} in the checkpoint, {here.get(name, 'absent')} in the network"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]
    require(not differing, f"checkpoint {folder} does not fit the network of its config:\n" + "\n".join(differing))
