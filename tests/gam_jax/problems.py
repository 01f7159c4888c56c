"""Small losses with every kind of parameter tree that the library meets."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class Problem(NamedTuple):
    """A loss, a point and a batch of 16 examples."""

    loss_fn: Any
    params: Any
    batch: Any


class Layer(NamedTuple):
    kernel: jax.Array
    bias: jax.Array


def _batch(dtype=float):
    x = jax.random.normal(jax.random.key(1), (16, 6), dtype)
    y = jax.random.randint(jax.random.key(2), (16,), 0, 3)
    return {"x": x, "y": y}


def _normal(seed, *shape, dtype=float):
    return 0.5 * jax.random.normal(jax.random.key(seed), shape, dtype)


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(
        logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), labels
    ).mean()


def mlp(dtype=float) -> Problem:
    """A 6-8-3 tanh network with parameters in a dict."""

    def loss_fn(params, batch):
        hidden = jnp.tanh(batch["x"] @ params["w1"] + params["b1"][None])
        return cross_entropy(hidden @ params["w2"] + params["b2"][None], batch["y"])

    params = {
        "w1": _normal(3, 6, 8, dtype=dtype),
        "b1": _normal(4, 8, dtype=dtype),
        "w2": _normal(5, 8, 3, dtype=dtype),
        "b2": _normal(6, 3, dtype=dtype),
    }
    return Problem(loss_fn, params, _batch(dtype))


def named_tuples() -> Problem:
    """Layers as NamedTuples in a list."""

    def loss_fn(params, batch):
        hidden = batch["x"]
        for layer in params[:-1]:
            hidden = jnp.tanh(hidden @ layer.kernel + layer.bias[None])
        return cross_entropy(hidden @ params[-1].kernel + params[-1].bias[None], batch["y"])

    return Problem(loss_fn, [Layer(_normal(3, 6, 8), _normal(4, 8)), Layer(_normal(5, 8, 3), _normal(6, 3))], _batch())


def single_array() -> Problem:
    def loss_fn(params, batch):
        return cross_entropy(jnp.sin(batch["x"] @ params), batch["y"])

    return Problem(loss_fn, _normal(3, 6, 3), _batch())


def scalars_and_empty_leaves() -> Problem:
    """Scalars, a leaf of size zero, None and an empty dict."""

    def loss_fn(params, batch):
        z = params["a"] * batch["x"].sum(1) + jnp.sin(params["b"]) ** 2
        return jnp.mean(jnp.tanh(z) ** 2) + params["empty"].sum()

    params = {
        "a": jnp.asarray(0.7, float),
        "b": jnp.asarray(0.3, float),
        "empty": jnp.zeros((0, 4)),
        "n": None,
        "d": {},
    }
    return Problem(loss_fn, params, _batch())


def mixed_precision() -> Problem:
    """bfloat16 kernels, float32 biases."""
    loss_fn, params, batch = mlp(jnp.float32)

    def upcast(params, batch):
        return loss_fn(jax.tree.map(lambda p: p.astype(jnp.float32), params), batch)

    return Problem(upcast, {k: v.astype(jnp.bfloat16) if k[0] == "w" else v for k, v in params.items()}, batch)


PROBLEMS = {f.__name__: f for f in (mlp, named_tuples, single_array, scalars_and_empty_leaves, mixed_precision)}


def one_parameter(power=4) -> Problem:
    return Problem(lambda params, batch: jnp.mean(batch["x"] ** 2) * params**power, jnp.asarray(0.9, float), _batch())
