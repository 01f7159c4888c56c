"""Mixup: every row with the one before it, by one share for the batch, which follows from the key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from experiments.common.hlo import parse
from experiments.common.hlo_cost import matmul_flops
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
    """E min(x, 1 - x) = I(1/2; a + 1, a), the regularised incomplete beta function."""
    draw = jax.jit(jax.vmap(lambda key: mixup(key, strength, jnp.array(IMAGES[:1]), LABELS[:1])[1].share[0]))
    smaller = 1 - np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
    expected = scipy.special.betainc(strength + 1, strength, 0.5)
    assert smaller.mean() == pytest.approx(expected, abs=4 * smaller.std() / np.sqrt(4000))


def test_its_flops_can_be_told():
    """A loop that runs as often as the data say would make those of a whole step unknown."""
    program = jax.jit(lambda images, labels: mixup(jax.random.key(3), 0.2, images, labels))
    assert parse(program.lower(IMAGES, LABELS).compile().as_text()).total(matmul_flops) == 0


def test_devices_change_nothing_and_exchange_a_row():
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    placed = NamedSharding(mesh, PartitionSpec("data"))
    program = jax.jit(lambda images, labels: mixup(jax.random.key(3), 0.2, images, labels))
    found = program(jax.device_put(IMAGES, placed), jax.device_put(LABELS, placed))
    jax.tree.map(np.testing.assert_array_equal, found, program(IMAGES, LABELS))
    rows = PartitionSpec("data")
    inside = jax.shard_map(
        lambda *batch: mixup(jax.random.key(3), 0.2, *batch, axes=("data",))[0],
        mesh=mesh,
        in_specs=(rows, rows),
        out_specs=rows,
    )
    np.testing.assert_allclose(jax.jit(inside)(IMAGES, LABELS), found[0], rtol=1e-5, atol=1e-6)
    text = program.lower(jax.device_put(IMAGES, placed), jax.device_put(LABELS, placed)).compile().as_text()
    assert "all-gather" not in text and "f32[1,2,3,1]" in text
