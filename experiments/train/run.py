"""A training run with its folder: opens everything, trains, and draws the learning curves."""

import contextlib
import functools

from experiments.checkpoint import Scores, open_checkpoints
from experiments.config import TrainConfig
from experiments.curves import draw_curves
from experiments.loop import train
from experiments.mesh import all_succeed, is_first, make_mesh
from experiments.metrics import open_metrics
from experiments.programs import Programs
from experiments.progress import open_progress
from experiments.setup import set_up


def run(config: TrainConfig, command: str) -> Scores:
    """Trains in ``config.workdir``, or goes on there; returns the scores of the result.

    Args:
      config: what to train.
      command: how the user started this, for the record.

    Raises:
      UserError: if something cannot be done; nothing is written if that is known before the first step.
      Stopped: after SIGTERM.
    """
    mesh = make_mesh(config.devices, config.batch_size)
    setup = all_succeed(functools.partial(set_up, config))
    programs = Programs(setup, mesh)
    keep = {"keep": config.checkpoints.keep, "always": (setup.half_time, setup.steps)}
    with contextlib.ExitStack() as opened:
        metrics = all_succeed(lambda: opened.enter_context(open_metrics(config.workdir, config.identity())))
        checkpoints = all_succeed(lambda: opened.enter_context(open_checkpoints(config.workdir, **keep)))
        progress = opened.enter_context(open_progress())
        scores = train(setup, programs, metrics, checkpoints, progress, command)
        if is_first():
            label = f"{config.optim.label}, {config.model.name}, {config.data.name}"
            draw_curves(metrics.records, label, config.workdir / "curves.png")
    return scores
