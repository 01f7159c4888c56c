"""Networks as pure functions: :func:`build` makes the one that a config names."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from experiments.common.errors import require
from experiments.models import mlp, pyramidnet, resnet, vit, wide_resnet
from experiments.models.config import ModelConfig
from experiments.models.efficientnet import efficientnet_b0
from experiments.models.functional import Model as Model
from experiments.models.swin import swin_t


class _Entry(NamedTuple):
    make: Callable[[ModelConfig, tuple[int, int, int], int], Model]
    options: frozenset[str]


_ALL_BUT_MLP = frozenset({"width", "dtype", "remat"})
_VIT = _ALL_BUT_MLP | {"depth", "unroll", "dropout", "drop_path"}
_MODELS: dict[str, _Entry] = {
    "mlp": _Entry(mlp.model, frozenset({"hidden"})),
    "resnet18": _Entry(resnet.resnet18, _ALL_BUT_MLP),
    "resnet20": _Entry(resnet.resnet20, _ALL_BUT_MLP | {"depth"}),
    "resnet50": _Entry(resnet.resnet50, _ALL_BUT_MLP),
    "resnet101": _Entry(resnet.resnet101, _ALL_BUT_MLP),
    "wrn28_2": _Entry(wide_resnet.wrn28_2, _ALL_BUT_MLP),
    "wrn28_10": _Entry(wide_resnet.wrn28_10, _ALL_BUT_MLP),
    "pyramidnet110": _Entry(pyramidnet.pyramidnet110, _ALL_BUT_MLP),
    "resnext": _Entry(resnet.resnext, _ALL_BUT_MLP),
    "vit": _Entry(vit.vit, _VIT),
    "vit_s32": _Entry(vit.vit_s32, _VIT),
    "vit_s16": _Entry(vit.vit_s16, _VIT),
    "vit_b32": _Entry(vit.vit_b32, _VIT),
    "vit_b16": _Entry(vit.vit_b16, _VIT),
    "vit_l16": _Entry(vit.vit_l16, _VIT),
    "efficientnet_b0": _Entry(efficientnet_b0, _ALL_BUT_MLP | {"dropout", "drop_path", "pretrained"}),
    "swin_t": _Entry(swin_t, _ALL_BUT_MLP | {"drop_path", "pretrained"}),
}


def scans(config: ModelConfig) -> bool:
    """Whether the network scans over its layers, rather than write them out."""
    return "unroll" in _MODELS[config.name].options and not config.unroll


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
            having = ", ".join(name for name, entry in _MODELS.items() if field.name in entry.options)
            require(False, f"{config.name!r} has no model.{field.name}, got {value}; it is an option of {having}")
    return _MODELS[config.name].make(config, image_shape, num_classes)
