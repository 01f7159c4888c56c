"""The digits: disjoint splits, exact noise, fixed by the seed."""

import numpy as np
import pytest

from experiments.config import DigitsConfig, UserError
from experiments.data import digits, flip_labels


def rows(examples):
    return {row.tobytes() for row in examples.x}


def test_parts_are_disjoint_and_complete():
    split = digits(DigitsConfig(), noise=0.3, seed=3)
    assert [len(part.y) for part in split] == [400, 600, 797]
    train, validation, test = map(rows, split)
    assert len(train | validation | test) == 1797  # scikit-learn's images are all different
    assert split.train.x.min() == 0 and split.train.x.max() == 1


def test_seeds_share_the_test_set_only():
    one, two = (digits(DigitsConfig(), noise=0.3, seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(one.test.x, two.test.x)
    assert rows(one.train) != rows(two.train)
    assert rows(one.test) != rows(digits(DigitsConfig(split_seed=1), noise=0.3, seed=0).test)


def test_same_seed_gives_the_same_data():
    one, two = (digits(DigitsConfig(), noise=0.3, seed=7) for _ in range(2))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.x, b.x)
        np.testing.assert_array_equal(a.y, b.y)


def test_noise_touches_exactly_its_share_of_the_training_labels_and_nothing_else():
    clean, noisy = (digits(DigitsConfig(), noise=noise, seed=5) for noise in (0.0, 0.3))
    np.testing.assert_array_equal(clean.train.x, noisy.train.x)
    assert np.sum(clean.train.y != noisy.train.y) == 120
    np.testing.assert_array_equal(clean.validation.y, noisy.validation.y)
    np.testing.assert_array_equal(clean.test.y, noisy.test.y)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 1.0])
def test_noise_is_exact_and_symmetric(fraction):
    labels = np.repeat(np.arange(10, dtype=np.int32), 9000)
    flipped = flip_labels(np.random.default_rng(0), labels, fraction)
    wrong = flipped != labels
    assert wrong.sum() == fraction * len(labels)
    assert flipped.min() >= 0 and flipped.max() <= 9
    shift = (flipped - labels)[wrong] % 10
    counts = np.bincount(shift, minlength=10)[1:]
    np.testing.assert_allclose(counts, wrong.sum() / 9, atol=5 * np.sqrt(wrong.sum() / 9))


def test_sizes_that_leave_nothing_are_refused():
    with pytest.raises(UserError, match=r"1797 images .* data\.train_size=1000"):
        digits(DigitsConfig(train_size=1000), noise=0.0, seed=0)
