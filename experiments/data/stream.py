"""Large data sets: read, decoded and cropped by grain while training runs."""

import contextlib
import dataclasses
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import absl.flags
import grain
import numpy as np

from experiments.data.batches import Batch, Part, evaluation_rows
from experiments.data.catalogue import DATA_SETS, DataSet
from experiments.data.config import DataConfig
from experiments.data.draws import generator, label_offsets, split
from experiments.data.images import Box, centre_box, cut, random_box
from experiments.data.prepared import Prepared, folder_of
from experiments.data.records import Records


@dataclasses.dataclass(frozen=True)
class Examples:
    """The examples of one part, each decoded when it is asked for.

    Attributes:
      records: of the split that they are in; see :class:`experiments.data.records.Records`.
      chosen: which of these they are.
      offsets: what is added to their labels, modulo the number of classes.
      data_set: the shape of the images, and the number of classes.
    """

    records: Records
    chosen: np.ndarray
    offsets: np.ndarray
    data_set: DataSet

    def __len__(self) -> int:
        return len(self.chosen)

    def random_crop(self, index: int, rng: np.random.Generator) -> Batch:
        """One example as training sees it: a random box of it."""
        return self._example(index, 1, lambda width, height: random_box(rng, width, height))

    def centre_crop(self, row: int) -> Batch:
        """One row of an evaluation: the middle of an example. Rows beyond the last one repeat it with weight 0."""
        index = min(row, len(self) - 1)
        return self._example(index, row == index, centre_box)

    def _example(self, index: int, weight: float, choose: Callable[[int, int], Box]) -> Batch:
        image, label = self.records[int(self.chosen[index])]
        size = self.data_set.image_shape[0]
        return Batch(
            image=cut(image, choose(*image.size), size),
            label=np.asarray((label + self.offsets[index]) % self.data_set.num_classes, np.int32),
            index=np.asarray(index, np.int32),
            weight=np.asarray(weight, np.float32),
        )


@dataclasses.dataclass(frozen=True)
class StreamPipeline:
    """The batches of a data set on disk; see :class:`experiments.data.batches.Pipeline`.

    Process p of P gets the p-th of P equal blocks of rows of every batch.
    """

    data_set: DataSet
    parts: Mapping[Part, Examples]
    seed: int
    batch_size: int
    process_index: int
    process_count: int
    augmented: bool
    workers: int

    @classmethod
    def open(
        cls, config: DataConfig, *, seed: int, batch_size: int, process_index: int, process_count: int
    ) -> "StreamPipeline":
        """See :func:`experiments.data.open_data`."""
        data_set = DATA_SETS[config.name].resized(config.image_size)
        prepared = Prepared(data_set, folder_of(config))
        pool, test = prepared.records("train"), prepared.records(data_set.test_split)
        train, validation = split(len(pool), config)
        noise = label_offsets(generator("noise", seed), len(train), config.noise, data_set.num_classes)

        def examples(records: Records, chosen: np.ndarray, offsets: np.ndarray | None = None) -> Examples:
            clean = np.zeros(len(chosen), np.int32)
            return Examples(records, chosen, clean if offsets is None else offsets, data_set)

        return cls(
            data_set=data_set,
            parts={
                "train": examples(pool, train, noise),
                "validation": examples(pool, validation),
                "test": examples(test, np.arange(len(test))),
            },
            seed=seed,
            batch_size=batch_size,
            process_index=process_index,
            process_count=process_count,
            augmented=config.augment != "none",
            workers=config.workers,
        )

    @property
    def num_train(self) -> int:
        return len(self.parts["train"])

    @property
    def steps_per_epoch(self) -> int:
        return self.num_train // self.batch_size

    def train(self, start_step: int) -> Iterator[Batch]:
        order, crop = (int(generator(purpose, self.seed).integers(2**32)) for purpose in ("order", "crop"))
        epoch = grain.MapDataset.range(self.num_train).shuffle(seed=order)[: self.steps_per_epoch * self.batch_size]
        examples = self.parts["train"]
        rows = epoch.repeat()
        # The crop is drawn for a row of the global batch, before the processes part: they see one and the same batch.
        cropped = rows.random_map(examples.random_crop, seed=crop) if self.augmented else rows.map(examples.centre_crop)
        return self._batches(cropped, start_step, self.workers)

    def evaluation(self, part: Part) -> Iterator[Batch]:
        examples = self.parts[part]
        rows = grain.MapDataset.range(evaluation_rows(len(examples), self.batch_size))
        # By threads: to start workers for every evaluation would take longer than most evaluations.
        return self._batches(rows.map(examples.centre_crop), 0, workers=0)

    def _batches(self, rows: Any, start_step: int, workers: int) -> Iterator[Batch]:
        """This process' share of the rows, in batches from ``start_step`` on, decoded ahead.

        Batches are made before the reading is parted among workers, so that they are the same for any number of these.
        """
        share = self.batch_size // self.process_count
        own = _Block(rows, self.batch_size, self.process_index * share, share).batch(share)
        threads = 1 if workers else min(16, os.cpu_count() or 1)  # each decodes one batch at a time
        ahead = own[start_step:].to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
        if workers:
            if not absl.flags.FLAGS.is_parsed():  # grain reads these flags when it starts workers
                absl.flags.FLAGS.mark_as_parsed()
            ahead = ahead.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers), _end_with_parent)
        with contextlib.closing(iter(ahead)) as batches:
            yield from batches


class _Block(grain.MapDataset):
    """The same block of rows of every batch."""

    def __init__(self, rows: grain.MapDataset, batch_size: int, start: int, share: int):
        super().__init__(rows)
        self._batch_size, self._start, self._share = batch_size, start, share

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * self._share

    def __getitem__(self, index: Any) -> Any:
        batch, row = divmod(index, self._share)
        return self._parent[batch * self._batch_size + self._start + row]


def _end_with_parent(worker: int, workers: int) -> None:
    """Ends this worker when the process that it works for is gone; grain's own would outlive one that is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
