"""CIFAR-10 and CIFAR-100, Table 1 of the paper: seven networks, four augmentations.

Command: python -m experiments.main train --config cifar10_resnet18 --method gam --workdir runs/cifar10
Augmentation: --data.augment basic (default), cutout, randaugment, autoaugment. The paper trains on all training images:
--data.validation 0; the default sets 10 % aside to choose hyper-parameters by, as the paper does for its grid.
Expected (paper, Table 1, all images, basic augmentation, best epoch): see docs/paper.md.

The recipe is that of the authors' released program: SGD with momentum 0.9, learning rate 0.1 with a cosine to 0, weight
decay 5e-4 (biases and batch normalisation included), 200 epochs of batches of 128, label smoothing 0.1. The ViT has
AdamW, whose settings are ours: the paper's are in an appendix that was not at hand.
"""

import tyro

from experiments.data.config import DataConfig
from experiments.models.config import ModelConfig
from experiments.optim.config import OptimConfig, with_method
from experiments.optim.methods import Method, released
from experiments.train.config import TrainConfig

_MODELS = ("resnet18", "resnet101", "wrn28_2", "wrn28_10", "pyramidnet110", "resnext", "vit")
NAMES = tuple(f"{data}_{model}" for data in ("cifar10", "cifar100") for model in _MODELS)

_RELEASED = {
    ("cifar10", False): {"rho": 0.2, "rho_prime": 0.03, "beta": 0.1, "alpha": 0.1, "gamma": 0.05},
    ("cifar10", True): {"rho": 0.2, "rho_prime": 0.03, "beta": 0.1, "alpha": 0.1, "gamma": 0.03},
    ("cifar100", False): {"rho": 0.2, "rho_prime": 0.02, "beta": 0.5, "alpha": 0.6, "gamma": 0.03},
    ("cifar100", True): {"rho": 0.2, "rho_prime": 0.04, "beta": 0.3, "alpha": 0.5, "gamma": 0.05},
}
"""Of accelerated GAM, by data and whether the network is a PyramidNet."""
_SGD = OptimConfig(method="plain", learning_rate=0.1, weight_decay=5e-4, momentum=0.9)
_ADAMW = OptimConfig(method="plain", base="adamw", learning_rate=1e-3, weight_decay=0.05, momentum=0.9, warmup=0.05)


def train(name: str, method: Method) -> TrainConfig:
    """A row of Table 1."""
    data, model = name.split("_", 1)
    base = _ADAMW if model == "vit" else _SGD
    shared = {"sam_rho": 0.05 if data == "cifar10" else 0.1}  # Foret et al. 2021
    own = {"accelerated_gam": released(**_RELEASED[data, model == "pyramidnet110"])}
    return TrainConfig(
        workdir=tyro.MISSING,
        data=DataConfig(name=data),  # pyright: ignore[reportArgumentType]
        model=ModelConfig(name=model),  # pyright: ignore[reportArgumentType]
        optim=with_method(base, method, shared, own),
        epochs=200,
        label_smoothing=0.1,
    )
