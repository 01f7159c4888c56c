"""A multi-layer perceptron as two pure functions, small enough to need no framework."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from experiments.models.config import ModelConfig
from experiments.models.functional import Model, State

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


def model(config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int) -> Model:
    """The network for flattened images, with hidden layers of ``config.hidden``."""
    sizes = (math.prod(image_shape), *config.hidden, num_classes)

    def flatten_and_apply(
        params: Params, model_state: State, images: jax.Array, *, train: bool, key: jax.Array | None = None
    ) -> tuple[jax.Array, State]:
        del train, key  # alike in training and evaluation
        return apply(params, images.reshape(len(images), -1)), model_state

    return Model(lambda key: (init(key, sizes), {}), flatten_and_apply)
