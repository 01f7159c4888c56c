"""Typed, frozen configurations. Wrong values are refused here, before any work is done."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from experiments.optim import METHODS, Method, nearest


class UserError(ValueError):
    """Something that the user can put right; printed without a traceback."""


def require(condition: bool, message: str) -> None:
    """Raises :class:`UserError` with the message unless the condition holds."""
    if not condition:
        raise UserError(message)


@dataclasses.dataclass(frozen=True)
class DigitsConfig:
    """scikit-learn's handwritten digits: 1797 images of 8 x 8 pixels."""

    test_size: int = 797
    """Images of the fixed test set."""
    train_size: int = 400
    """Training images, drawn for each seed from the rest; what then remains is its validation set."""
    split_seed: int = 0
    """Which images are the test set."""


@dataclasses.dataclass(frozen=True)
class GridConfig:
    """Values that the hyper-parameters are chosen from. Each method uses those that it has."""

    learning_rate: tuple[float, ...]
    """Peak learning rate; cosine to 0."""
    weight_decay: tuple[float, ...]
    """Added to the gradient after SAM and GAM, biases included."""
    sam_rho: tuple[float, ...]
    """Radius of SAM."""
    gam_rho: tuple[float, ...]
    """Radius of GAM."""
    gam_alpha: tuple[float, ...]
    """Weight of GAM's flatness term."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            values = getattr(self, field.name)
            require(
                len(values) > 0 and len(set(values)) == len(values),
                f"grid.{field.name} must hold distinct values, at least one, got {values}",
            )
            require(
                all(math.isfinite(v) and v >= 0 for v in values),
                f"grid.{field.name} must hold finite numbers >= 0, got {values}",
            )


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """A comparison of methods, each tuned with the same budget on validation data, then tested once."""

    workdir: Path
    """Folder of the results. Started again on the same folder, a comparison goes on where it stopped."""
    grid: GridConfig
    """Values to choose the hyper-parameters from."""
    data: DigitsConfig = DigitsConfig()
    """The data and its split."""
    methods: tuple[Method, ...] = METHODS
    """What to compare."""
    noise: tuple[float, ...] = (0.0, 0.3)
    """Fractions of the training labels that are replaced by a wrong one."""
    hidden: tuple[int, ...] = (128, 128)
    """Widths of the hidden layers."""
    epochs: int = 75
    """Passes over the training images."""
    batch_size: int = 50
    """Images in a step; must divide the number of training images."""
    momentum: float = 0.9
    """Momentum of SGD, under every method."""
    trials: int = 16
    """Hyper-parameter settings that each method may try, the same number for all."""
    tuning_seeds: int = 2
    """Seeds that each trial is judged on: 1000, 1001, ..."""
    seeds: int = 8
    """Seeds of the final runs: 0, 1, ..."""

    def __post_init__(self):
        for name in ("epochs", "batch_size", "trials", "tuning_seeds"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        require(2 <= self.seeds <= 1000, f"seeds must be in 2 ... 1000 (a standard error needs 2), got {self.seeds}")
        require(0 <= self.momentum < 1, f"momentum must be in [0, 1), got {self.momentum}")
        require(all(n >= 1 for n in self.hidden), f"hidden must hold widths >= 1, got {self.hidden}")
        for noise in self.noise:
            require(0 <= noise <= 1, f"noise must be a fraction in [0, 1], got {noise} (30 % is 0.3)")
        for method in self.methods:
            require(method in METHODS, f"unknown method {method!r}{nearest(method, METHODS)}")
        for name in ("methods", "noise"):
            values = getattr(self, name)
            require(
                len(values) > 0 and len(set(values)) == len(values),
                f"{name} must name distinct values, at least one, got {values}",
            )
        require(
            self.data.train_size % self.batch_size == 0,
            f"batch_size must divide data.train_size, got batch_size={self.batch_size} and "
            f"train_size={self.data.train_size}",
        )

    @property
    def steps(self) -> int:
        """Training steps of one run."""
        return self.epochs * self.data.train_size // self.batch_size

    def identity(self) -> dict[str, Any]:
        """Whatever decides the results, as JSON holds it: everything but the folder."""
        fields = dataclasses.asdict(self)
        del fields["workdir"]
        return fields
