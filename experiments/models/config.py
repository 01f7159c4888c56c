"""Which network is trained."""

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

from experiments.common.errors import require

ModelName = Literal[
    "mlp",
    "resnet18",
    "resnet20",
    "resnet50",
    "resnet101",
    "wrn28_2",
    "wrn28_10",
    "pyramidnet110",
    "resnext",
    "vit",
    "vit_s32",
    "vit_s16",
    "vit_b32",
    "vit_b16",
    "vit_l16",
    "efficientnet_b0",
    "swin_t",
]
"""Networks."""


Remat = Literal["auto", "none", "dots", "dots_no_batch", "all"]
"""What the backward passes of a block compute anew, rather than keep; the ladder is in ``experiments.models.remat``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A network. An option that a network does not have is refused."""

    name: ModelName
    """The network."""
    width: float = 1.0
    """Factor on the number of channels; 1 is the published network."""
    depth: int | None = None
    """Layers of a ViT, or blocks in each stage of resnet20 (n make a ResNet-6n+2); if not given, as published."""
    hidden: tuple[int, ...] = (128, 128)
    """Widths of the hidden layers of mlp."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the computation; parameters, statistics and logits are float32."""
    remat: Remat = "auto"
    """What backward passes compute anew in each block, for less memory: nothing, all but matrix products (dots), these
    too where they have a batch (dots_no_batch: attention), or all. auto is dots_no_batch for scanned layers with a
    method that has Hessian-vector products or with divided parameters, else none."""
    unroll: bool = False
    """Write out the layers of a ViT rather than scan over them: GAM costs 6 gradients rather than 7, compiling more."""
    dropout: float = 0.0
    """Probability of dropping a feature before the classifier."""
    drop_path: float = 0.0
    """Probability of dropping the last residual branch; linearly less for the ones before it."""
    pretrained: Path | None = None
    """Start from the weights in this .safetensors file."""

    @staticmethod
    def modern(fields: dict[str, Any]) -> dict[str, Any]:
        """Fields of an older record as this version has them: ``remat`` was a bool."""
        older = {False: "auto", True: "all"}
        remat = fields.get("remat")
        return {**fields, "remat": older[remat]} if isinstance(remat, bool) else fields

    def __post_init__(self):
        require(math.isfinite(self.width) and self.width > 0, f"model.width must be a number > 0, got {self.width}")
        require(self.depth is None or self.depth >= 1, f"model.depth must be at least 1, got {self.depth}")
        require(all(n >= 1 for n in self.hidden), f"model.hidden must hold widths >= 1, got {self.hidden}")
        for name in ("dropout", "drop_path"):
            value = getattr(self, name)
            require(0 <= value < 1, f"model.{name} must be a probability in [0, 1), got {value}")


def network(model: ModelConfig) -> str:
    """The network's name; a ResNet-20 of another depth has the name that its paper gives it."""
    if model.depth is None:
        return model.name
    return f"resnet{6 * model.depth + 2}" if model.name == "resnet20" else f"{model.name} of {model.depth} layers"
