"""Models of Flax NNX, their losses, and what their gradients are compared with."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import gam_jax
from tests.gam_jax import oracles
from tests.gam_jax.problems import cross_entropy

GAM = {"rho": 0.1, "alpha": 0.5}


gam = functools.partial(gam_jax.nnx.value_and_grad, **GAM)


def compiled(loss_fn, **options):
    return nnx.jit(gam(loss_fn, **options))


def batch(rows=8):
    key = jax.random.key(1)
    return {"x": jax.random.normal(key, (rows, 4), float), "y": jnp.arange(rows) % 3}


def linear(n, m, rngs, **options):
    return nnx.Linear(n, m, param_dtype=float, rngs=rngs, **options)


class Network(nnx.Module):
    """BatchNorm and dropout."""

    def __init__(self, rngs):
        self.hidden, self.out = linear(4, 5, rngs), linear(5, 3, rngs)
        self.norm = nnx.BatchNorm(5, param_dtype=float, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.out(self.drop(nnx.tanh(self.norm(self.hidden(x)))))


class Tied(nnx.Module):
    """One matrix in two places."""

    def __init__(self, rngs):
        self.first = linear(4, 4, rngs)
        self.last = linear(4, 4, rngs)
        self.last.kernel = self.first.kernel

    def __call__(self, x):
        return self.last(nnx.tanh(self.first(x)))


class Stacked(nnx.Module):
    """Layers along a leading axis, in a scan, each with a dropout of its own."""

    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=(0,))
        def layer(rngs):
            return nnx.Sequential(linear(4, 4, rngs), nnx.Dropout(0.3, rngs=rngs))

        self.layers = layer(rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def forward(layer, x):
            return nnx.tanh(layer(x))

        return forward(self.layers, x)


class Counting(nnx.Module):
    """An array and a counter of its own, and what a layer sows."""

    def __init__(self, rngs):
        self.out = linear(4, 3, rngs)
        self.calls = nnx.Variable(jnp.array(0))
        self.largest = nnx.data(jnp.zeros(()))

    def __call__(self, x):
        self.calls[...] += 1
        self.largest = jnp.maximum(self.largest, jnp.abs(x).max())
        self.seen = nnx.Intermediate(x.mean(0))
        return self.out(x)


def loss_of(model, batch):
    return cross_entropy(model(batch["x"]), batch["y"])


def loss_of_two(models, batch):
    return loss_of(models["a"], batch) + 0.3 * loss_of(models["b"], batch)


MODELS = {
    "batch norm and dropout": (Network, loss_of),
    "tied weights": (Tied, loss_of),
    "stacked layers": (Stacked, loss_of),
    "variables of its own": (Counting, loss_of),
    "two models": (lambda rngs: nnx.Dict(a=Network(rngs), b=Tied(rngs)), loss_of_two),
}


models = pytest.mark.parametrize(("make", "loss_fn"), MODELS.values(), ids=MODELS)


def oracle(model, loss, wrt=nnx.Param):
    """GAM of the loss as a function of one flat vector, by dense Hessian."""
    graphdef, params, rest = nnx.split(model, wrt, ...)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    dense = oracles.Dense(lambda w: loss(nnx.merge(graphdef, unravel(w), rest, copy=True)))
    return oracles.algorithm_1(dense, flat, dense.gradient(flat), **GAM)


def assert_flat(grads, expected):
    np.testing.assert_allclose(jax.flatten_util.ravel_pytree(grads)[0], expected, rtol=1e-8, atol=1e-11)


def assert_same(got, want, rtol=1e-10, atol=1e-15):
    """Values and structure of modules or of states, random keys too."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    data = lambda tree: [  # noqa: E731
        jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in jax.tree.leaves(tree)
    ]
    chex.assert_trees_all_close(data(got), data(want), rtol=rtol, atol=atol)


def plain(loss_fn, has_aux=False):
    """A method that does nothing."""
    return jax.value_and_grad(loss_fn, has_aux=has_aux)
