"""Shipped configurations, a file for each family; they are found by name."""

from typing import Literal, get_args

from experiments.common.errors import UserError, nearest
from experiments.configs import cifar, digits, fashion_mnist, imagenet, studies, transfer
from experiments.optim.methods import Method
from experiments.study.config import CompareConfig
from experiments.train.config import TrainConfig

CompareName = Literal[
    "digits",
    "digits_mlp",
    "digits_cnn",
    "digits_cnn_jointly",
    "digits_family",
    "digits_recipes",
    "fashion_mnist_resnet",
    "fashion_mnist_resnet_full",
    "fashion_mnist_resnet_noise",
    "fashion_mnist_recipes",
    "fashion_mnist_vit",
    "fashion_mnist_vit_jointly",
    "fashion_mnist_vit_full",
    "cifar10_resnet",
    "pacs",
]
"""Names that ``compare --config`` takes."""
_FAMILIES = (digits, fashion_mnist, cifar, imagenet, transfer)
_FAMILY = {name: family for family in _FAMILIES for name in family.NAMES}
TRAIN_NAMES: tuple[str, ...] = tuple(_FAMILY)
"""Names that ``train --config`` takes."""


def load(name: str) -> CompareConfig:
    """The comparison of this name in :mod:`experiments.configs.studies`."""
    if name not in get_args(CompareName):
        raise UserError(f"there is no comparison {name!r}{nearest(name, get_args(CompareName))}")
    return studies.STUDIES[name]


def load_train(name: str, method: Method) -> TrainConfig:
    """The training run of this name, with its hyper-parameters for the method."""
    if name not in _FAMILY:
        raise UserError(f"there is no config {name!r}{nearest(name, TRAIN_NAMES)}")
    return _FAMILY[name].train(name, method)
