"""The light RandAugment: what its name says, step by step."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.augment import basic, build, policies

SHAPE = (16, 16, 3)


def test_it_is_a_flip_and_two_weak_operations_without_a_square():
    images = np.random.default_rng(0).integers(256, size=(8, *SHAPE), dtype=np.uint8)
    keys = jax.random.split(jax.random.key(0), 8)
    policy = policies.randaugment(SHAPE, count=2, magnitude=10)
    operations = policies.augmentation(policy, jnp.zeros(3, jnp.uint8))

    def by_hand(key, image):
        flipped = basic.random_flip(jax.random.fold_in(key, 0), image)
        return operations(jax.random.fold_in(key, 1), flipped)

    found = jax.jit(build("randaugment_light", SHAPE, crop=False))(keys, images)
    np.testing.assert_array_equal(found, jax.jit(jax.vmap(by_hand))(keys, images))
    assert np.any(found != images)
