"""drop_nonfinite: where the gradient is finite and the method's term is not, the gradient alone remains."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gam_jax

PARAMS = {"a": jnp.array([0.0, 1.0]), "b": jnp.array([2.0])}
GOOD = {"a": jnp.array([0.5, 1.0]), "b": jnp.array([2.0])}


def loss_fn(params):
    """|a|^1.5 has slope 0 and an infinite second derivative at 0."""
    return jnp.sum(jnp.abs(params["a"]) ** 1.5) + jnp.sum(params["b"] ** 2)


GRADIENT = {"a": np.array([0.0, 1.5]), "b": np.array([4.0])}


def assert_same(got, expected):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), got, expected)


def step(tx, params, state):
    return tx.update(jax.grad(loss_fn)(params), state, params)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize(
    "options", [{}, {"max_ratio": 1.0}, {"interval": 2}, {"interval": 2, "between": "hold"}], ids=str
)
def test_the_finite_gradient_remains_and_is_counted(options, wrap):
    tx = gam_jax.gam(loss_fn, 0.1, 0.5, drop_nonfinite=True, **options)
    update = wrap(lambda params, state: step(tx, params, state))
    updates, state = update(PARAMS, tx.init(PARAMS))
    assert_same(updates, GRADIENT)
    assert gam_jax.diagnostics(state)["gam/dropped"] == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    state = state._replace(count=jnp.asarray(2, jnp.int32))  # an acting step again, at a point without an infinity
    plain = gam_jax.gam(loss_fn, 0.1, 0.5, **options)
    expected, _ = step(plain, GOOD, plain.init(GOOD)._replace(diagnostics=state.diagnostics))
    updates, state = update(GOOD, state)
    assert_same(updates, expected)
    assert gam_jax.diagnostics(state)["gam/dropped"] == 1
    np.testing.assert_allclose(
        gam_jax.diagnostics(state)["gam/grad_norm"], optax.tree.norm(jax.grad(loss_fn)(GOOD)), 1e-6
    )


def test_the_held_term_outlasts_a_dropped_one():
    tx = gam_jax.gam(loss_fn, 0.1, 0.5, drop_nonfinite=True, interval=2, between="hold")
    _, state = step(tx, GOOD, tx.init(GOOD))
    term = state.held.term
    assert optax.tree.norm(term) > 0
    updates, state = step(tx, PARAMS, state._replace(count=jnp.asarray(2, jnp.int32)))
    assert_same(updates, GRADIENT)
    assert_same(state.held.term, term)


def test_by_default_it_stays_visible():
    tx = gam_jax.gam(loss_fn, 0.1, 0.5)
    updates, state = step(tx, PARAMS, tx.init(PARAMS))
    assert not np.isfinite(updates["a"]).all()
    assert "gam/dropped" not in gam_jax.diagnostics(state)


def test_a_bad_gradient_stays_visible():
    """Nothing finite is left to fall back on: that is optax.apply_if_finite's affair, and not counted."""
    tx = gam_jax.sam(loss_fn, 0.1, drop_nonfinite=True)
    grads = {"a": jnp.array([jnp.nan, 1.0]), "b": jnp.array([4.0])}
    updates, state = tx.update(grads, tx.init(PARAMS), PARAMS)
    assert np.isnan(updates["a"]).any()
    assert gam_jax.diagnostics(state)["sam/dropped"] == 0


def test_replacing_methods_fall_back_on_the_gradient():
    """The root is finite at the point and NaN where SAM's step leads."""
    root = lambda p: jnp.sum(jnp.sqrt(p))  # noqa: E731
    params = jnp.array([1e-6, 4.0])
    grads = jax.grad(root)(params)
    bad = lambda p: root(p) + jnp.where(p[0] > 1e-3, jnp.inf, 0.0) * p[1]  # noqa: E731
    plain = gam_jax.sam(bad, 0.5)
    assert not np.isfinite(plain.update(grads, plain.init(params), params)[0]).all()
    tx = gam_jax.sam(bad, 0.5, drop_nonfinite=True)
    updates, state = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates, grads)
    assert gam_jax.diagnostics(state)["sam/dropped"] == 1


def test_value_and_grad():
    loss, grads = gam_jax.gam_value_and_grad(loss_fn, 0.1, 0.5, drop_nonfinite=True)(PARAMS)
    assert loss == 5.0
    assert_same(grads, GRADIENT)
