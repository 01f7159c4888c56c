"""Small data sets: decoded once into one array; a batch is a gather from it."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from experiments.common.errors import require
from experiments.data.batches import Batch, Part, evaluation_rows, unpadded_batch
from experiments.data.catalogue import DATA_SETS, DataSet
from experiments.data.config import DataConfig
from experiments.data.digits import digits
from experiments.data.draws import epoch_order, generator, label_offsets, split
from experiments.data.images import pixels, resize_all
from experiments.data.pacs import pacs
from experiments.data.prepared import Prepared, folder_of

_CHUNK = 1000
"""Records read at once."""


class Images(NamedTuple):
    """Images (n, height, width, channels), uint8, and labels (n,), int32."""

    image: np.ndarray
    label: np.ndarray

    def take(self, chosen: np.ndarray) -> "Images":
        return Images(self.image[chosen], self.label[chosen])


Decoded = tuple[Images, ...]
"""The images that may be trained on, and the test set; or those of each domain."""


@dataclasses.dataclass(frozen=True)
class MemoryPipeline:
    """The batches of a data set in memory; see :class:`experiments.data.batches.Pipeline`.

    Process p of P gets the p-th of P equal blocks of rows of every batch.
    """

    data_set: DataSet
    parts: Mapping[Part, Images]
    seed: int
    batch_size: int
    rows: slice

    @classmethod
    def open(
        cls, config: DataConfig, *, seed: int, batch_size: int, process_index: int, process_count: int
    ) -> "MemoryPipeline":
        """See :func:`experiments.data.open_data`."""
        share = batch_size // process_count
        rows = slice(process_index * share, (process_index + 1) * share)
        return cls.of(read(config), config, seed=seed, batch_size=batch_size, rows=rows)

    @classmethod
    def of(
        cls, decoded: Decoded, config: DataConfig, *, seed: int, batch_size: int, rows: slice = slice(None)
    ) -> "MemoryPipeline":
        """The batches of images that :func:`read` has decoded, divided into parts as the config says."""
        data_set = DATA_SETS[config.name]
        pool, test = _hold_out(decoded, config.split_seed) if data_set.domains else decoded
        train, validation = (pool.take(chosen) for chosen in split(len(pool.label), config))
        offsets = label_offsets(generator("noise", seed), len(train.label), config.noise, data_set.num_classes)
        noisy = train._replace(label=(train.label + offsets) % data_set.num_classes)
        return cls(
            data_set=data_set.resized(config.image_size),
            parts={"train": noisy, "validation": validation, "test": test},
            seed=seed,
            batch_size=batch_size,
            rows=rows,
        )

    @property
    def num_train(self) -> int:
        return len(self.parts["train"].label)

    @property
    def steps_per_epoch(self) -> int:
        return self.num_train // self.batch_size

    def order(self, epoch: int) -> np.ndarray:
        """Which training images the steps of an epoch see, shape (steps, batch)."""
        whole = epoch_order(self.seed, epoch, self.num_train)[: self.steps_per_epoch * self.batch_size]
        return whole.reshape(-1, self.batch_size)

    def train(self, start_step: int) -> Iterator[Batch]:
        first_epoch, done = divmod(start_step, self.steps_per_epoch)
        for epoch in itertools.count(first_epoch):
            for chosen in self.order(epoch)[done if epoch == first_epoch else 0 :, self.rows]:
                yield self._batch("train", chosen, np.ones(len(chosen), np.float32))

    def evaluation(self, part: Part) -> Iterator[Batch]:
        size = len(self.parts[part].label)
        for start in range(0, evaluation_rows(size, self.batch_size), self.batch_size):
            row = np.arange(start, start + self.batch_size)[self.rows]
            yield self._batch(part, np.minimum(row, size - 1), (row < size).astype(np.float32))

    def _batch(self, part: Part, chosen: np.ndarray, weight: np.ndarray) -> Batch:
        image, label = self.parts[part].take(chosen)
        return Batch(resize_all(image, self.data_set.image_shape[0]), label, chosen.astype(np.int32), weight)


def whole(pipeline: MemoryPipeline, part: Part) -> Batch:
    """A part of the data, on the device."""
    images, labels = pipeline.parts[part]
    images = resize_all(images, pipeline.data_set.image_shape[0])
    return jax.device_put(unpadded_batch(images, labels, np.arange(len(labels), dtype=np.int32)))


def read(config: DataConfig) -> Decoded:
    """Decodes a data set.

    Raises:
      UserError: if they are not there.
    """
    require(config.workers == 0, f"{config.name} is kept in memory: data.workers must be 0, got {config.workers}")
    data_set = DATA_SETS[config.name]
    if config.name == "digits":
        return tuple(Images(*part) for part in digits())
    if config.name == "pacs":
        return tuple(Images(*part) for part in pacs(folder_of(config), data_set))
    prepared = Prepared(data_set, folder_of(config))
    return _decoded(prepared, "train", data_set), _decoded(prepared, data_set.test_split, data_set)


def _hold_out(domains: Sequence[Images], number: int) -> Decoded:
    """All domains but one, and that one."""
    number %= len(domains)
    others = [domain for i, domain in enumerate(domains) if i != number]
    return Images(*(np.concatenate(column) for column in zip(*others, strict=True))), domains[number]


def _decoded(prepared: Prepared, name: str, data_set: DataSet) -> Images:
    records = prepared.records(name)
    size = len(records)
    found = Images(np.empty((size, *data_set.image_shape), np.uint8), np.empty(size, np.int32))
    for start in range(0, size, _CHUNK):
        chunk = records.take(range(start, min(start + _CHUNK, size)))
        for i, (image, label) in enumerate(chunk, start):
            found.image[i], found.label[i] = pixels(image), label
    return found
