"""A multi-layer perceptron as two pure functions, small enough to need no framework."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

Params = list[dict[str, jax.Array]]


def init(key: jax.Array, sizes: Sequence[int]) -> Params:
    """Parameters of the layers ``sizes[0] -> sizes[1] -> ... -> sizes[-1]``: He-normal weights, zero biases."""
    keys = jax.random.split(key, len(sizes) - 1)
    he_normal = jax.nn.initializers.he_normal()
    return [
        {"weight": he_normal(k, (fan_in, fan_out), jnp.float32), "bias": jnp.zeros(fan_out, jnp.float32)}
        for k, fan_in, fan_out in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def apply(params: Params, x: jax.typing.ArrayLike) -> jax.Array:
    """Logits of shape (batch, classes) for inputs of shape (batch, features); ReLU between the layers."""
    x = jnp.asarray(x)
    for layer in params[:-1]:
        x = jax.nn.relu(_affine(layer, x))
    return _affine(params[-1], x)


def _affine(layer: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return x @ layer["weight"] + layer["bias"][None]
