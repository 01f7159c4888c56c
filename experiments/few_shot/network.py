"""A network of the house below features, and a classifier on top of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.common.errors import require
from experiments.data import DataSet
from experiments.few_shot.config import FewShotConfig
from experiments.models import mlp
from experiments.models import registry as models
from experiments.train.step import normalise

Params = Any
"""A dict: those of the "embedder", and of the "classifier" of the base session."""


class Network(NamedTuple):
    """A network whose features are what is classified.

    Attributes:
      init: ``key -> (params, model_state)``.
      features: ``(params, model_state, pixels, train) -> (features [batch, size], model_state)``.
      logits: ``(params, features) -> logits`` of the base session's classifier.
    """

    init: Callable[[jax.Array], tuple[Params, Any]]
    features: Callable[..., tuple[jax.Array, Any]]
    logits: Callable[[Params, jax.Array], jax.Array]


def make_network(config: FewShotConfig, data_set: DataSet) -> Network:
    """The config's network, with features in the place of its classes."""
    model = models.build(config.model, data_set.image_shape, config.features)

    def init(key: jax.Array) -> tuple[Params, Any]:
        below, above = jax.random.split(key)
        embedder, model_state = model.init(below)
        return {
            "embedder": embedder,
            "classifier": mlp.init(above, (config.features, data_set.num_classes)),
        }, model_state

    def features(params: Params, model_state: Any, pixels: jax.Array, *, train: bool) -> tuple[jax.Array, Any]:
        return model.apply(params["embedder"], model_state, normalise(pixels, data_set), train=train)

    return Network(init, features, lambda params, found: mlp.apply(params["classifier"], found))


def perturbed_weights(params: Params, names: tuple[str, ...]) -> Params:
    """Which leaves get noise: the weights of two axes or more of the embedder below these names.

    Raises:
      UserError: if a name has none below it.
    """

    def below(name: str, path: Any, leaf: Any) -> bool:
        dotted = ".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)
        return f"{dotted}.".startswith(f"{name}.") and jnp.ndim(leaf) > 1

    embedder = params["embedder"]
    for name in names:
        found = jax.tree.leaves(jax.tree.map_with_path(lambda path, leaf, name=name: below(name, path, leaf), embedder))
        require(any(found), f"perturbed names {name!r}, and the network has no weights below it")
    chosen = jax.tree.map_with_path(lambda path, leaf: any(below(name, path, leaf) for name in names), embedder)
    return {"embedder": chosen, "classifier": jax.tree.map(lambda _: False, params["classifier"])}
