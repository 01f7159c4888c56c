"""Shipped configurations, one file each; ``load`` finds them by name."""

import importlib
from typing import Literal

from experiments.config import CompareConfig

CompareName = Literal["digits"]
"""Names that ``compare --config`` takes."""


def load(name: str) -> CompareConfig:
    """The configuration in ``experiments/configs/NAME.py``."""
    return importlib.import_module(f"experiments.configs.{name}").config
