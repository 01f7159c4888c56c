"""The seam to Equinox: gradients by dense oracles, and states that move as eqx.filter_value_and_grad moves them."""

import functools

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gam_jax
from tests.gam_jax import oracles
from tests.gam_jax.problems import cross_entropy, mlp

GAM = {"rho": 0.1, "alpha": 0.5}
gam = functools.partial(gam_jax.equinox.filter_value_and_grad, **GAM)


class Network(eqx.Module):
    """BatchNorm, dropout, integers and a function."""

    hidden: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    drop: eqx.nn.Dropout
    out: eqx.nn.Linear
    table: jax.Array

    def __init__(self, key):
        keys = jax.random.split(key, 2)
        self.hidden = eqx.nn.Linear(6, 5, dtype=float, key=keys[0])
        self.norm = eqx.nn.BatchNorm(5, axis_name="batch", mode="batch", dtype=float)
        self.drop = eqx.nn.Dropout(0.5)
        self.out = eqx.nn.Linear(5, 3, dtype=float, key=keys[1])
        self.table = jnp.arange(3)

    def __call__(self, x, state, key):
        x, state = self.norm(self.hidden(x), state)
        return self.out(self.drop(jnp.tanh(x), key=key))[self.table], state


def loss_fn(model, state, batch, key):
    keys = jax.random.split(key, len(batch["x"]))
    forward = jax.vmap(model, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))
    logits, state = forward(batch["x"], state, keys)
    return cross_entropy(logits, batch["y"]), state


def plain(loss_fn, has_aux=False):
    """A method that does nothing."""
    return jax.value_and_grad(loss_fn, has_aux=has_aux)


def arguments():
    model, state = eqx.nn.make_with_state(Network)(jax.random.key(0))
    return model, state, mlp().batch, jax.random.key(7)


def clean():
    return eqx.filter_value_and_grad(loss_fn, has_aux=True)(*arguments())


def test_a_method_that_does_nothing_is_that_of_equinox(x64):
    got = gam_jax.equinox.filter_value_and_grad(loss_fn, method=plain, has_aux=True)(*arguments())
    assert jax.tree.structure(got) == jax.tree.structure(clean())
    chex.assert_trees_all_close(jax.tree.leaves(got), jax.tree.leaves(clean()), rtol=1e-12)


@pytest.mark.parametrize("hvp", ["linearize", "reverse"])
def test_gam_and_one_clean_pass(hvp, x64):
    """All passes see the masks and the state of the clean one, whose new state comes out."""
    model, state, batch, key = arguments()
    params, static = eqx.partition(model, eqx.is_inexact_array)
    flat, unravel = jax.flatten_util.ravel_pytree(params)

    def flat_loss(w):
        return loss_fn(eqx.combine(unravel(w), static), arguments()[1], batch, key)[0]

    dense = oracles.Dense(flat_loss)
    want = oracles.algorithm_1(dense, flat, dense.gradient(flat), **GAM)
    (loss, new), grads = eqx.filter_jit(gam(loss_fn, has_aux=True, hvp=hvp))(model, state, batch, key=key)
    (clean_loss, clean_new), clean_grads = clean()
    np.testing.assert_allclose(loss, clean_loss, rtol=1e-12)
    chex.assert_trees_all_close(jax.tree.leaves(new), jax.tree.leaves(clean_new), rtol=1e-12)
    assert jax.tree.structure(grads) == jax.tree.structure(clean_grads)
    np.testing.assert_allclose(jax.flatten_util.ravel_pytree(grads)[0], want, rtol=1e-8, atol=1e-11)


def test_state_outside_jit(x64):
    """A state can be written to once, and every pass writes to one."""
    model, state, batch, key = arguments()
    (_, new), _ = gam(loss_fn, has_aux=True)(model, state, batch, key)
    chex.assert_trees_all_close(jax.tree.leaves(new), jax.tree.leaves(clean()[0][1]), rtol=1e-12)


def test_what_a_method_returns_beyond():
    def talkative(loss_fn):
        return lambda *args: (*jax.value_and_grad(loss_fn)(*args), "seen")

    model = eqx.nn.MLP("scalar", "scalar", 2, 1, key=jax.random.key(0))
    loss, grads, seen = gam_jax.equinox.filter_value_and_grad(lambda m, x: m(x), method=talkative)(model, jnp.ones(()))
    assert seen == "seen" and grads.activation is None


def test_microbatches(x64):
    """Split by the name that the argument has in the loss."""
    model = eqx.nn.MLP(6, 3, width_size=5, depth=1, dtype=float, key=jax.random.key(0))

    def loss(model, scale, batch):
        return scale.sum() * cross_entropy(jax.vmap(model)(batch["x"]), batch["y"])

    args = model, jnp.ones(3), mlp().batch
    got, want = gam(loss, num_microbatches=4)(*args), gam(loss)(*args)
    chex.assert_trees_all_close(got, want, rtol=1e-9)


def test_errors():
    model = eqx.nn.MLP("scalar", "scalar", 2, 1, key=jax.random.key(0))
    with pytest.raises(ValueError, match="rho=-1"):
        gam_jax.equinox.filter_value_and_grad(loss_fn, rho=-1, alpha=0.5)
    with pytest.raises(ValueError, match="must be a model with inexact arrays, got 3"):
        gam(lambda model: jnp.zeros(()))(3)
    with pytest.raises(AttributeError, match="'MLP' object has no attribute 'nothing'"):  # and no recipe
        gam(lambda model: model.nothing)(model)
