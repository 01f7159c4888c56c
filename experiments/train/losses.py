"""The losses that a network can be trained with, example by example; labels may be smoothed and mixed."""

import math
from collections.abc import Callable

import jax
import optax

from experiments.data import Array
from experiments.data.augment.mixup import Mixed
from experiments.train.config import LossName

Labels = Array | Mixed
"""Of each example, shape (batch,): its class, or two classes and the share of the first."""


def target(labels: Labels, logits: jax.Array, smoothing: float) -> jax.Array:
    """What a network should say, like its logits: 1 - smoothing for the label, the rest spread evenly."""
    if isinstance(labels, Mixed):
        share = labels.share[:, None]
        first, second = (target(label, logits, smoothing) for label in (labels.label, labels.other))
        return share * first + (1 - share) * second
    classes = logits.shape[-1]
    off = smoothing / (classes - 1)
    return jax.nn.one_hot(labels, classes, dtype=logits.dtype) * (1 - smoothing - off) + off


def cross_entropy(logits: jax.Array, labels: Labels, smoothing: float = 0.0) -> jax.Array:
    """Cross-entropy of the softmax of each example, shape (batch,)."""
    return optax.softmax_cross_entropy(logits, target(labels, logits, smoothing))


def sigmoid_cross_entropy(logits: jax.Array, labels: Labels, smoothing: float = 0.0) -> jax.Array:
    """Cross-entropy of one yes or no for each class (Beyer et al. 2020), summed over them, shape (batch,).

    1. The probability of a class is sigmoid(logit - log(classes - 1)), that is 1 / classes where logits are 0. In
       big_vision that offset is a starting value of the classifier's bias; softmax does not see it.
    """
    shifted = logits - math.log(logits.shape[-1] - 1)
    return optax.sigmoid_binary_cross_entropy(shifted, target(labels, logits, smoothing)).sum(-1)


LOSSES: dict[LossName, Callable[..., jax.Array]] = {"softmax": cross_entropy, "sigmoid": sigmoid_cross_entropy}
"""``(logits, labels, smoothing) -> losses``."""
