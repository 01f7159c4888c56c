"""One run of a study: from a task as JSON holds it to what is recorded of the run."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.common.store import Record, plain
from experiments.data import Batch, Part
from experiments.data.memory import whole
from experiments.study.config import CompareConfig, Quantity
from experiments.study.fit import Fitted, Trainer
from experiments.train.config import TrainConfig
from experiments.train.state import TrainState
from gam_jax import flatness

_ROWS = 500
"""Images that a measurement takes at once."""


class Wanted(NamedTuple):
    """What to measure of a final run; fields of :class:`experiments.study.config.CompareConfig`."""

    measure: tuple[Quantity, ...]
    measure_examples: int
    k: int
    probes: int
    rho: tuple[float, ...]
    ascent_steps: int
    restarts: int

    @classmethod
    def of(cls, config: CompareConfig) -> "Wanted":
        return cls(*(getattr(config, name) for name in cls._fields))


def make_job(kind: str, config: TrainConfig, wanted: Wanted) -> Record:
    """What a worker is told, as JSON holds it."""
    folder = None if config.data.folder is None else str(config.data.folder)
    return {"kind": kind, "config": config.identity(), "folder": folder, "wanted": wanted._asdict()}


class Runner:
    """Does the jobs of one study, one after the other."""

    def __init__(self):
        self._trainer: Trainer | None = None

    def do(self, job: Record) -> Record:
        """What is recorded of a run.

        Raises:
          UserError: if the data are not there, or something in the config does not fit the rest.
        """
        config = TrainConfig.of(Path(), job["config"])
        folder = None if job["folder"] is None else Path(job["folder"])
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, folder=folder))
        self._trainer = self._trainer or Trainer(config)
        if job["kind"] == "cost":
            return {"flops_per_step": self._trainer.flops_per_step(config)}
        if job["kind"] == "tune":
            return tune(self._trainer, config)
        return test(self._trainer, config, Wanted(**job["wanted"]))


def tune(trainer: Trainer, config: TrainConfig) -> Record:
    """A run to choose hyper-parameters by: its scores on the validation images, and nothing of the test set."""
    return _scored(trainer.fit(config), "validation")


def test(trainer: Trainer, config: TrainConfig, wanted: Wanted) -> Record:
    """A final run: its scores on test and training images, the latter with the labels that were trained on."""
    run = trainer.fit(config)
    record = _scored(run, "test", "train")
    gap = None if record["diverged"] else record["test_loss"] - record["train_loss"]
    record |= {"generalization_gap": gap}
    if wanted.measure:
        images = jax.tree.map(lambda rows: rows[: wanted.measure_examples], whole(run.pipeline, "train"))
        for stage, state in {"half": run.half, "end": run.end}.items():
            found = None if record["diverged"] else measured(trainer, state, images, wanted, config.seed)
            record |= {stage: found}
    return record


def measured(trainer: Trainer, state: TrainState, images: Batch, wanted: Wanted, seed: int) -> Record:
    """The flatness of the training loss at a state, on these images, in evaluation mode."""
    pieces = [
        (jax.tree.map(lambda rows, start=start: rows[start : start + _ROWS], images), state.model_state)
        for start in range(0, len(images.label), _ROWS)
    ]
    of: Any = {"loss_fn": trainer.loss_fn, "params": state.params, "batches": pieces, "num_examples": _size}
    key = jax.random.key(seed)
    found: Record = {}
    if "eigenvalues" in wanted.measure:
        found["eigenvalues"] = flatness.hessian_top_eigenvalues(**of, k=wanted.k, key=key).values
    if "trace" in wanted.measure:
        trace = flatness.hessian_trace(**of, key=key, num_probes=wanted.probes)
        found |= {"trace": trace.value, "trace_standard_error": trace.standard_error}
    if "flatness" in wanted.measure:
        of |= {"num_steps": wanted.ascent_steps, "num_restarts": wanted.restarts, "key": key}
        for name, maximum in {"R0": flatness.zeroth_order_flatness, "R1": flatness.first_order_flatness}.items():
            found[name] = [_value(lambda rho=rho, maximum=maximum: maximum(**of, rho=rho).value) for rho in wanted.rho]
    return plain(found)


def _value(measure: Callable[[], float]) -> float | None:
    """The value of R0 or R1; None where the loss is not finite within the ball, which is no fault of the run."""
    try:
        return measure()
    except ValueError as error:
        if "must be finite" not in str(error):
            raise
        return None


def _size(piece: tuple[Batch, Any]) -> int:
    return len(piece[0].label)


def _scored(run: Fitted, *parts: Part) -> Record:
    """Losses and accuracies at the end by name; None for all of them if the run diverged."""
    scores = run.evaluate(*parts)
    diverged = run.diverged or not all(map(math.isfinite, scores.values()))
    return {
        "diverged": diverged,
        **{name: None if diverged else value for name, value in scores.items()},
        "seconds": run.seconds,
    }
