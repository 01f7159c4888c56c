"""Mixup: every row with the one before it, by one share for the batch, which follows from the key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from experiments.data.augment.mixup import mixup

ROWS = 16
IMAGES = np.random.default_rng(0).normal(size=(ROWS, 2, 3, 1)).astype(np.float32)
LABELS = np.arange(ROWS, dtype=np.int32) % 5


def test_images_and_labels_are_mixed_by_one_share():
    mixed, labels = mixup(jax.random.key(3), 0.2, jnp.array(IMAGES), LABELS)
    share = float(labels.share[0])
    assert 0.5 <= share < 1 and np.all(labels.share == labels.share[0])
    np.testing.assert_allclose(mixed, share * IMAGES + (1 - share) * IMAGES[np.arange(ROWS) - 1], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(labels.label, LABELS)
    np.testing.assert_array_equal(labels.other, LABELS[np.arange(ROWS) - 1])
    other = mixup(jax.random.key(4), 0.2, jnp.array(IMAGES), LABELS)[1].share[0]
    assert float(other) != share


@pytest.mark.parametrize("strength", [0.2, 1.0])
def test_the_smaller_share_has_the_mean_of_its_beta_distribution(strength):
    """E min(x, 1 - x), by a quadrature of the density."""
    draw = jax.jit(jax.vmap(lambda key: mixup(key, strength, jnp.array(IMAGES[:1]), LABELS[:1])[1].share[0]))
    smaller = 1 - np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
    x = (np.arange(200_000) + 0.5) / 200_000
    density = (x * (1 - x)) ** (strength - 1)
    expected = (np.minimum(x, 1 - x) * density).sum() / density.sum()
    assert smaller.mean() == pytest.approx(expected, abs=4 * smaller.std() / np.sqrt(4000))


def test_devices_change_nothing_and_exchange_a_row():
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    placed = NamedSharding(mesh, PartitionSpec("data"))
    program = jax.jit(lambda images, labels: mixup(jax.random.key(3), 0.2, images, labels))
    found = program(jax.device_put(IMAGES, placed), jax.device_put(LABELS, placed))
    jax.tree.map(np.testing.assert_array_equal, found, program(IMAGES, LABELS))
    text = program.lower(jax.device_put(IMAGES, placed), jax.device_put(LABELS, placed)).compile().as_text()
    assert "all-gather" not in text and "f32[1,2,3,1]" in text
