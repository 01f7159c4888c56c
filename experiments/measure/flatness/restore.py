"""A trained network as measurements see it: restored from a checkpoint, with its loss and its data."""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.common.errors import UserError, require
from experiments.common.store import read_object
from experiments.data import Batch, Part
from experiments.train.checkpoint import Scores, read_checkpoints
from experiments.train.config import DevicesConfig, TrainConfig
from experiments.train.manager import FOLDER
from experiments.train.mesh import make_mesh
from experiments.train.programs import Programs
from experiments.train.setup import Setup, set_up
from experiments.train.step import make_measured_loss


class Run(NamedTuple):
    """A restored checkpoint.

    Attributes:
      name: of the run's folder, and the step.
      config: what it was trained with.
      step: training steps so far.
      params: the parameters, the averaged ones if the run averages.
      loss_fn: ``(params, batch) -> loss``: the mean cross-entropy as in evaluation, with the running batch statistics.
      batches: the training images without augmentation, with the labels that were trained on.
      scores: what was measured when it was saved.
      evaluate: loss and accuracy over a part of the data.
    """

    name: str
    config: TrainConfig
    step: int
    params: Any
    loss_fn: Callable[[Any, Batch], jax.Array]
    batches: list[Batch]
    scores: Scores
    evaluate: Callable[[Part], dict[str, float]]

    def identity(self) -> dict[str, Any]:
        """What was measured, as JSON holds it: how it was trained, and a fingerprint of the parameters."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(self.params):
            digest.update(np.asarray(leaf).tobytes())
        return {"name": self.name, "config": self.config.identity(), "step": self.step} | {
            "parameters": digest.hexdigest()[:12]
        }


def restore(place: Path) -> Run:
    """Restores one checkpoint, its loss and its data.

    Args:
      place: the folder of a run, for its last checkpoint, or of one checkpoint.

    Raises:
      UserError: if there is none, if it is damaged, or if it does not fit the run of its config.
    """
    workdir, step = _locate(place.absolute())
    setup = set_up(_config(workdir, place))
    programs = Programs(setup, make_mesh(DevicesConfig(), setup.config.batch_size))
    with read_checkpoints(workdir) as checkpoints:
        state, scores = checkpoints.restore(step, programs.abstract)
    params, model_state = programs.result(state)
    return Run(
        name=f"{workdir.name}-{step}",
        config=setup.config,
        step=step,
        params=params,
        loss_fn=_loss(setup, model_state),
        batches=_batches(setup),
        scores=scores,
        evaluate=functools.partial(programs.evaluate, params, model_state),
    )


def _loss(setup: Setup, model_state: Any) -> Callable[[Any, Batch], jax.Array]:
    loss_fn = make_measured_loss(setup.model, setup.pipeline.data_set)
    return lambda params, batch: loss_fn(params, batch, model_state)


def _batches(setup: Setup) -> list[Batch]:
    """The training images, in batches of which only the last is smaller; fillers left out."""
    batches = setup.pipeline.evaluation("train")
    return [jax.tree.map(lambda rows, kept=batch.weight > 0: rows[kept], batch) for batch in batches]


def _locate(place: Path) -> tuple[Path, int]:
    """The folder of the run, and the step."""
    require(place.is_dir(), f"there is no folder {place}: give --checkpoint the --workdir of a training run")
    if place.parent.name == FOLDER and place.name.isdigit():
        return place.parent.parent, int(place.name)
    require((place / "config.json").exists(), f"{place} is not the --workdir of a training run: no config.json in it")
    folder = place / FOLDER
    steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    require(bool(steps), f"{place} holds no checkpoint")
    return place, max(steps)


def _config(workdir: Path, place: Path) -> TrainConfig:
    try:
        return TrainConfig.of(workdir, read_object(workdir / "config.json").get("config"))
    except UserError as error:
        raise UserError(f"{place} is not a run of this version's `train` (config.json: {error})") from error
