"""One training run, epoch by epoch: validation, weight averaging, metrics, and checkpoints at half-time and the end."""

import functools
import math
from typing import Any, NamedTuple, cast

import jax
import rich.progress

from experiments.checkpoint import Checkpoints, Scores
from experiments.config import Averaging, TrainConfig, UserError
from experiments.data import Examples, Split, digits
from experiments.fit import evaluate, loss_fn, prepare, train_step
from experiments.models import mlp
from experiments.optim import LABELS, OptimConfig, build
from experiments.store import Store
from gam_jax.averaging import Swad, swad

AVERAGING: dict[Averaging, Swad] = {
    "none": Swad(
        init=lambda params: cast(Any, ()),
        update=lambda state, params: state,
        validate=lambda state, loss: state,
        average=lambda state, params: params,
    ),
    "swad": swad(),
}


class TrainState(NamedTuple):
    """All that changes from step to step."""

    params: mlp.Params
    opt_state: Any
    averaging: Any


def train(config: TrainConfig, store: Store, checkpoints: Checkpoints, progress: rich.progress.Progress) -> Scores:
    """Trains, and saves the result at half-time and at the end; returns the scores of the last.

    A run that was finished before is not trained again. One that was killed starts anew, and since it is the same
    to the last bit, it adds to the metrics and checkpoints what they lack.

    Args:
      config: what to train.
      store: one record per epoch, about the iterate, not the average.
      checkpoints: where to save.
      progress: where to show progress.

    Raises:
      UserError: if the loss is not finite any more.
    """
    if config.steps in checkpoints:
        return checkpoints.scores(config.steps)
    split = digits(config.data, config.noise, config.seed)
    params, order = prepare(
        config.seed, split.train, hidden=config.hidden, batch_size=config.batch_size, epochs=config.epochs
    )
    averaging = AVERAGING[config.averaging]
    optim = jax.tree.map(jax.numpy.float32, config.optim)
    state = TrainState(params, build(optim, loss_fn, config.steps).init(params), averaging.init(params))
    examples = jax.device_put(split.train)
    per_epoch = config.steps // config.epochs
    bar = progress.add_task(f"training with {LABELS[config.optim.method]}", total=config.epochs)
    scores: Scores = {}
    for epoch in range(1, config.epochs + 1):
        chosen = order[(epoch - 1) * per_epoch : epoch * per_epoch]
        state = _epoch(optim, state, examples, chosen, steps=config.steps, averaging=config.averaging)
        step = epoch * per_epoch
        record = {"step": step, "epoch": epoch} | _scores(state.params, split, "train", "validation")
        _check_finite(record, checkpoints)
        if record not in store:
            store.append(record)
        state = state._replace(averaging=averaging.validate(state.averaging, record["validation_loss"]))
        if epoch in (config.epochs // 2, config.epochs) and step not in checkpoints:
            result = averaging.average(state.averaging, state.params)
            scores = {"step": step} | _scores(result, split, "train", "validation", "test")
            if config.averaging == "swad":
                scores["averaging_started"] = bool(state.averaging.started)
            checkpoints.save(step, result, scores)
        progress.advance(bar)
    return scores


@functools.partial(jax.jit, static_argnames=("steps", "averaging"))
def _epoch(
    optim: OptimConfig, state: TrainState, examples: Examples, order: jax.Array, *, steps: int, averaging: Averaging
) -> TrainState:
    tx = build(optim, loss_fn, steps)

    def step(state: TrainState, chosen: jax.Array) -> tuple[TrainState, None]:
        params, opt_state = train_step(tx, state.params, state.opt_state, examples, chosen)
        return TrainState(params, opt_state, AVERAGING[averaging].update(state.averaging, params)), None

    return jax.lax.scan(step, state, order)[0]


def _scores(params: mlp.Params, split: Split, *parts: str) -> Scores:
    """Loss and accuracy on parts of the data, by name."""
    found = {part: evaluate(params, getattr(split, part)) for part in parts}
    return {f"{part}_{name}": value for part, scores in found.items() for name, value in scores._asdict().items()}


def _check_finite(record: Scores, checkpoints: Checkpoints) -> None:
    for name, value in record.items():
        if not math.isfinite(value):
            raise UserError(
                f"{name} is {value} at step {record['step']} (epoch {record['epoch']}), and training stopped: try a "
                f"smaller --learning-rate. {checkpoints.last()}"
            )
