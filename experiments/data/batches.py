"""What training sees of the data: batches, and where they come from."""

from collections.abc import Iterator
from typing import Literal, NamedTuple, Protocol

import jax
import numpy as np

from experiments.data.catalogue import DataSet

Array = np.ndarray | jax.Array
"""On the host when it is read, on the devices when it is computed with."""
Part = Literal["train", "validation", "test"]
"""What is trained on, what is set aside to choose by, and what is measured once."""


class Batch(NamedTuple):
    """One process' share of a batch.

    Attributes:
      image: (n, height, width, channels), uint8, not normalised.
      label: (n,), int32; with ``noise``, in the training part, some are wrong.
      index: (n,), int32: which example of its part; the augmentation of an example is seeded by it.
      weight: (n,), float32: 1, or 0 for a row that only fills up a batch of an evaluation.
    """

    image: Array
    label: Array
    index: Array  # pyright: ignore[reportIncompatibleMethodOverride]  (hides tuple.index)
    weight: Array


def unpadded_batch(image: Array, label: Array, index: Array) -> Batch:
    """A batch of which every row counts."""
    return Batch(image, label, index, np.ones(len(label), np.float32))


class Pipeline(Protocol):
    """The batches of one data set as one of several processes sees them.

    Attributes:
      data_set: what it is, with the shape that the images have here.
      num_train: training images.
      steps_per_epoch: whole batches in an epoch; the images left over, others in every epoch, are left out.
    """

    @property
    def data_set(self) -> DataSet: ...
    @property
    def num_train(self) -> int: ...
    @property
    def steps_per_epoch(self) -> int: ...

    def train(self, start_step: int) -> Iterator[Batch]:
        """This process' rows of the batches ``start_step``, ``start_step + 1``, ... without end.

        The batch of all processes together is a function of the seed and the step alone.
        """
        ...

    def evaluation(self, part: Part) -> Iterator[Batch]:
        """Every example of a part once over all processes, with weight 1, without augmentation.

        All batches have the same shape, and all processes the same number of them; none if the part is empty.
        """
        ...


def evaluation_rows(size: int, batch_size: int) -> int:
    """Rows of an evaluation over ``size`` examples, those that only fill up the last batch included."""
    return -(-size // batch_size) * batch_size
