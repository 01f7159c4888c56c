"""The losses by their definitions: smoothing, mixtures, a sigmoid for each class."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data.augment.mixup import Mixed
from experiments.train.losses import LOSSES, cross_entropy, sigmoid_cross_entropy

LOGITS = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
LABELS = np.array([2, 0, 3], np.int32)
OTHER = np.array([1, 2, 3], np.int32)
SHARE = np.full(3, 0.7, np.float32)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_a_mixture_costs_its_share_of_both_labels(name, smoothing):
    loss = LOSSES[name]
    mixed = loss(LOGITS, Mixed(jnp.array(LABELS), jnp.array(OTHER), jnp.array(SHARE)), smoothing)
    parts = (loss(LOGITS, labels, smoothing) for labels in (LABELS, OTHER))
    np.testing.assert_allclose(mixed, 0.7 * next(parts) + 0.3 * next(parts), rtol=1e-5)
    assert not np.allclose(loss(LOGITS, LABELS, 0.0), loss(LOGITS, LABELS, 0.3))


def test_sigmoids_by_hand():
    probability = 1 / (1 + np.exp(np.log(3) - LOGITS.astype(np.float64)))
    yes = np.eye(4)[LABELS] * 0.8 + 0.2 / 3 * (1 - np.eye(4)[LABELS])
    expected = -(yes * np.log(probability) + (1 - yes) * np.log(1 - probability)).sum(-1)
    np.testing.assert_allclose(sigmoid_cross_entropy(LOGITS, LABELS, 0.2), expected, rtol=1e-5)
    untrained = -np.log(1 / 4) - 3 * np.log(3 / 4)  # where every class has the probability 1 / 4
    np.testing.assert_allclose(sigmoid_cross_entropy(np.zeros((1, 4), np.float32), LABELS[:1]), [untrained], rtol=1e-5)


def test_an_offset_of_all_logits_is_for_sigmoids_alone():
    for name, same in (("softmax", True), ("sigmoid", False)):
        assert np.allclose(LOSSES[name](LOGITS, LABELS), LOSSES[name](LOGITS + 1, LABELS), rtol=1e-4) == same
    assert LOSSES["softmax"] is cross_entropy
