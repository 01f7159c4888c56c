"""Fashion-MNIST with a small ResNet: real images that a CPU can be trained on.

Command: python -m experiments.main train --config fashion_mnist --method gam --workdir runs/fashion_mnist
Expected: above 93 % test accuracy after 30 epochs. Not in the paper. For shorter runs see experiments/README.md.
"""

import tyro

import gam_jax
from experiments.config import DataConfig, ModelConfig, TrainConfig
from experiments.configs.methods import Radii, optimizer
from experiments.optim import Method, OptimConfig

NAMES = ("fashion_mnist",)
_RADII = Radii(accelerated=gam_jax.released_coefficients(rho=0.2, rho_prime=0.03, alpha=0.1, beta=0.1, gamma=0.05))


def train(name: str, method: Method) -> TrainConfig:
    """A ResNet-20 for 30 epochs."""
    plain = OptimConfig(method="plain", learning_rate=0.1, weight_decay=5e-4, momentum=0.9)
    return TrainConfig(
        workdir=tyro.MISSING,
        data=DataConfig(name="fashion_mnist"),
        model=ModelConfig(name="resnet20"),
        optim=optimizer(plain, method, _RADII),
        epochs=30,
    )
