"""The data of one seed: which classes come when, and which images they bring."""

import dataclasses
from typing import NamedTuple

import numpy as np

from experiments.common.errors import require
from experiments.data.draws import generator, split
from experiments.data.images import resize_all
from experiments.data.memory import Decoded, Images
from experiments.few_shot.config import FewShotConfig


class Episode(NamedTuple):
    """Images by session. Classes are numbered in the order in which they come.

    Attributes:
      base: all training images of the base classes.
      exemplars: those of them that later sessions may see.
      shots: the images of each later session, of one class.
      validation: images of all classes, to choose hyper-parameters by.
      test: images of all classes.
    """

    base: Images
    exemplars: Images
    shots: tuple[Images, ...]
    validation: Images
    test: Images

    def joint(self, session: int) -> Images:
        """All training images up to a session."""
        return joined((self.base, *self.shots[:session]))


def draw_episode(config: FewShotConfig, decoded: Decoded, size: int, classes: int, seed: int) -> Episode:
    """The episode of a seed.

    Args:
      config: of the study.
      decoded: the images that may be trained on, and the test set.
      size: height and width of the images.
      classes: of the data set.
      seed: decides the split, the order of the classes, and the few images.

    Raises:
      UserError: if a class has too few images.
    """
    pool, test = (Images(resize_all(part.image, size), part.label) for part in decoded)
    chosen = split(len(pool.label), dataclasses.replace(config.data, split_seed=seed))
    rng = generator("order", seed)
    rank = np.argsort(rng.permutation(classes)).astype(np.int32)
    train, validation, test = (
        Images(part.image, rank[part.label]) for part in (pool.take(chosen[0]), pool.take(chosen[1]), test)
    )
    few = [_few(rng, train, label, config.shots) for label in range(classes)]
    return Episode(
        base=train.take(np.flatnonzero(train.label < config.base_classes)),
        exemplars=joined(few[: config.base_classes]),
        shots=tuple(few[config.base_classes :]),
        validation=validation,
        test=test,
    )


def _few(rng: np.random.Generator, images: Images, label: int, number: int) -> Images:
    there = np.flatnonzero(images.label == label)
    require(len(there) >= number, f"shots={number}, and a class has {len(there)} training images")
    return images.take(rng.choice(there, number, replace=False))


def balanced(labels: np.ndarray, steps: int, batch_size: int, seed: int) -> np.ndarray:
    """Which examples the steps see, shape (steps, batch): every class as often as any other, up to one a batch."""
    rng = generator("order", seed, 1)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]

    def batch() -> np.ndarray:
        turns = np.resize(rng.permutation(len(members)), batch_size)
        return np.array([rng.choice(members[turn]) for turn in turns])

    return np.stack([batch() for _ in range(steps)])


def joined(parts: tuple[Images, ...] | list[Images]) -> Images:
    """The images of all parts."""
    return Images(*map(np.concatenate, zip(*parts, strict=True)))
