"""The true maximum in a ball: more ascent steps of SAM (SA-GD) and of GAM, and restarts."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gam_jax
from gam_jax import flatness
from tests.gam_jax import oracles

KEYS = jax.random.split(jax.random.key(0), 4)


def waves(w):
    return jnp.sin(3 * w[0]) * jnp.cos(2 * w[1]) + 0.3 * w[0] * w[1]


def valley(w):
    return (1 - w[0]) ** 2 + 5 * (w[1] - w[0] ** 2) ** 2


def bump(w):
    return jnp.exp(-4 * jnp.sum((w - jnp.array([0.2, 0.1])) ** 2))


LOSSES = {loss.__name__: loss for loss in (waves, valley, bump)}
START = np.array([0.1, -0.2])
PARAMS = {"a": np.array([0.3, -0.7, 0.2]), "b": np.array([0.1]), "c": np.array([1.5, 0.4])}
BATCH = np.random.default_rng(0).normal(size=(8, 3))
losses = pytest.mark.parametrize("name", LOSSES)


def of_batch(params, batch):
    return jnp.mean(jnp.tanh(batch @ params["a"] + params["b"]) ** 2 * params["c"].sum()) + jnp.sum(params["c"] ** 4)


@functools.cache
def dense(name):
    return oracles.Dense(LOSSES[name])


def update(tx, loss_fn=None, params=None, **extra):
    params = jnp.asarray(START) if params is None else params
    updates, state = jax.jit(lambda g, p: tx.update(g, tx.init(p), p, **extra))(
        jax.grad(lambda p: loss_fn(p, **extra))(params), params
    )
    return updates, state.diagnostics


@losses
def test_against_their_transcription(name, x64):
    """SAM climbs the loss, GAM the gradient norm; some moves of these are short, so that all of the search is used."""
    loss, short = dense(name), 0
    for rho in (0.1, 0.8):
        got, seen = update(gam_jax.sam(LOSSES[name], rho, ascent_steps=9), LOSSES[name])
        top, moves = oracles.highest(loss.value, loss.gradient, START, loss.gradient(START), rho, 9)
        np.testing.assert_allclose(got, loss.gradient(top), atol=1e-9)
        np.testing.assert_allclose(seen.perturbed_grad_norm, np.linalg.norm(loss.gradient(top)), rtol=1e-5, atol=1e-6)

        steepness = lambda w: np.linalg.norm(loss.gradient(w))  # noqa: E731
        slope = lambda w: loss.hessian(w) @ oracles.unit(loss.gradient(w))  # noqa: E731
        got, seen = update(gam_jax.gam(LOSSES[name], rho, 0.5, ascent_steps=9), LOSSES[name])
        top, others = oracles.highest(steepness, slope, START, slope(START), rho, 9)
        np.testing.assert_allclose(got, loss.gradient(START) + 0.5 * rho * slope(top), atol=1e-9)
        np.testing.assert_allclose(seen.first_order_flatness, rho * steepness(top), rtol=1e-5)
        short += moves + others
    assert short > 0


@pytest.mark.parametrize(
    "name", ["waves", *(pytest.param(name, marks=pytest.mark.slow) for name in ("valley", "bump"))]
)
def test_the_maxima_that_the_flatness_measures_find(name, x64):
    """Of the loss, with its gradient there, and of the gradient norm."""
    loss, rho = LOSSES[name], 0.4
    measured = functools.partial(flatness.zeroth_order_flatness, key=KEYS[0], num_steps=60, num_restarts=6)
    top = measured(loss, jnp.asarray(START), None, rho).maximizer
    got, _ = update(gam_jax.sam(loss, rho, ascent_steps=60, restarts=KEYS), loss)
    np.testing.assert_allclose(got, jax.grad(loss)(top), atol=1e-5)
    one_step, _ = update(gam_jax.sam(loss, rho), loss)
    assert np.linalg.norm(one_step - got) > 1e-3

    found = flatness.first_order_flatness(loss, jnp.asarray(START), None, rho, key=KEYS[0], num_steps=60)
    _, seen = update(gam_jax.gam(loss, rho, 0.5, ascent_steps=60, restarts=KEYS), loss)
    _, plain = update(gam_jax.gam(loss, rho, 0.5), loss)
    np.testing.assert_allclose(seen.first_order_flatness, found.value, rtol=1e-5)
    assert plain.first_order_flatness < 0.999 * found.value


@pytest.mark.parametrize("method", [gam_jax.sam, gam_jax.gam])
def test_one_step_is_the_paper(method):
    steps = [method(LOSSES["waves"], 0.1, **options) for options in ({}, {"ascent_steps": 1, "restarts": None})]
    one, other = (update(tx, LOSSES["waves"]) for tx in steps)
    chex.assert_trees_all_equal(one, other)


def test_restarts_leave_a_minimum():
    """Where SAM sees nothing: f = max(0, w)^2 / 2 at 0 (Schliserman et al. 2025)."""
    loss = lambda w: jnp.maximum(w, 0.0) ** 2 / 2  # noqa: E731
    zero = jnp.zeros(())
    assert update(gam_jax.sam(loss, 0.5), loss, zero)[0] == 0
    assert update(gam_jax.sam(loss, 0.5, ascent_steps=9), loss, zero)[0] == 0
    np.testing.assert_allclose(update(gam_jax.sam(loss, 0.5, restarts=KEYS), loss, zero)[0], 0.5, rtol=1e-6)
    np.testing.assert_allclose(update(gam_jax.gam(loss, 0.5, 2.0, restarts=KEYS), loss, zero)[0], 1.0, rtol=1e-6)


@pytest.mark.parametrize(("steps", "restarts"), [(1, None), (3, None), (5, KEYS[:2])])
def test_cost(steps, restarts):
    """1 + k evaluations, and k more for each restart, of the gradient or of the gradient with a product."""
    evaluations = []

    def loss_fn(w):
        jax.debug.callback(lambda: evaluations.append(1))
        return jnp.sum(jnp.cos(w))

    for method in (gam_jax.sam_value_and_grad, gam_jax.gam_value_and_grad):
        evaluations.clear()
        step = jax.jit(method(loss_fn, 0.1, ascent_steps=steps, restarts=restarts))
        jax.block_until_ready(step(jnp.arange(3.0)))
        jax.effects_barrier()
        assert len(evaluations) == 1 + steps * (1 + (0 if restarts is None else len(restarts)))


methods = pytest.mark.parametrize("method", [gam_jax.sam, pytest.param(gam_jax.gam, marks=pytest.mark.slow)])


@methods
def test_in_a_metric_and_with_a_mask(method, x64):
    """With w = T u, the loss as a function of u has the plain search; what is masked stays."""
    params, batch = jax.tree.map(jnp.asarray, PARAMS), jnp.asarray(BATCH)
    scale = jax.tree.map(lambda p: jnp.abs(p) + 0.1, params)
    moving = {name: params[name] / scale[name] for name in "ab"}
    in_u = lambda u: of_batch({**{n: scale[n] * u[n] for n in u}, "c": params["c"]}, batch)  # noqa: E731
    plain, _ = update(method(in_u, 0.7, ascent_steps=4), in_u, moving)
    options = {"adaptive": scale, "perturb_mask": {"a": True, "b": True, "c": False}, "ascent_steps": 4}
    got, _ = update(method(of_batch, 0.7, **options), of_batch, params, batch=batch)
    for name in "ab":
        np.testing.assert_allclose(got[name], plain[name] / scale[name], rtol=1e-8, atol=1e-12)


@methods
def test_in_microbatches(method, x64):
    params, batch = jax.tree.map(jnp.asarray, PARAMS), jnp.asarray(BATCH)
    whole, parts = (
        update(method(of_batch, 0.7, ascent_steps=3, num_microbatches=n), of_batch, params, batch=batch)[0]
        for n in (1, 4)
    )
    chex.assert_trees_all_close(whole, parts, rtol=1e-8, atol=1e-12)


@methods
@pytest.mark.parametrize("per_replica", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_over_replicas(method, per_replica, x64):
    """As on one device with the whole batch; or each replica for itself, averaged at the end."""
    params, batch = jax.tree.map(jnp.asarray, PARAMS), jnp.asarray(BATCH)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    options = {"ascent_steps": 3, "restarts": KEYS[:1]}
    factory = getattr(gam_jax, f"{method.__name__}_value_and_grad")
    step = factory(of_batch, 0.5, axis_name="data", per_replica=per_replica, **options)
    in_specs = (jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("data"))
    over = jax.shard_map(step, mesh=mesh, in_specs=in_specs, out_specs=jax.sharding.PartitionSpec())
    alone = jax.jit(factory(of_batch, 0.5, **options))
    want = [alone(params, part) for part in ((batch[:4], batch[4:]) if per_replica else (batch, batch))]
    want = jax.tree.map(lambda x, y: (x + y) / 2, *want)
    chex.assert_trees_all_close(jax.jit(over)(params, batch), want, rtol=1e-8, atol=1e-12)


def test_as_hyperparameters():
    """optax.inject_hyperparams traces the radius alone."""
    loss = LOSSES["waves"]
    sam = optax.inject_hyperparams(gam_jax.sam)(loss, rho=0.3, ascent_steps=3, restarts=KEYS)
    params = jnp.asarray(START, jnp.float32)
    state = sam.init(params)
    assert set(state.hyperparams) == {"rho", "gamma"}
    got, _ = sam.update(jax.grad(loss)(params), state, params)
    want, _ = update(gam_jax.sam(loss, 0.3, ascent_steps=3, restarts=KEYS), loss, params)
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("method", [gam_jax.sam, gam_jax.gam])
def test_one_ball_has_one_radius(method):
    radii = {"a": 0.1, "b": 0.2}
    for options in ({"ascent_steps": 2}, {"restarts": KEYS}):
        with pytest.raises(ValueError, match="one radius.*'a': 0.1"):
            method(lambda p: p["a"] + p["b"], radii, **options)
        tx = method(lambda p: p["a"] + p["b"], lambda count: radii, **options)
        params = {"a": jnp.ones(()), "b": jnp.ones(())}
        with pytest.raises(ValueError, match="one radius"):
            tx.update(params, tx.init(params), params)
