"""A data set of which only the shapes are there: all that compiling a training step needs."""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.data import DATA_SETS, Batch, DataSet, Part
from experiments.train.config import TrainConfig
from experiments.train.setup import Setup, assemble


class StandIn(NamedTuple):
    """A :class:`experiments.data.Pipeline` without images."""

    data_set: DataSet
    num_train: int
    steps_per_epoch: int

    def train(self, start_step: int) -> Iterator[Batch]:
        raise NotImplementedError(f"{self.data_set.name} was not opened")

    def evaluation(self, part: Part) -> Iterator[Batch]:
        raise NotImplementedError(f"{self.data_set.name} was not opened")


def set_up_without_data(config: TrainConfig, steps_per_epoch: int = 1000) -> Setup:
    """What a run is made of, but for its images, none of which are read.

    Args:
      config: of the run.
      steps_per_epoch: which the length of the learning rate's schedule follows from.
    """
    data_set = DATA_SETS[config.data.name].resized(config.data.image_size)
    return assemble(config, StandIn(data_set, steps_per_epoch * config.batch_size, steps_per_epoch))


def random_batch(data_set: DataSet, size: int) -> Batch:
    """A batch of random pixels and labels."""
    pixels, labels = jax.random.split(jax.random.key(0))
    return Batch(
        image=jax.random.randint(pixels, (size, *data_set.image_shape), 0, 256, jnp.int32).astype(jnp.uint8),
        label=jax.random.randint(labels, (size,), 0, data_set.num_classes),
        index=jnp.arange(size),
        weight=jnp.ones(size),
    )
