"""First-order and zeroth-order flatness against closed forms, brute force and the optimizers' own estimates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gam_jax
from gam_jax import flatness
from tests.gam_jax.flatness.oracles import network, network_loss, quadratic

KEY = jax.random.key(0)
ORDERS = [flatness.zeroth_order_flatness, flatness.first_order_flatness]


@pytest.mark.parametrize("rho", [0.03, 0.5, 7.0])
def test_minimum_of_a_quadratic(x64, rho):
    loss_fn, params, batches = quadratic(np.linspace(0, 1, 20) ** 2 * 3)
    first = flatness.first_order_flatness(loss_fn, params, batches, rho, key=KEY, num_steps=60)
    zeroth = flatness.zeroth_order_flatness(loss_fn, params, batches, rho, key=KEY, num_steps=120)
    np.testing.assert_allclose(first.value, 3 * rho**2, rtol=1e-8)
    np.testing.assert_allclose(zeroth.value, 3 * rho**2 / 2, rtol=1e-8)
    for found in (first, zeroth):
        np.testing.assert_allclose(found.distance, rho, rtol=1e-12)
        assert 0 <= found.stationarity < 1e-6 * found.value


def test_close_eigenvalues_do_not_stall_the_ascent(x64):
    """A plain power iteration is 2e-3 short here after 30 steps, and 2e-4 for the gradient norm."""
    loss_fn, params, batches = quadratic(np.linspace(0, 1, 40))
    values = [order(loss_fn, params, batches, 0.1, key=KEY, num_steps=30).value for order in ORDERS]
    np.testing.assert_allclose(values, [0.005, 0.01], rtol=1e-5)


def test_indefinite_quadratic(x64):
    """NOTES 5.2: the gradient norm does not see the sign of the curvature, the loss does."""
    loss_fn, params, batches = quadratic([-4.0, -1.0, 0.0, 0.5, 1.0, 2.0])
    first = flatness.first_order_flatness(loss_fn, params, batches, 0.1, key=KEY)
    zeroth = flatness.zeroth_order_flatness(loss_fn, params, batches, 0.1, key=KEY)
    np.testing.assert_allclose([first.value, zeroth.value], [0.01 * 4, 0.01 * 2 / 2], rtol=1e-6)


def test_quadratic_away_from_its_minimum(x64):
    """Against the exact solution: at the maximiser H (x - c) = mu x on the sphere, with mu above the spectrum."""
    h, c, rho = np.diag([1.0, 2.0, 5.0]), np.array([0.5, -1.0, 0.1]), 0.3

    def loss_fn(w):
        return (w - c) @ h @ (w - c) / 2

    low, high = 5.0 + 1e-9, 1e6
    for _ in range(200):
        mu = (low + high) / 2
        low, high = (mu, high) if np.linalg.norm(h @ c / (mu - np.diag(h))) > rho else (low, mu)
    x = -h @ c / (mu - np.diag(h))
    found = flatness.zeroth_order_flatness(loss_fn, jnp.zeros(3), None, rho, key=KEY, num_steps=100)
    np.testing.assert_allclose(found.value, loss_fn(x) - loss_fn(np.zeros(3)), rtol=1e-9)
    np.testing.assert_allclose(found.maximizer, x, atol=1e-5)


def _landscape(kind):
    """Losses of two parameters, and their maxima over a ball by brute force."""

    def waves(w):
        return jnp.sin(3 * w[0]) * jnp.cos(2 * w[1]) + 0.3 * w[0] * w[1]

    def valley(w):
        return (1 - w[0]) ** 2 + 5 * (w[1] - w[0] ** 2) ** 2

    def bump(w):  # largest loss and largest gradient inside the ball
        return jnp.exp(-4 * jnp.sum((w - jnp.array([0.2, 0.1])) ** 2))

    loss_fn = {"waves": waves, "valley": valley, "bump": bump}[kind]
    return loss_fn, jnp.array([0.1, -0.2])


@pytest.mark.parametrize("kind", ["waves", "valley", "bump"])
@pytest.mark.parametrize("rho", [0.1, 0.8])
def test_two_parameters_by_brute_force(x64, kind, rho):
    loss_fn, params = _landscape(kind)
    radii, angles = np.meshgrid(np.linspace(0, rho, 400), np.linspace(0, 2 * np.pi, 1500))
    points = np.asarray(params) + np.stack([radii * np.cos(angles), radii * np.sin(angles)], -1).reshape(-1, 2)
    losses = jax.vmap(loss_fn)(points)
    norms = jnp.linalg.norm(jax.vmap(jax.grad(loss_fn))(points), axis=1)
    options = dict(key=KEY, num_steps=80, num_restarts=6)
    zeroth = flatness.zeroth_order_flatness(loss_fn, params, None, rho, **options)
    first = flatness.first_order_flatness(loss_fn, params, None, rho, **options)
    np.testing.assert_allclose(zeroth.value, losses.max() - loss_fn(params), rtol=1e-4)
    np.testing.assert_allclose(first.value, rho * norms.max(), rtol=1e-4)
    assert zeroth.stationarity < 1e-3 * zeroth.value
    assert first.stationarity < 1e-3 * first.value
    np.testing.assert_allclose(jnp.linalg.norm(jax.grad(loss_fn)(first.maximizer)) * rho, first.value, rtol=1e-12)
    np.testing.assert_allclose(jnp.linalg.norm(first.maximizer - params), first.distance, rtol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_proposition_4_2(x64, seed):
    """R0 <= R1 for the true maxima, and both bound their one-step estimates."""
    _, params, data = network(seed)
    for rho in (0.05, 0.5):
        zeroth = flatness.zeroth_order_flatness(network_loss, params, [data], rho, key=KEY, num_steps=40)
        first = flatness.first_order_flatness(network_loss, params, [data], rho, key=KEY, num_steps=40)
        assert 0 < zeroth.value <= first.value
        one = flatness.first_order_flatness_one_step(network_loss, params, [data], rho)
        assert 0 < one <= first.value
        assert flatness.zeroth_order_flatness_one_step(network_loss, params, [data], rho) <= zeroth.value


def test_linear_loss_has_equality(x64):
    slope = jnp.array([3.0, -4.0])
    values = [order(lambda w: slope @ w, jnp.ones(2), None, 0.2, key=KEY).value for order in ORDERS]
    np.testing.assert_allclose(values, [1.0, 1.0])


@pytest.mark.parametrize("order", ORDERS)
def test_history(order):
    _, params, data = network()
    found = order(network_loss, params, [data], 0.2, key=KEY, num_steps=7, num_restarts=2)
    assert found.history.shape == (3, 8)
    assert (np.diff(found.history, axis=1) >= 0).all()
    assert found.history.max() == found.value
    assert found.distance <= 0.2 * (1 + 1e-6)
    again = order(network_loss, params, [data], 0.2, key=KEY, num_steps=7, num_restarts=2)
    np.testing.assert_array_equal(again.history, found.history)
    other = order(network_loss, params, [data], 0.2, key=jax.random.key(1), num_steps=7, num_restarts=2)
    assert (other.history[0] == found.history[0]).all() and (other.history[1] != found.history[1]).any()
    assert all(a.dtype == b.dtype for a, b in zip(*map(jax.tree.leaves, (found.maximizer, params)), strict=True))


def test_history_starts_at_the_gradient_norm_of_the_parameters():
    _, params, data = network()
    found = flatness.first_order_flatness(network_loss, params, [data], 0.2, key=KEY, num_steps=1)
    expected = 0.2 * optax.tree.norm(jax.grad(network_loss)(params, data))
    np.testing.assert_allclose(found.history[0, 0], expected, rtol=1e-5)


def test_one_step_estimates_are_those_of_the_optimizers(x64):
    _, params, data = network()
    tx = gam_jax.gam(network_loss, rho=0.1, alpha=0.5)
    _, state = tx.update(jax.grad(network_loss)(params, data), tx.init(params), params, batch=data)
    np.testing.assert_allclose(
        flatness.first_order_flatness_one_step(network_loss, params, [data], 0.1),
        optax.tree.get(state, "first_order_flatness"),
        rtol=1e-6,
    )
    gradient = jax.grad(network_loss)(params, data)
    adversary = jax.tree.map(lambda w, g: w + 0.1 * g / optax.tree.norm(gradient), params, gradient)
    np.testing.assert_allclose(
        flatness.zeroth_order_flatness_one_step(network_loss, params, [data], 0.1),
        network_loss(adversary, data) - network_loss(params, data),
        rtol=1e-9,
    )


def test_one_step_estimates_vanish_at_a_minimum():
    loss_fn, params, batches = quadratic(np.arange(1.0, 7.0))
    assert flatness.first_order_flatness_one_step(loss_fn, params, batches, 0.1) == 0
    assert flatness.zeroth_order_flatness_one_step(loss_fn, params, batches, 0.1) == 0


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("rho", [0, -0.1, np.nan, np.inf, "0.1", True])
def test_bad_radius(order, rho):
    with pytest.raises(ValueError, match=f"rho must be a finite number > 0, got rho={rho!r}"):
        order(jnp.sum, jnp.ones(2), None, rho, key=KEY)


@pytest.mark.parametrize("order", ORDERS)
def test_bad_arguments(order):
    with pytest.raises(ValueError, match="got num_steps=0"):
        order(jnp.sum, jnp.ones(2), None, 0.1, key=KEY, num_steps=0)
    with pytest.raises(ValueError, match="got num_restarts=0"):
        order(jnp.sum, jnp.ones(2), None, 0.1, key=KEY, num_restarts=0)
    with pytest.raises(TypeError, match="jax.random.key"):
        order(jnp.sum, jnp.ones(2), None, 0.1, key=jax.random.PRNGKey(0))
    with pytest.raises(ValueError, match="must be finite, got .* within rho=5.0"):
        order(lambda w: jnp.log(1 - jnp.sum(w)), jnp.zeros(2), None, 5.0, key=KEY)
