"""eps = 0: nothing is added to the norms that divide, and what is zero stays zero."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gam_jax
from gam_jax import flatness
from tests.gam_jax.family import FAMILY

TINY = 1e-20


def quadratic(p):
    return jnp.sum(p["a"] ** 2) + p["b"] ** 2 / 2


def flat(p):
    return 0.0 * quadratic(p)


@pytest.mark.parametrize("name", FAMILY)
def test_zero_stays_zero(name):
    params = {"a": jnp.zeros(3), "b": jnp.zeros(())}
    tx = FAMILY[name](quadratic, eps=0.0)
    grads = jax.grad(quadratic)(params)
    updates, state = jax.jit(tx.update)(grads, tx.init(params), params)
    chex.assert_trees_all_equal(updates, params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.diagnostics))
    fn = FAMILY[name].function(flat, eps=0.0)
    memory = {"memory": params} if name == "friendly_sam" else {}
    chex.assert_trees_all_equal(jax.jit(fn)({"a": jnp.ones(3), "b": jnp.ones(())}, **memory)[1], params)


@pytest.mark.parametrize("method", [gam_jax.sam, gam_jax.gam])
def test_what_eps_costs(method):
    """A gradient far below eps: with 0 the ascent is as long as for any other; with the default there is none."""
    loss = lambda w: TINY * jnp.sum(jnp.array([1.0, 3.0]) * w**4)  # noqa: E731
    w = jnp.array([1.0, -0.5])

    def update(c, eps):
        scaled = lambda w: c * loss(w)  # noqa: E731
        tx = method(scaled, 0.3, eps=eps)
        return tx.update(jax.grad(scaled)(w), tx.init(w), w)[0]

    np.testing.assert_allclose(update(1.0, 0.0) / TINY, update(1 / TINY, 0.0), rtol=1e-5)
    np.testing.assert_allclose(update(1.0, 1e-12), jax.grad(loss)(w), rtol=1e-5)


def test_the_one_step_measures_see_tiny_gradients():
    loss = lambda w: TINY * jnp.sum(w**2)  # noqa: E731
    w = jnp.array([3.0, 4.0])
    np.testing.assert_allclose(flatness.zeroth_order_flatness_one_step(loss, w, None, 0.5), 5.25 * TINY, rtol=1e-4)
    np.testing.assert_allclose(flatness.first_order_flatness_one_step(loss, w, None, 0.5), 5.5 * TINY, rtol=1e-4)
