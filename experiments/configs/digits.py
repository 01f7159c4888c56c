"""Handwritten digits with 30 % wrong labels, with what the demonstration chose for each method.

Command: python -m experiments.main train --config digits --method gam --workdir runs/one
Run time: seconds on one CPU core.
Expected: about 90 % test accuracy. experiments/README.md measures how flat these networks are.
"""

import dataclasses

import tyro

import gam_jax
from experiments.config import DataConfig, ModelConfig, TrainConfig
from experiments.configs.methods import Radii, optimizer
from experiments.optim import Method, OptimConfig

NAMES = ("digits",)
_RADII = Radii(
    sam_rho=0.5,
    gam_rho=0.2,
    gam_alpha=1.0,
    accelerated=gam_jax.released_coefficients(rho=0.2, rho_prime=0.03, alpha=0.1, beta=0.1, gamma=0.05),
)
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
        optim=dataclasses.replace(optimizer(plain, method, _RADII), **_CHOSEN.get(method, {})),
        epochs=75,
        batch_size=50,
    )
