"""The ViT and the CIFAR ResNets of :mod:`experiments.models` in PyTorch, layer by layer of the same size."""

# pyright: reportMissingImports=false

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from experiments.models.layers import scaled


class Attention(nn.Module):
    """Multi-head self-attention in plain operations, which can be differentiated twice."""

    def __init__(self, features: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query_key_value, self.project = nn.Linear(features, 3 * features), nn.Linear(features, features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, features = x.shape
        heads = self.query_key_value(x).reshape(batch, tokens, 3, self.heads, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        weights = torch.softmax(query @ key.mT / query.shape[-1] ** 0.5, -1)
        return self.project((weights @ value).transpose(1, 2).reshape(batch, tokens, features))


class Block(nn.Module):
    """A layer of the transformer, pre-norm."""

    def __init__(self, features: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(features, 1e-6), nn.LayerNorm(features, 1e-6)
        self.attention = Attention(features, heads)
        self.up, self.down = nn.Linear(features, 4 * features), nn.Linear(4 * features, features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(functional.gelu(self.up(self.norm2(x)), approximate="tanh"))


class VisionTransformer(nn.Module):
    """Twelve layers, a class token, learned positions."""

    def __init__(self, patch: int, features: int, heads: int, image_shape: tuple[int, int, int], num_classes: int):
        super().__init__()
        tokens = 1 + (image_shape[0] // patch) * (image_shape[1] // patch)
        self.embed = nn.Conv2d(image_shape[2], features, patch, patch)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, features))
        self.positions = nn.Parameter(0.02 * torch.randn(1, tokens, features))
        self.blocks = nn.Sequential(*(Block(features, heads) for _ in range(12)))
        self.norm, self.head = nn.LayerNorm(features, 1e-6), nn.Linear(features, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.embed(images).flatten(2).mT
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut; without a projection it subsamples, and pads with zeros."""

    def __init__(self, features_in: int, features: int, stride: int, projection: bool):
        super().__init__()
        self.branch = nn.Sequential(
            *_conv(features_in, features, 3, stride), nn.ReLU(), *_conv(features, features, 3, 1)
        )
        self.stride, self.extra = stride, features - features_in
        changes = stride > 1 or self.extra > 0
        self.shortcut = nn.Sequential(*_conv(features_in, features, 1, stride)) if changes and projection else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.shortcut is not None:
            return functional.relu(self.branch(x) + self.shortcut(x))
        shortcut = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))
        return functional.relu(self.branch(x) + shortcut)


class ResNet(nn.Module):
    """Stages of basic blocks behind a 3 x 3 stem."""

    def __init__(self, depths: tuple[int, ...], channels: list[int], projection: bool, num_classes: int):
        super().__init__()
        layers, features = [*_conv(3, channels[0], 3, 1), nn.ReLU()], channels[0]
        for stage, (depth, width) in enumerate(zip(depths, channels, strict=True)):
            for index in range(depth):
                layers.append(BasicBlock(features, width, 2 if stage and not index else 1, projection))
                features = width
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(features, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(images).mean((2, 3)))


def _conv(features_in: int, features: int, size: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(features_in, features, size, stride, size // 2, bias=False), nn.BatchNorm2d(features)]


def _vit(patch: int, embedding: int, heads: int) -> Callable[..., nn.Module]:
    return lambda width, shape, classes: VisionTransformer(
        patch, scaled(embedding, width, heads), heads, shape, classes
    )


def _resnet(depths: tuple[int, ...], stem: int, projection: bool) -> Callable[..., nn.Module]:
    def make(width: float, shape: tuple[int, int, int], classes: int) -> nn.Module:
        return ResNet(depths, [scaled(stem * 2**stage, width) for stage in range(len(depths))], projection, classes)

    return make


NETWORKS = {
    "vit": _vit(4, 192, 3),
    "vit_s32": _vit(32, 384, 6),
    "vit_s16": _vit(16, 384, 6),
    "vit_b32": _vit(32, 768, 12),
    "resnet18": _resnet((2, 2, 2, 2), 64, True),
    "resnet20": _resnet((3, 3, 3), 16, False),
}
"""``make(width, image_shape, num_classes)`` by the names of :mod:`experiments.models`."""
