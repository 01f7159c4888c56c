"""Fashion-MNIST with a small ResNet: real images that a CPU can be trained on.

Command: python -m experiments.main train --config fashion_mnist --method gam --workdir runs/fashion_mnist
Expected: above 93 % test accuracy after 30 epochs. Not in the paper. For shorter runs see docs/results.md.
"""

import tyro

from experiments.data.config import DataConfig
from experiments.models.config import ModelConfig
from experiments.optim.config import OptimConfig, with_method
from experiments.optim.methods import Method
from experiments.train.config import TrainConfig

NAMES = ("fashion_mnist",)


def train(name: str, method: Method) -> TrainConfig:
    """A ResNet-20 for 30 epochs."""
    plain = OptimConfig(method="plain", learning_rate=0.1, weight_decay=5e-4, momentum=0.9)
    return TrainConfig(
        workdir=tyro.MISSING,
        data=DataConfig(name="fashion_mnist"),
        model=ModelConfig(name="resnet20"),
        optim=with_method(plain, method),
        epochs=30,
    )
