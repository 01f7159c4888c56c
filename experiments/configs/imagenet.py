"""ImageNet, Table 2 of the paper: two ResNets with SGD, two ViTs with AdamW.

Command: python -m experiments.main train --config imagenet_vit_b32 --method gam --workdir DIR [--devices.multihost]
Expected (paper, top-1 in %, base optimizer alone / with GAM): see docs/results.md.

Batches of 256, random crops and flips, cosine; ResNets 90 epochs with momentum 0.9, learning rate 0.1, weight decay
1e-4; ViTs 300 epochs with AdamW (0.9, 0.999). The paper gives the learning rate 0.1 and the weight decay 1e-4 for all:
with AdamW that rate would diverge, so the ViTs have 5e-4 with a warm-up and a decoupled weight decay of 0.1, which are
ours. Computation in bfloat16, parameters in float32.
"""

import tyro

from experiments.data.config import DataConfig
from experiments.models.config import ModelConfig
from experiments.optim.config import OptimConfig, with_method
from experiments.optim.methods import Method, released
from experiments.train.config import TrainConfig

_MODELS = ("resnet50", "resnet101", "vit_s32", "vit_b32")
NAMES = tuple(f"imagenet_{model}" for model in _MODELS)

_OWN = {"accelerated_gam": released(rho=0.2, rho_prime=0.02, alpha=0.6, beta=0.5, gamma=0.03)}
_SGD = OptimConfig(method="plain", learning_rate=0.1, weight_decay=1e-4, momentum=0.9)
_ADAMW = OptimConfig(method="plain", base="adamw", learning_rate=5e-4, weight_decay=0.1, momentum=0.9, warmup=0.03)


def train(name: str, method: Method) -> TrainConfig:
    """A row of Table 2."""
    model = name.removeprefix("imagenet_")
    is_vit = model.startswith("vit")
    return TrainConfig(
        workdir=tyro.MISSING,
        data=DataConfig(name="imagenet", workers=8),
        model=ModelConfig(name=model, dtype="bfloat16"),  # pyright: ignore[reportArgumentType]
        optim=with_method(_ADAMW if is_vit else _SGD, method, own=_OWN),
        epochs=300 if is_vit else 90,
        batch_size=256,
    )
