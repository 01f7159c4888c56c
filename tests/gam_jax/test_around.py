"""What optax puts around a method or behind it: what is right, and what each docstring says of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gam_jax
from tests.gam_jax.family import FACTORIES, FAMILY

X = jax.random.normal(jax.random.key(0), (8, 3))
BATCH = {"x": X, "y": jnp.sin(X[:, 0])}
HALVES = [jax.tree.map(lambda a, i=i: a[i::2], BATCH) for i in range(2)]
PARAMS = jnp.array([0.3, -0.5, 0.8])


def loss_fn(params, batch):
    return jnp.mean((jnp.tanh(batch["x"] @ params) - batch["y"]) ** 2)


def residual_gradient(w, batch):
    """By hand, in float64."""
    x, y, w = (np.asarray(a, np.float64) for a in (batch["x"], batch["y"], w))
    out = np.tanh(x @ w)
    return x.T @ (2 * (out - y) * (1 - out**2)) / len(y)


def ascent(w, rho):
    gradient = residual_gradient(w, BATCH)
    return np.asarray(w, np.float64) + rho * gradient / np.linalg.norm(gradient)


def test_sam_in_microbatches_is_sam_of_the_whole_batch():
    tx = gam_jax.sam(loss_fn, 0.2, num_microbatches=2)
    updates, _ = tx.update(jax.grad(loss_fn)(PARAMS, BATCH), tx.init(PARAMS), PARAMS, batch=BATCH)
    np.testing.assert_allclose(updates, residual_gradient(ascent(PARAMS, 0.2), BATCH), rtol=1e-4, atol=1e-6)


def test_sam_in_multi_steps_is_what_its_docstring_says():
    tx = optax.MultiSteps(gam_jax.sam(loss_fn, 0.2), 2)
    state, updates = tx.init(PARAMS), None
    for half in HALVES:
        updates, state = tx.update(jax.grad(loss_fn)(PARAMS, half), state, PARAMS, batch=half)
    np.testing.assert_allclose(updates, residual_gradient(ascent(PARAMS, 0.2), HALVES[1]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", FACTORIES)
def test_every_method_says_what_multi_steps_does_to_it(name):
    said = " ".join(FAMILY[name].factory.__doc__.split())
    assert "``optax.MultiSteps`` around it" in said and "``num_microbatches`` gives" in said


def test_a_line_search_behind_a_link():
    """With loss_fn itself as value_fn; the step taken lowers the loss as Armijo's rule asks."""
    search = optax.scale_by_backtracking_linesearch(20, slope_rtol=1e-3)
    tx = optax.chain(gam_jax.sam(loss_fn, 0.05), optax.scale(-4.0), search)
    value, grads = jax.value_and_grad(loss_fn)(PARAMS, BATCH)
    extra = {"value": value, "grad": grads, "value_fn": loss_fn, "batch": BATCH}
    updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS, **extra)
    assert loss_fn(PARAMS + updates, BATCH) < value + 1e-3 * grads @ updates
    direction = residual_gradient(ascent(PARAMS, 0.05), BATCH)
    np.testing.assert_allclose(updates / np.linalg.norm(updates), -direction / np.linalg.norm(direction), rtol=1e-4)


def test_lookahead_around_a_chain_built_in_the_step():
    """Against Lookahead by hand: two steps of SAM, then half of the way from the slow point."""

    @jax.jit
    def step(params, state, batch):
        loss = lambda params: loss_fn(params, batch)  # noqa: E731
        tx = optax.lookahead(optax.chain(gam_jax.sam(loss, 0.2), optax.sgd(0.1)), 2, 0.5)
        state = tx.init(params) if state is None else state
        updates, state = tx.update(jax.grad(loss)(params.fast), state, params)
        return optax.apply_updates(params, updates), state

    params, state = step(optax.LookaheadParams.init_synced(PARAMS), None, BATCH)
    params, state = step(params, state, BATCH)
    fast = np.asarray(PARAMS, np.float64)
    for _ in range(2):
        fast = fast - 0.1 * residual_gradient(ascent(fast, 0.2), BATCH)
    np.testing.assert_allclose(params.slow, PARAMS + 0.5 * (fast - PARAMS), rtol=1e-5)
    np.testing.assert_allclose(params.fast, params.slow)
