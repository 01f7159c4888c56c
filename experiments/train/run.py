"""A training run with its folder: opens everything, trains, and draws the learning curves."""

import contextlib
import functools
import math
import signal
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from experiments.common.errors import Stopped
from experiments.common.progress import Progress, open_progress
from experiments.common.provenance import session
from experiments.train.checkpoint import Checkpoints, Scores, open_checkpoints
from experiments.train.clock import Clock
from experiments.train.config import TrainConfig
from experiments.train.curves import draw_curves
from experiments.train.manager import check_place
from experiments.train.mesh import all_succeed, is_first, make_mesh
from experiments.train.metrics import Metrics, diagnostics, open_metrics
from experiments.train.profile import profiled
from experiments.train.programs import Programs
from experiments.train.setup import Setup, set_up
from experiments.train.state import TrainState


def run(config: TrainConfig, command: str, peak_flops: float | None = None) -> Scores:
    """Trains in ``config.workdir``, or goes on there; returns the scores of the result.

    Args:
      config: what to train.
      command: how the user started this, for the record.
      peak_flops: of one device, in a second, if that is known.

    Raises:
      UserError: if something cannot be done; nothing is written if that is known before the first step.
      Stopped: after SIGTERM.
    """
    with contextlib.ExitStack() as opened:
        progress = opened.enter_context(open_progress())
        check_place(config.workdir)
        mesh = make_mesh(config.devices, config.batch_size)
        setup = all_succeed(functools.partial(set_up, config))
        programs = Programs(setup, mesh)
        keep = {"keep": config.checkpoints.keep, "always": (setup.half_time, setup.steps)}
        metrics = all_succeed(lambda: opened.enter_context(open_metrics(config.workdir, config.identity())))
        checkpoints = all_succeed(lambda: opened.enter_context(open_checkpoints(config.workdir, **keep)))
        clock = Clock(config.batch_size, peak_flops)
        scores = train(setup, programs, metrics, checkpoints, progress, clock, command)
        if is_first():
            edge = 2 * (1 + config.optim.momentum) if config.optim.base == "sgd" else None
            draw_curves(metrics.records, config.title, config.workdir / "curves.png", edge)
    return scores


def train(
    setup: Setup,
    programs: Programs,
    metrics: Metrics,
    checkpoints: Checkpoints,
    progress: Progress,
    clock: Clock,
    command: str,
) -> Scores:
    """Trains to the end, and returns the scores of the result.

    A finished run is not trained again. One that was interrupted goes on from its last checkpoint, and on the CPU it
    ends in the same state to the last bit.

    Args:
      setup: what to train.
      programs: its compiled programs.
      metrics: takes one record for every ``log_every`` steps and every end of an epoch, and one for every evaluation
        and every measurement of the top eigenvalue.
      checkpoints: of this run.
      progress: what the user sees.
      clock: of this run.
      command: how the user started this, for the record.

    Raises:
      UserError: if loss, parameters or optimizer state are not finite any more, or the disk refuses.
      Stopped: after SIGTERM, when the state is saved.
    """
    last = checkpoints.restore_last(programs.abstract, progress.say)
    state, scores = (programs.create(), {}) if last is None else last
    start = int(state.step)
    if start == setup.steps:
        return scores
    progress.begin(setup.config.optim.label, setup.steps, start)
    _announce(setup, programs, progress)
    metrics.begin_session(start, session(command) | programs.compile(), progress.say)
    _warn(setup, programs, progress)
    batches = setup.pipeline.train(start)
    folder = setup.config.workdir / "profile" if setup.config.profile else None
    clock.restart()
    with _stop_signal() as is_asked_to_stop, profiled(programs.step, folder) as take:
        for step in range(start + 1, setup.steps + 1):
            state = take(state, clock.wait_for(batches, programs.flops(step - 1)), step - 1)
            progress.advance(step)
            if setup.is_logged(step):
                record = _record(setup, state, step) | clock.times() | programs.memory()
                _check_finite(state, record, checkpoints)
                metrics.write(record)
                progress.show(record)
                state = programs.without_sums(state)
            if setup.is_followed(step):
                state = programs.followed(state)
                record = _curvature(setup, state, step)
                _check_finite(state, record, checkpoints)
                metrics.write(record)
            scores = {}
            if setup.is_evaluated(step):
                state, scores = _evaluate(setup, programs, metrics, checkpoints, state, step)
            stop = is_asked_to_stop(step)
            if stop or setup.is_saved(step):
                _check_finite(state, {}, checkpoints)
                checkpoints.save(step, state, scores, scores.get(setup.chosen_by))
                clock.restart()
            if stop and step < setup.steps:
                checkpoints.wait()
                raise Stopped(f"stopped at step {step} of {setup.steps}: the same command goes on from there")
    checkpoints.wait()
    return scores


_LARGE = 3_000_000
"""Parameters of a network that may compile for minutes."""


def _announce(setup: Setup, programs: Programs, progress: Progress) -> None:
    """Says what is compiled, if that may take long."""
    count = sum(leaf.size for leaf in jax.tree.leaves(programs.abstract.params))
    if count > _LARGE:
        what = f"the training step of {setup.config.optim.label} on {setup.config.model.name}"
        progress.say(f"compiling {what}, {count / 1e6:.1f} million parameters: this may take minutes")


def _warn(setup: Setup, programs: Programs, progress: Progress) -> None:
    """Says if the step is of a kind that the CPU is slow at."""
    count = programs.looped_convolutions
    if count:
        loop = f"the loop of --groups {setup.config.optim.groups}" if setup.config.optim.groups > 1 else "a loop"
        progress.say(
            f"slow: {count} convolutions of the step stand in {loop}, where XLA runs them up to 60 times slower on the "
            "CPU: leave that out, or train on an accelerator"
        )


def _record(setup: Setup, state: TrainState, step: int) -> dict[str, Any]:
    """Mean loss and accuracy since the last record, and what the optimizer saw."""
    return {
        "kind": "train",
        "step": step,
        "epoch": setup.epoch(step),
        **state.sums.means(setup.pipeline.data_set.num_classes),
        "learning_rate": float(setup.chain.learning_rate(step - 1)),
        **diagnostics(state.opt_state, setup.chain.links),
    }


def _curvature(setup: Setup, state: TrainState, step: int) -> dict[str, Any]:
    """The top eigenvalue that is followed, and the learning rate that led there."""
    return {
        "kind": "curvature",
        "step": step,
        "epoch": setup.epoch(step),
        "top_eigenvalue": float(state.followed.value),
        "residual": float(state.followed.residual),
        "learning_rate": float(setup.chain.learning_rate(step - 1)),
    }


def _evaluate(
    setup: Setup, programs: Programs, metrics: Metrics, checkpoints: Checkpoints, state: TrainState, step: int
) -> tuple[TrainState, Scores]:
    """Records the scores of the iterate; returns those of what the run would end with here."""
    about = {"step": step, "epoch": setup.epoch(step)}
    found = programs.evaluate(state.params, state.model_state, *setup.parts)
    _check_finite(state, about | found, checkpoints)
    metrics.write({"kind": "evaluation"} | about | found)
    if "validation_loss" in found:
        state = programs.validated(state, found["validation_loss"])
    if step == setup.steps or (setup.config.averaging != "none" and step == setup.half_time):
        found = programs.evaluate(*programs.result(state), "train", *setup.parts)
    best = metrics.best_epoch(setup.chosen_by) if step == setup.steps else {}
    return state, about | found | best


def _check_finite(state: TrainState, record: dict[str, Any], checkpoints: Checkpoints) -> None:
    """Stops a run that has diverged, before it writes anything more."""
    broken = int(state.broken)
    wrong = [name for name, value in record.items() if isinstance(value, float) and not math.isfinite(value)]
    if broken >= 0 or wrong:
        what = f"the training loss is not finite at step {broken}" if broken >= 0 else f"{wrong[0]} is not finite"
        raise checkpoints.diverged(what)


@contextlib.contextmanager
def _stop_signal() -> Iterator[Callable[[int], bool]]:
    """A function of the step that says whether to save and stop there: after SIGTERM, in all processes at one step."""
    if jax.process_count() > 1:  # JAX watches for the signal, and finds a step that no process has passed
        yield multihost_utils.reached_preemption_sync_point
        return
    asked = False

    def handler(*_: Any) -> None:
        nonlocal asked
        asked = True

    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield lambda step: asked
    finally:
        signal.signal(signal.SIGTERM, before)
