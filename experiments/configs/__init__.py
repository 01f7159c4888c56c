"""Shipped configurations, one file each; ``load`` finds them by name."""

import dataclasses
import importlib
from typing import Literal

from experiments.config import CompareConfig, TrainConfig
from experiments.optim import Method

CompareName = Literal["digits"]
"""Names that ``compare --config`` takes."""
TrainName = Literal["digits"]
"""Names that ``train --config`` takes."""


def load(name: str) -> CompareConfig:
    """The comparison in ``experiments/configs/NAME.py``."""
    return importlib.import_module(f"experiments.configs.{name}").config


def load_train(name: str, method: Method) -> TrainConfig:
    """The training run in ``experiments/configs/NAME.py``, with its hyper-parameters of the method."""
    module = importlib.import_module(f"experiments.configs.{name}")
    return dataclasses.replace(module.train, optim=module.optim[method])
