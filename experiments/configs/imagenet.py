"""ImageNet, Table 2 of the paper: two ResNets with SGD, two ViTs with AdamW.

Command: python -m experiments.main train --config imagenet_vit_b32 --method gam --workdir DIR [--devices.multihost]
Expected (paper, top-1 in %, base optimizer alone / with GAM): see docs/paper.md.

Batches of 256, random crops and flips, cosine; ResNets 90 epochs with momentum 0.9, learning rate 0.1, weight decay
1e-4; ViTs 300 epochs with AdamW (0.9, 0.999). The paper gives the learning rate 0.1 and the weight decay 1e-4 for all:
with AdamW that rate would diverge, so the ViTs have 5e-4 with a warm-up and a decoupled weight decay of 0.1, which are
ours. Computation in bfloat16, parameters in float32.

imagenet_vit_b16 is not in the paper: it is what one would start on a pod today. Its numbers are those of big_vision's
configs/vit_s16_i1k.py (Beyer et al. 2022: Better plain ViT baselines for ImageNet-1k; ViT-S/16 reaches 76.5 % there):
batches of 1024, 90 epochs, AdamW, rate 1e-3 with 10,000 steps of warm-up and a cosine to 0, clipping at 1, Mixup 0.2,
1 % of the training images for validation. Its weight decay, 1e-4 of a parameter in a step at the peak, is 0.1 times the
rate here. What departs: RandAugment has the magnitude 10 of 30 of its paper (10 is the end of most of big_vision's
ranges); the network has the class token and the learned positions of configs/vit_i1k.py, whose B/16 has 300 epochs of
batches of 4096 and a Mixup of 0.5. Options beside: --loss sigmoid, --label-smoothing 0.1, --averaging ema,
--devices.fsdp N.
"""

import dataclasses

import tyro

from experiments.data.config import DataConfig
from experiments.models.config import ModelConfig
from experiments.optim.config import OptimConfig, with_method
from experiments.optim.methods import Method, released
from experiments.train.config import TrainConfig

_MODELS = ("resnet50", "resnet101", "vit_s32", "vit_b32", "vit_b16")
NAMES = tuple(f"imagenet_{model}" for model in _MODELS)

_OWN = {"accelerated_gam": released(rho=0.2, rho_prime=0.02, alpha=0.6, beta=0.5, gamma=0.03)}
_SGD = OptimConfig(method="plain", learning_rate=0.1, weight_decay=1e-4, momentum=0.9)
_ADAMW = OptimConfig(method="plain", base="adamw", learning_rate=5e-4, weight_decay=0.1, momentum=0.9, warmup=0.03)


def train(name: str, method: Method) -> TrainConfig:
    """A row of Table 2, or the run of a pod."""
    model = name.removeprefix("imagenet_")
    if model == "vit_b16":
        return _pod(method)
    is_vit = model.startswith("vit")
    return TrainConfig(
        workdir=tyro.MISSING,
        data=DataConfig(name="imagenet", workers=8),
        model=ModelConfig(name=model, dtype="bfloat16"),  # pyright: ignore[reportArgumentType]
        optim=with_method(_ADAMW if is_vit else _SGD, method, own=_OWN),
        epochs=300 if is_vit else 90,
        batch_size=256,
    )


_POD = dataclasses.replace(_ADAMW, learning_rate=1e-3, clip=1.0, warmup=0.09)
"""A warm-up of 10,000 of 111,420 steps."""


def _pod(method: Method) -> TrainConfig:
    """ViT-B/16 after big_vision."""
    return TrainConfig(
        workdir=tyro.MISSING,
        data=DataConfig(name="imagenet", validation=0.01, augment="randaugment_light", workers=8),
        model=ModelConfig(name="vit_b16", dtype="bfloat16"),
        optim=with_method(_POD, method, own=_OWN),
        epochs=90,
        batch_size=1024,
        mixup=0.2,
    )
