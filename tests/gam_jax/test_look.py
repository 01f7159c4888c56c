"""LookSAM's step between: g + b (|g| / |v|) v, with v the part of the last term orthogonal to its gradient."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import gam_jax
from tests.gam_jax.family import FAMILY
from tests.gam_jax.problems import mlp

RATIO = 0.3


def looked(flat, g, acted):
    """What the paper does with the gradient of a step between, in numpy."""
    term = acted - flat
    v = term - (term @ flat) / (flat @ flat) * flat
    return g + RATIO * np.linalg.norm(g) / np.linalg.norm(v) * v


@pytest.mark.parametrize("name", ["gam", "sam", "accelerated_gam"])
def test_against_numpy(name, x64):
    loss_fn, params, batch = mlp()
    parts = [jax.tree.map(lambda rows: rows[i::2], batch) for i in range(2)]  # noqa: B023
    tx = FAMILY[name](loss_fn, interval=2, between="look", look_ratio=RATIO)
    state = tx.init(params)
    gradients = [jax.grad(loss_fn)(params, part) for part in parts]
    acted, state = tx.update(gradients[0], state, params, batch=parts[0])
    got, after = tx.update(gradients[1], state, params, batch=parts[1])
    flat = [np.asarray(ravel_pytree(tree)[0]) for tree in (*gradients, acted, got)]
    np.testing.assert_allclose(flat[3], looked(flat[0], flat[1], flat[2]), rtol=1e-9)
    chex.assert_trees_all_equal(after.held, state.held)  # until the next acting step


def test_the_part_along_the_gradient_is_left_out(x64):
    """Along an eigenvector SAM's term has no other part: nothing is added between."""
    loss_fn = lambda params: jnp.sum(jnp.array([1.0, 3.0]) * params**2)  # noqa: E731
    tx = gam_jax.sam(loss_fn, 0.1, interval=2, between="look")
    params = jnp.array([0.0, 2.0])
    _, state = tx.update(jax.grad(loss_fn)(params), tx.init(params), params)
    updates, _ = tx.update(jax.grad(loss_fn)(params), state, params)
    np.testing.assert_array_equal(updates, jax.grad(loss_fn)(params))


def test_costs_one_gradient_and_a_bound_holds(x64):
    loss_fn, params, batch = mlp()
    grads = jax.grad(loss_fn)(params, batch)
    tx = gam_jax.sam(loss_fn, 0.1, interval=2, between="look", look_ratio=0.7, max_ratio=0.2)
    _, state = tx.update(grads, tx.init(params), params, batch=batch)
    updates, _ = tx.update(grads, state, params, batch=batch)
    np.testing.assert_allclose(optax.tree.norm(optax.tree.sub(updates, grads)), 0.2 * optax.tree.norm(grads), rtol=1e-9)
    with pytest.raises(ValueError, match="between='look' has no steps to act on"):
        gam_jax.sam(loss_fn, 0.1, between="look")
    with pytest.raises(ValueError, match="look_ratio must be a finite number >= 0"):
        gam_jax.sam(loss_fn, 0.1, interval=2, between="look", look_ratio=-1.0)
