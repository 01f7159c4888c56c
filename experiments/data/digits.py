"""scikit-learn's handwritten digits, split per seed, with seeded label noise on the training labels."""

from typing import NamedTuple

import jax
import numpy as np
import sklearn.datasets

from experiments.config import DigitsConfig, require
from experiments.data.draws import label_offsets

NUM_CLASSES = 10


class Examples(NamedTuple):
    """Inputs of shape (n, features), float32, and labels of shape (n,), int32."""

    x: np.ndarray | jax.Array
    y: np.ndarray | jax.Array


class Split(NamedTuple):
    """Three disjoint parts of one data set. Only the labels of ``train`` may be wrong."""

    train: Examples
    validation: Examples
    test: Examples


def digits(config: DigitsConfig, noise: float, seed: int) -> Split:
    """The handwritten digits as one seed sees them, pixels scaled to [0, 1].

    The test set is the same for all seeds. From the other images each seed draws its training set, and keeps the rest
    as its validation set. A fraction ``noise`` of the training labels is wrong.
    """
    pixels, y = load_digits()
    x = (pixels / 16).astype(np.float32)
    rest = len(y) - config.test_size
    require(
        config.test_size >= 1 and 1 <= config.train_size < rest,
        f"{len(y)} images leave no validation set with data.test_size={config.test_size} and "
        f"data.train_size={config.train_size}",
    )
    pool, test = pool_and_test(len(y), config)
    rng = np.random.default_rng([config.split_seed, seed])
    train, validation = np.split(rng.permutation(pool), [config.train_size])
    noisy = flip_labels(rng, y[train], noise)
    return Split(Examples(x[train], noisy), Examples(x[validation], y[validation]), Examples(x[test], y[test]))


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """All pixels, 0 ... 16, as float64 of shape (1797, 64), and all labels, int32."""
    pixels, labels = sklearn.datasets.load_digits(return_X_y=True)
    return pixels, labels.astype(np.int32)


def pool_and_test(size: int, config: DigitsConfig) -> tuple[np.ndarray, np.ndarray]:
    """Which images may be trained on, and which are the test set."""
    test, pool = np.split(np.random.default_rng(config.split_seed).permutation(size), [config.test_size])
    return pool, test


def flip_labels(rng: np.random.Generator, labels: np.ndarray, fraction: float) -> np.ndarray:
    """Symmetric noise: exactly ``round(fraction * n)`` labels become another class, each other one equally likely."""
    return (labels + label_offsets(rng, len(labels), fraction, NUM_CLASSES)) % NUM_CLASSES
