"""From the config of a run to everything that it is made of, before any number is computed."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from experiments.common.errors import require
from experiments.data import Array, Part, Pipeline, augment, open_data
from experiments.models import registry as models
from experiments.models.config import ModelConfig
from experiments.models.registry import Model
from experiments.models.remat import resolve
from experiments.optim.chain import Chain, make_chain
from experiments.optim.methods import METHODS
from experiments.train.config import TrainConfig
from experiments.train.state import TrainState, averaging, initial_state, initial_weights
from experiments.train.step import LossFn, make_loss, make_measured_loss, normalise
from gam_jax.flatness import Follow, follow_top_eigenvalue


class Setup(NamedTuple):
    """What a run is made of.

    Attributes:
      config: of the run.
      pipeline: its data, as this process sees them.
      seen: ``(keys, pixels) -> images``: training images as the network sees them, augmented and normalised.
      model: its network.
      loss_fn: the loss that is minimised.
      chain: the optimizer.
      steps: number of training steps.
      follow: the top eigenvalue that is followed, or None.
      init: the state before the first step; to be jitted.
    """

    config: TrainConfig
    pipeline: Pipeline
    seen: Callable[[jax.Array, Array], jax.Array]
    model: Model
    loss_fn: LossFn
    chain: Chain
    steps: int
    follow: Follow | None
    init: Callable[[], TrainState]

    @property
    def scans(self) -> bool:
        """Whether the network scans over its layers."""
        return models.scans(self.config.model)

    @property
    def half_time(self) -> int:
        """The step at the end of the middle epoch; 0 if there is none."""
        epoch = self.pipeline.steps_per_epoch
        return self.steps // epoch // 2 * epoch

    @property
    def parts(self) -> tuple[Part, ...]:
        """What is evaluated beside the training images."""
        return ("validation", "test") if self.config.data.validation > 0 else ("test",)

    @property
    def chosen_by(self) -> str:
        """The score that names the best epoch."""
        return f"{self.parts[0]}_accuracy"

    def epoch(self, step: int) -> float:
        """How many times the training images were seen after so many steps."""
        return round(step / self.pipeline.steps_per_epoch, 4)

    def is_logged(self, step: int) -> bool:
        """Whether the training loss is recorded after a step."""
        return step % self.config.log_every == 0 or self._ends_epoch(step)

    def is_followed(self, step: int) -> bool:
        """Whether the top eigenvalue is measured after a step."""
        every = self.config.eigenvalue_every
        return every is not None and step % every == 0

    def is_evaluated(self, step: int) -> bool:
        """Whether the network is evaluated after a step."""
        every = self.config.eval_epochs * self.pipeline.steps_per_epoch
        return step % every == 0 or step in (self.half_time, self.steps)

    def is_saved(self, step: int) -> bool:
        """Whether there is a checkpoint after a step."""
        every = self.config.checkpoints.every
        return self.is_evaluated(step) or (every is not None and step % every == 0)

    def _ends_epoch(self, step: int) -> bool:
        return step % self.pipeline.steps_per_epoch == 0 or step == self.steps


def set_up(config: TrainConfig) -> Setup:
    """Makes everything that a run needs.

    Raises:
      UserError: if the data are not there, or something in the config does not fit the rest.
    """
    processes: Any = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    return assemble(config, open_data(config.data, seed=config.seed, batch_size=config.batch_size, **processes))


def assemble(config: TrainConfig, pipeline: Pipeline) -> Setup:
    """Makes what a run needs beside its data.

    Raises:
      UserError: if something in the config does not fit the rest.
    """
    data_set, steps = pipeline.data_set, config.steps or config.epochs * pipeline.steps_per_epoch
    fill = tuple(round(255 * value) for value in data_set.mean)
    crop = data_set.in_memory  # the others come cropped at random
    augmented = augment.build(config.data.augment, data_set.image_shape, fill=fill, crop=crop)
    _check_fits(config, data_set.image_shape, steps)
    model = models.build(_network(config), data_set.image_shape, data_set.num_classes)
    loss_fn = make_loss(model, config.label_smoothing, config.loss)
    chain = make_chain(config.optim, loss_fn, steps)
    follow = None if config.eigenvalue_every is None else follow_top_eigenvalue(make_measured_loss(model, data_set))

    def init() -> TrainState:
        weights = initial_weights(model.init, config.seed)
        return initial_state(chain.tx.init, averaging(config).init, weights, follow_init(follow))

    return Setup(
        config=config,
        pipeline=pipeline,
        seen=lambda keys, pixels: normalise(augmented(keys, pixels), data_set),
        model=model,
        loss_fn=loss_fn,
        chain=chain,
        steps=steps,
        follow=follow,
        init=init,
    )


def follow_init(follow: Follow | None) -> Callable[[Any], Any]:
    """The state of the eigenvalue that is followed, of the parameters; () if none is."""
    return lambda params: () if follow is None else follow.init(params, jax.random.key(0))


def _network(config: TrainConfig) -> ModelConfig:
    """The network, with what "auto" stands for."""
    remat = resolve(
        config.model.remat,
        scanned=models.scans(config.model),
        second_order=METHODS[config.optim.method].second_order,
        divided=config.devices.fsdp > 1,
    )
    return dataclasses.replace(config.model, remat=remat)


_SMALLEST = 16
"""Pixels on a side, below which cutout and the policies, made for 32, leave little of an image."""


def _check_fits(config: TrainConfig, image_shape: tuple[int, int, int], steps: int) -> None:
    """Refuses what the run is too small for."""
    optim, augment = config.optim, config.data.augment
    height, width, _ = image_shape
    require(
        optim.interval <= max(steps, 1),
        f"interval must be at most the number of training steps, {steps}, got {optim.interval}",
    )
    require(
        optim.curvature_share <= config.batch_size,
        f"curvature_share must be at most batch_size, {config.batch_size}, got {optim.curvature_share}",
    )
    rows = -(-config.batch_size // optim.curvature_share)
    require(rows % optim.groups == 0, f"groups must divide the {rows} images that the method sees, got {optim.groups}")
    require(
        optim.warmup * steps <= steps - 1 or steps == 1,
        f"warmup must leave a step after it, got {optim.warmup} of {steps} steps",
    )
    require(
        augment in ("none", "basic") or min(height, width) >= _SMALLEST,
        f"data.augment={augment} is for images of at least {_SMALLEST} x {_SMALLEST} pixels, and those of "
        f"{config.data.name} have {height} x {width}: choose none or basic",
    )
