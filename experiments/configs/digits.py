"""Handwritten digits with 30 % wrong labels, with what the demonstration chose for each method.

Command: python -m experiments.main train --config digits --method gam --workdir runs/one
Run time: seconds on one CPU core.
Expected: about 90 % test accuracy. docs/results.md measures how flat these networks are.
"""

import tyro

from experiments.data.config import DataConfig
from experiments.models.config import ModelConfig
from experiments.optim.config import OptimConfig, with_method
from experiments.optim.methods import Method
from experiments.train.config import TrainConfig

NAMES = ("digits",)
_CHOSEN = {
    "plain": {"learning_rate": 0.2, "weight_decay": 0.02},
    "sam": {"learning_rate": 0.05},
    "gam": {"learning_rate": 0.2, "weight_decay": 0.01},
    "sam+gam": {"learning_rate": 0.02, "weight_decay": 0.01, "sam_rho": 0.1},
}
"""What ``compare`` chose at 30 % wrong labels, beside the radii; the other methods were not compared."""


def train(name: str, method: Method) -> TrainConfig:
    """One run at 30 % wrong labels, with what ``compare`` chose for the method."""
    plain = OptimConfig(method="plain", learning_rate=0.1, weight_decay=3e-3, momentum=0.9)
    return TrainConfig(
        workdir=tyro.MISSING,
        data=DataConfig(name="digits", validation=0.6, train_size=400, noise=0.3, augment="none"),
        model=ModelConfig(name="mlp"),
        optim=with_method(plain, method, {"sam_rho": 0.5, "gam_rho": 0.2, "gam_alpha": 1.0}, _CHOSEN),
        epochs=75,
        batch_size=50,
    )
