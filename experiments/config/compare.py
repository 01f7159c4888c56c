"""A comparison of methods on the handwritten digits."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from experiments.config.checks import require, require_at_least, require_distinct, require_fraction, require_momentum
from experiments.optim import HYPERPARAMETERS, METHODS, Method, nearest


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
            require_distinct(f"grid.{field.name}", values, "hold")
            require(
                all(math.isfinite(v) and v >= 0 for v in values),
                f"grid.{field.name} must hold finite numbers >= 0, got {values}",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """A comparison of methods, each tuned with the same budget on validation data, then tested once."""

    workdir: Path
    """Folder of the results. Started again on the same folder, the same command goes on where it stopped."""
    grid: GridConfig
    """Values to choose the hyper-parameters from."""
    data: DigitsConfig = DigitsConfig()
    """The data and its split."""
    hidden: tuple[int, ...] = (128, 128)
    """Widths of the hidden layers."""
    epochs: int = 75
    """Passes over the training images."""
    batch_size: int = 50
    """Images in a step; must divide the number of training images."""
    methods: tuple[Method, ...] = ("plain", "sam", "gam", "sam+gam")
    """What to compare; plain is SGD alone."""
    noise: tuple[float, ...] = (0.0, 0.3)
    """Fractions of the training labels that are replaced by a wrong one."""
    momentum: float = 0.9
    """Momentum of SGD, under every method."""
    trials: int = 16
    """Hyper-parameter settings that each method may try, the same number for all."""
    tuning_seeds: int = 2
    """Seeds that each trial is judged on: 1000, 1001, ..."""
    seeds: int = 8
    """Seeds of the final runs: 0, 1, ..."""

    def __post_init__(self):
        require_at_least(self, 1, "epochs", "batch_size", "trials", "tuning_seeds")
        require(all(n >= 1 for n in self.hidden), f"hidden must hold widths >= 1, got {self.hidden}")
        require(
            self.data.train_size % self.batch_size == 0,
            f"batch_size must divide data.train_size, got batch_size={self.batch_size} and "
            f"train_size={self.data.train_size}",
        )
        require(2 <= self.seeds <= 1000, f"seeds must be in 2 ... 1000 (a standard error needs 2), got {self.seeds}")
        require_momentum(self.momentum)
        for noise in self.noise:
            require_fraction("noise", noise)
        for method in self.methods:
            require(method in METHODS, f"unknown method {method!r}{nearest(method, METHODS)}")
            for name in HYPERPARAMETERS[method]:
                require(hasattr(self.grid, name), f"the grid has no values of {name}, which {method!r} needs")
        require_distinct("methods", self.methods)
        require_distinct("noise", self.noise)

    @property
    def steps(self) -> int:
        """Training steps of one run."""
        return self.epochs * self.data.train_size // self.batch_size

    def identity(self) -> dict[str, Any]:
        """Whatever decides the results, as JSON holds it: everything but the folder."""
        fields = dataclasses.asdict(self)
        del fields["workdir"]
        return fields
