"""Everything about the data that is drawn at random: the split, the wrong labels, the order of an epoch."""

from typing import Literal

import numpy as np

from experiments.common.errors import require
from experiments.data.config import DataConfig

_PURPOSES = ("split", "noise", "order", "crop")


def generator(purpose: Literal["split", "noise", "order", "crop"], seed: int, epoch: int = 0) -> np.random.Generator:
    """Random numbers for one purpose, independent of those for another purpose, seed or epoch."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([_PURPOSES.index(purpose), seed, epoch])))


def split(size: int, config: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """Which of ``size`` images are trained on, and which are the validation set; both sorted.

    Raises:
      UserError: if there are not as many training images as the config asks for.
    """
    shuffled = generator("split", config.split_seed).permutation(size)
    validation, rest = np.split(shuffled, [round(config.validation * size)])
    wanted = len(rest) if config.train_size is None else config.train_size
    require(
        1 <= wanted <= len(rest),
        f"data.train_size={wanted} is not possible: of the {size} training images of {config.name}, "
        f"data.validation={config.validation} leaves {len(rest)}",
    )
    return np.sort(rest[:wanted]), np.sort(validation)


def label_offsets(rng: np.random.Generator, n: int, fraction: float, num_classes: int) -> np.ndarray:
    """Symmetric label noise, as what is to be added to ``n`` labels modulo ``num_classes``.

    Exactly ``round(fraction * n)`` offsets are not 0; these labels become another class, each one equally likely.
    """
    chosen = rng.permutation(n)[: round(fraction * n)]
    offsets = np.zeros(n, np.int32)
    offsets[chosen] = rng.integers(1, num_classes, len(chosen))
    return offsets


def epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """The order of ``size`` examples in one epoch."""
    return generator("order", seed, epoch).permutation(size)
