"""scikit-learn's handwritten digits, 1797 images of 8 x 8 pixels, with a test set that is always the same."""

import numpy as np
import sklearn.datasets

_TEST_SIZE = 797
_TEST_SEED = 0
"""Decides which images are the test set."""

Labelled = tuple[np.ndarray, np.ndarray]
"""Images (n, height, width, channels), uint8 (0 ... 16 for digits), and labels (n,), int32."""


def digits() -> tuple[Labelled, Labelled]:
    """The 1000 images that may be trained on, and the test set."""
    pixels, labels = sklearn.datasets.load_digits(return_X_y=True)
    images = pixels.reshape(-1, 8, 8, 1).astype(np.uint8)
    order = np.random.default_rng(_TEST_SEED).permutation(len(labels))
    pool, test = order[_TEST_SIZE:], order[:_TEST_SIZE]
    labels = labels.astype(np.int32)
    return (images[pool], labels[pool]), (images[test], labels[test])
