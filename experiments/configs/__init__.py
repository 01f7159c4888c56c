"""Shipped configurations, a file for each family; they are found by name."""

from typing import TYPE_CHECKING, Literal

from experiments.common.errors import UserError, nearest
from experiments.configs import cifar, digits, fashion_mnist, imagenet, studies, transfer
from experiments.optim.methods import Method
from experiments.study.config import CompareConfig
from experiments.train.config import TrainConfig

_FAMILIES = (digits, fashion_mnist, cifar, imagenet, transfer)
_FAMILY = {name: family for family in _FAMILIES for name in family.NAMES}
TRAIN_NAMES: tuple[str, ...] = tuple(_FAMILY)
"""Names that ``train --config`` takes."""

if TYPE_CHECKING:
    CompareName = str
else:
    CompareName = Literal[tuple(studies.STUDIES)]  # what ``compare --config`` takes


def load(name: str) -> CompareConfig:
    """The comparison of this name in :mod:`experiments.configs.studies`."""
    if name not in studies.STUDIES:
        raise UserError(f"there is no comparison {name!r}{nearest(name, studies.STUDIES)}")
    return studies.STUDIES[name]


def load_train(name: str, method: Method) -> TrainConfig:
    """The training run of this name, with its hyper-parameters for the method."""
    if name not in _FAMILY:
        raise UserError(f"there is no config {name!r}{nearest(name, TRAIN_NAMES)}")
    return _FAMILY[name].train(name, method)
