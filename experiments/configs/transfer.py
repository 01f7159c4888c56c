"""Fine-tuning of pretrained networks, Table 3 of the paper: EfficientNet-b0 with SGD and Swin-t with AdamW.

Command: python -m experiments.main train --config transfer_cars_swin_t --method gam --model.pretrained FILE.safetensors
         --workdir DIR
Expected (paper, Table 3): see docs/paper.md.

40,000 steps of 128 images at 224 px, learning rate 2e-3 (high for AdamW: the paper gives one for both) with a cosine,
weight decay 1e-5, augmentation for CIFAR only. Without --model.pretrained the network is trained from scratch, which is
not what the table shows.
"""

import tyro

from experiments.data.config import DataConfig
from experiments.models.config import ModelConfig
from experiments.optim.config import OptimConfig, with_method
from experiments.optim.methods import Base, Method, released
from experiments.train.config import TrainConfig

_BASES: dict[str, Base] = {"efficientnet_b0": "sgd", "swin_t": "adamw"}
_DATA = ("cars", "cifar10", "cifar100", "pets", "food101")
NAMES = tuple(f"transfer_{data}_{model}" for data in _DATA for model in _BASES)

_OWN = {"accelerated_gam": released(rho=0.2, rho_prime=0.02, alpha=0.6, beta=0.5, gamma=0.03)}


def train(name: str, method: Method) -> TrainConfig:
    """A row of Table 3."""
    _, data, model = name.split("_", 2)
    in_memory = data.startswith("cifar")
    plain = OptimConfig(method="plain", base=_BASES[model], learning_rate=2e-3, weight_decay=1e-5, momentum=0.9)
    return TrainConfig(
        workdir=tyro.MISSING,
        data=DataConfig(
            name=data,  # pyright: ignore[reportArgumentType]
            image_size=224,
            augment="basic" if in_memory else "none",
            workers=0 if in_memory else 4,
        ),
        model=ModelConfig(name=model, dropout=0.2 * (model == "efficientnet_b0"), drop_path=0.2),  # pyright: ignore[reportArgumentType]
        optim=with_method(plain, method, own=_OWN),
        epochs=1,
        steps=40_000,
        eval_epochs=5,
    )
