"""Random perturbation: the gradient against explicit noisy gradients, the law of the noise, mask, key and spread."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import gam_jax

KEY = jax.random.key(7)
PARAMS = {"w1": jax.random.normal(jax.random.key(1), (6, 8)), "w2": jax.random.normal(jax.random.key(2), (8,))}
BATCH = jax.random.normal(jax.random.key(3), (16, 6))
MASK = {"w1": False, "w2": True}
SHAPES = (0.3, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0)


def LOSS(params, batch):
    return jnp.mean(jnp.tanh(batch @ params["w1"]) @ params["w2"] ** 2)


def recorded(**options):
    """Loss, gradient and the points at which the loss was taken, [M] of each leaf."""

    def with_point(params, batch):
        return LOSS(params, batch), params

    loss = gam_jax.random_perturbation(with_point, 0.1, has_aux=True, **options)
    (value, points), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(PARAMS, BATCH, noise_key=KEY)
    return value, gradient, points


def at(points):
    """Losses and gradients at each of the points."""
    return jax.jit(jax.vmap(jax.value_and_grad(LOSS), (0, None)))(points, BATCH)


@pytest.mark.parametrize("draws_by", ["scan", "vmap"])
def test_gradient_is_the_mean_of_the_noisy_gradients(draws_by):
    value, gradient, points = recorded(draws=3, draws_by=draws_by)
    losses, gradients = at(points)
    np.testing.assert_allclose(value, np.mean(losses), rtol=1e-6)
    mean = jax.tree.map(lambda g: np.mean(g, axis=0), gradients)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), gradient, mean)
    clean = jax.jit(jax.grad(LOSS))(PARAMS, BATCH)
    assert max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (gradient, clean)), strict=True)) > 1e-3
    assert all(np.unique(x.reshape(3, -1), axis=0).shape[0] == 3 for x in points.values())  # the draws differ


def test_noise_is_on_the_leaves_of_the_mask_alone():
    (_, _, everywhere), (_, _, points) = recorded(), recorded(perturb_mask=lambda params: MASK)
    for name, moves in MASK.items():
        np.testing.assert_array_equal(points[name], everywhere[name] if moves else np.stack([PARAMS[name]] * 2))
    parts = (np.asarray(points["w2"]) - np.asarray(PARAMS["w2"])[None]) / 0.1
    np.testing.assert_allclose(parts, np.round(4 * parts) / 4, atol=1e-5)
    assert np.abs(parts).max() <= 0.5 + 1e-5 and len(np.unique(np.round(4 * parts))) > 2


def test_the_same_key_the_same_noise():
    loss = jax.jit(gam_jax.random_perturbation(LOSS, 0.1))
    one, again, other = (loss(PARAMS, BATCH, noise_key=key) for key in (KEY, KEY, jax.random.key(8)))
    assert one == again != other


@pytest.mark.parametrize("spread", [0.0, 2.0])
def test_without_noise_it_is_plain_training(spread):
    """To the last bit, with two equal draws; the spread's gradient, of a root at zero, is zero."""
    loss = gam_jax.random_perturbation(LOSS, 0.0, spread=spread)
    plain = jax.jit(jax.value_and_grad(LOSS))(PARAMS, BATCH)
    found = jax.jit(jax.value_and_grad(loss))(PARAMS, BATCH, noise_key=KEY)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-8), found, plain)


def test_spread_is_the_standard_deviation_of_the_draws():
    value, gradient, points = recorded(draws=3, spread=2.0)
    losses, gradients = at(points)
    deviation = np.std(losses, ddof=1)
    np.testing.assert_allclose(value, np.mean(losses) + 2 * deviation, rtol=1e-5)
    weights = 1 / 3 + 2 * (np.array(losses) - np.mean(losses)) / (2 * deviation)  # of each draw's gradient
    expected = jax.tree.map(lambda g: np.tensordot(weights, g, 1), gradients)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6), gradient, expected)


def test_spread_needs_two_draws():
    with pytest.raises(ValueError, match="draws=1 with spread=2.0"):
        gam_jax.random_perturbation(LOSS, 0.1, draws=1, spread=2.0)


def test_it_is_a_loss_for_every_link_of_a_chain():
    """The arguments travel by name, the key among them; all passes see one noise."""
    loss = gam_jax.random_perturbation(LOSS, 0.1)
    tx = gam_jax.sam(loss, 0.05)

    @jax.jit
    def both(params):
        gradient = jax.grad(loss)(params, BATCH, noise_key=KEY)
        updates, _ = tx.update(gradient, tx.init(params), params, batch=BATCH, noise_key=KEY)
        norm = optax.tree.norm(gradient)
        ascent = jax.tree.map(lambda w, g: w + 0.05 * g / norm, params, gradient)
        return updates, jax.grad(loss)(ascent, BATCH, noise_key=KEY)

    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), *both(PARAMS))


def test_other_noise_and_dtypes():
    params = {"w": jnp.ones(1000, jnp.bfloat16), "n": None}
    points = gam_jax.random_perturbation(
        lambda params: (jnp.sum(params["w"], dtype=jnp.float32), params["w"]),
        0.5,
        noise=jax.random.normal,
        draws=1,
        has_aux=True,
    )
    gradient, (moved,) = jax.grad(points, has_aux=True)(params, noise_key=KEY)
    assert moved.dtype == gradient["w"].dtype == jnp.bfloat16 and gradient["n"] is None
    assert 0.45 < np.std(np.asarray(moved, np.float32)) < 0.55
    np.testing.assert_array_equal(np.asarray(gradient["w"], np.float32), 1.0)


def _probabilities(a, b):
    return np.diff(scipy.stats.beta.cdf(np.arange(6) / 5, a, b))


def test_law_of_the_noise():
    """Over keys that of a mixture of all pairs; of the entries of one leaf that of one pair."""
    draws = 20_000
    single = jax.jit(jax.vmap(gam_jax.discrete_beta))(jax.random.split(KEY, draws))
    found = np.bincount(np.asarray(4 * single + 2, int), minlength=5) / draws
    pairs = [_probabilities(a, b) for a, b in itertools.product(SHAPES, SHAPES)]
    mixture = np.mean(pairs, axis=0)
    np.testing.assert_allclose(found, mixture, atol=4 * np.sqrt(0.25 / draws))
    leaves = jax.jit(jax.vmap(lambda key: gam_jax.discrete_beta(key, (2000,))))(jax.random.split(KEY, 30))
    laws = np.stack([np.bincount(row, minlength=5) / 2000 for row in np.asarray(4 * leaves + 2, int)])
    distances = np.abs(laws[:, None] - np.stack(pairs)[None]).max(-1)
    assert distances.min(1).max() < 0.05 and len(set(distances.argmin(1))) > 10
