"""Flatness in other balls, metrics, blocks and batches, against closed forms and brute force."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax import flatness
from tests.gam_jax.flatness.oracles import network, network_loss, quadratic, symmetric

KEY = jax.random.key(0)
ORDERS = [flatness.zeroth_order_flatness, flatness.first_order_flatness]
ONE_FAST = [pytest.param(ORDERS[0], marks=pytest.mark.slow), ORDERS[1]]
NORMS = [pytest.param("l2", marks=pytest.mark.slow), "linf"]
SPECTRUM = np.array([0.2, 0.5, 1.0, 1.5, 2.5, 4.0])


def both(*args, **options):
    return [order(*args, key=KEY, **options) for order in ORDERS]


def around(c, h):
    """A quadratic with its minimum at the parameters c."""
    return lambda w: (w - c) @ h @ (w - c) / 2


def test_cube_around_the_minimum_of_a_quadratic(x64):
    """A convex function is largest at a corner."""
    loss_fn, params, batches = quadratic(SPECTRUM)
    h, rho = symmetric(SPECTRUM), 0.3
    corners = np.array(list(itertools.product([-rho, rho], repeat=6)))
    expected = [max(u @ h @ u / 2 for u in corners), rho * max(np.abs(h @ u).sum() for u in corners)]
    found = both(loss_fn, params, batches, rho, norm="linf", num_restarts=12)
    np.testing.assert_allclose([one.value for one in found], expected, rtol=1e-9)
    np.testing.assert_allclose([one.distance for one in found], rho, rtol=1e-12)
    assert all(0 <= one.stationarity < 1e-6 for one in found)


def test_cube_by_brute_force_where_the_maximum_is_inside(x64):
    def loss_fn(w):
        return jnp.sin(3 * w[0]) * jnp.cos(2 * w[1]) + jnp.exp(-4 * jnp.sum((w - 0.2) ** 2))

    params, rho = jnp.array([0.1, -0.2]), 0.8
    axis = np.linspace(-rho, rho, 401)
    points = np.asarray(params) + np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    increase = jax.vmap(loss_fn)(points).max() - loss_fn(params)
    steepest = rho * np.abs(jax.vmap(jax.grad(loss_fn))(points)).sum(1).max()
    found = both(loss_fn, params, None, rho, norm="linf", num_steps=80, num_restarts=8)
    np.testing.assert_allclose([one.value for one in found], [increase, steepest], rtol=1e-3)
    assert found[0].distance < rho


def test_cube_with_a_maximum_on_a_side(x64):
    """A concave function of separate entries is largest at the nearest point of the cube."""
    top, height = np.array([2.0, 0.1, -0.7]), np.array([1.0, 2.0, 3.0])
    loss_fn = lambda w: -jnp.sum(height * (w - top) ** 2)  # noqa: E731
    found = flatness.zeroth_order_flatness(loss_fn, jnp.zeros(3), None, 0.5, key=KEY, norm="linf", num_steps=60)
    np.testing.assert_allclose(found.maximizer, [0.5, 0.1, -0.5], atol=1e-4)
    np.testing.assert_allclose(found.value, loss_fn(np.clip(top, -0.5, 0.5)) - loss_fn(0 * top), rtol=1e-6)


def test_adaptive_metric_has_the_eigenvalues_of_the_scaled_hessian(x64):
    """R0 = rho^2 lambda / 2 and R1 = rho^2 lambda of T H T, at a minimum."""
    c, h = np.array([0.5, -2.0, 1.0, 0.1, 3.0, -1.0]), symmetric(SPECTRUM)
    top = np.linalg.eigvalsh(np.abs(c)[:, None] * h * np.abs(c))[-1]
    found = both(around(c, h), jnp.asarray(c), None, 0.2, adaptive=True, num_steps=80)
    np.testing.assert_allclose([one.value for one in found], [0.02 * top, 0.04 * top], rtol=1e-8)
    shift = np.asarray(found[0].maximizer) - c
    np.testing.assert_allclose(np.linalg.norm(shift / c), 0.2, rtol=1e-9)
    given = both(around(c, h), jnp.asarray(c), None, 0.2, adaptive=lambda w: 2 * jnp.abs(w), num_steps=80)
    np.testing.assert_allclose([one.value for one in given], [0.08 * top, 0.16 * top], rtol=1e-8)


@pytest.mark.parametrize("norm", NORMS)
def test_adaptive_sharpness_does_not_see_the_scale_of_layers(x64, norm):
    """tanh is replaced by nothing: the network is linear, and its layers can be scaled against each other."""
    _, params, data = network()

    def loss_fn(params):
        return jnp.mean((data["x"].reshape(11, -1)[:, :8] @ params["dense"] * params["gain"] - data["y"]) ** 2)

    one = {"dense": params["dense"], "gain": params["gain"]}
    two = {"dense": 4 * params["dense"], "gain": params["gain"] / 4}
    values = [
        [found.value for found in both(loss_fn, p, None, 0.1, adaptive=adaptive, norm=norm, num_steps=5)]
        for adaptive in (True, False)
        for p in (one, two)
    ]
    np.testing.assert_allclose(values[1], values[0], rtol=1e-6)
    assert (np.abs(np.array(values[3]) / values[2] - 1) > 0.1).all()


@pytest.mark.parametrize("norm", NORMS)
def test_proposition_4_2_in_every_ball(x64, norm):
    _, params, data = network()
    zeroth, first = both(network_loss, params, [data], 0.1, norm=norm, adaptive=True, num_restarts=2)
    assert 0 < zeroth.value <= first.value


@pytest.mark.parametrize("order", ONE_FAST)
def test_a_mask_is_the_loss_of_its_leaves(x64, order):
    _, params, data = network()
    mask = {"conv": False, "bias": True, "dense": True, "gain": False}
    options = dict(key=KEY, num_steps=4, num_restarts=1)
    found = order(network_loss, params, [data], 0.2, mask=mask, **options)
    alone = order(
        lambda some, batch: network_loss({**params, "bias": some[0], "dense": some[1]}, batch),
        [params["bias"], params["dense"]],
        [data],
        0.2,
        **options,
    )
    np.testing.assert_allclose(found.value, alone.value, rtol=1e-12)
    assert jax.tree.structure(found.maximizer) == jax.tree.structure(params)
    for name in params:
        assert (found.maximizer[name] != params[name]).any() == mask[name]
    same = order(network_loss, params, [data], 0.2, mask=lambda p: {**mask, "gain": p["gain"].ndim > 0}, **options)
    assert same.value == found.value


@pytest.mark.parametrize("order", ONE_FAST)
def test_per_batch_is_the_mean_of_the_maxima(x64, order):
    _, params, data = network()
    parts = [jax.tree.map(lambda x, part=part: x[part], data) for part in (slice(0, 8), slice(8, 11))]
    options = dict(key=KEY, num_steps=4, num_restarts=1)
    found = order(network_loss, params, parts, 0.2, per_batch=True, **options)
    each = [order(network_loss, params, [part], 0.2, **options) for part in parts]
    for name in ("value", "distance", "stationarity", "history"):
        mean = np.average([getattr(one, name) for one in each], axis=0, weights=[8, 3])
        np.testing.assert_allclose(getattr(found, name), mean, rtol=1e-9, atol=1e-12)
    assert found.maximizer is None
    assert found.value > order(network_loss, params, parts, 0.2, **options).value


def test_a_parameter_of_zero_does_not_move_in_its_own_metric(x64):
    c = np.array([0.0, 1.0])
    for norm in ("l2", "linf"):
        found = flatness.zeroth_order_flatness(
            around(c, np.diag([5.0, 1.0])), jnp.asarray(c), None, 0.5, key=KEY, norm=norm, adaptive=True
        )
        np.testing.assert_allclose([found.value, found.maximizer[0]], [0.125, 0.0], atol=1e-9)
