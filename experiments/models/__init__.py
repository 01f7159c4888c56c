"""Networks as pure functions: :func:`build` makes the one that a config names."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from experiments.config import ModelConfig, require
from experiments.models import mlp
from experiments.models.functional import Model as Model


class _Entry(NamedTuple):
    make: Callable[[ModelConfig, tuple[int, int, int], int], Model]
    options: frozenset[str]


_MODELS: dict[str, _Entry] = {
    "mlp": _Entry(mlp.model, frozenset({"hidden"})),
}

NAMES: tuple[str, ...] = tuple(_MODELS)
"""Every network."""


def build(config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int) -> Model:
    """The network for images of this shape (height, width, channels), normalised, float32.

    Weights of ``config.pretrained`` are not loaded here: see :mod:`experiments.models.pretrained`.

    Raises:
      UserError: for an option that the network does not have.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name != "name" and value != field.default and field.name not in _MODELS[config.name].options:
            takers = [name for name, entry in _MODELS.items() if field.name in entry.options]
            require(False, f"{config.name!r} has no model.{field.name}, got {value}; {', '.join(takers)} take it")
    return _MODELS[config.name].make(config, image_shape, num_classes)
