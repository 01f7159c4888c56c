"""Prototypes: means against numpy, the distance and its gradient, classification by the nearest mean."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gam_jax
from tests.gam_jax.problems import mlp

FEATURES = jax.random.normal(jax.random.key(0), (12, 5))
LABELS = jnp.array([0, 0, 2, 2, 2, 3, 3, 3, 3, 3, -1, 7])
"""Class 1 has no example, and two examples are of no class."""


def test_means_are_those_of_the_classes():
    means, counts = jax.jit(gam_jax.class_prototypes, static_argnums=2)(FEATURES, LABELS, 4)
    np.testing.assert_array_equal(counts, [2, 0, 3, 5])
    for c in (0, 2, 3):
        np.testing.assert_allclose(means[c], np.asarray(FEATURES)[np.asarray(LABELS) == c].mean(0), rtol=1e-5)
    np.testing.assert_array_equal(means[1], 0)


def test_distance_is_over_the_classes_that_both_have():
    one = gam_jax.class_prototypes(FEATURES, LABELS, 4)
    other = gam_jax.class_prototypes(FEATURES + 2, jnp.where(LABELS == 3, 1, LABELS), 4)  # has 0, 1 and 2
    np.testing.assert_allclose(gam_jax.prototype_distance(one, other), 4 * 5, rtol=1e-5)
    nothing = gam_jax.class_prototypes(FEATURES, jnp.full(12, -1), 4)
    assert gam_jax.prototype_distance(one, nothing) == 0


def test_distance_of_noisy_prototypes_has_a_gradient_and_none_without_noise():
    """Of a network's hidden features, with respect to the weights below them; and it is that of finite differences."""
    _, params, batch = mlp(jnp.float32)
    w, key = params["w1"], jax.random.key(3)

    def prototypes(w):
        return gam_jax.class_prototypes(jnp.tanh(batch["x"] @ w), batch["y"], 3)

    @jax.jit
    @jax.value_and_grad
    def term(w, bound):
        clean = prototypes(w)
        moved = lambda w: gam_jax.prototype_distance(prototypes(w), clean)  # noqa: E731
        return gam_jax.random_perturbation(moved, bound)(w, noise_key=key)

    value, gradient = term(w, 0.0)
    np.testing.assert_allclose(value, 0, atol=1e-12)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    value, gradient = term(w, 0.5)
    assert value > 1e-3 and np.abs(gradient).max() > 1e-3
    direction = jax.random.normal(jax.random.key(4), w.shape)
    slope = (term(w + 1e-2 * direction, 0.5)[0] - term(w - 1e-2 * direction, 0.5)[0]) / 2e-2
    np.testing.assert_allclose(jnp.vdot(gradient, direction), slope, rtol=2e-2)


def test_logits_are_minus_squared_distances_and_an_empty_class_has_no_share():
    means = gam_jax.class_prototypes(FEATURES, LABELS, 4)
    logits = gam_jax.prototype_logits(FEATURES[:10], means)
    expected = -np.square(np.asarray(FEATURES[:10])[:, None] - np.asarray(means.means)[None]).sum(-1)
    np.testing.assert_allclose(np.delete(logits, 1, 1), np.delete(expected, 1, 1), rtol=1e-5)
    assert np.all(np.asarray(logits)[:, 1] == -np.inf)

    def loss(features):
        logits = gam_jax.prototype_logits(features, gam_jax.class_prototypes(features, LABELS[:10], 4))
        return optax.softmax_cross_entropy_with_integer_labels(logits, LABELS[:10]).mean()

    gradient = jax.grad(loss)(FEATURES[:10])
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 1e-3


def test_low_precision_is_summed_in_float32():
    features = jnp.full((3000, 1), 1.0, jnp.bfloat16).at[0].set(1.5)
    means, _ = gam_jax.class_prototypes(features, jnp.zeros(3000, int), 1)
    assert means.dtype == jnp.float32 and np.isclose(means[0, 0], 1 + 0.5 / 3000, rtol=1e-6)
