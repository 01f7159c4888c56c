"""ResNet (He et al. 2016) and ResNeXt (Xie et al. 2017), for CIFAR-sized images and for ImageNet.

Images of up to 64 pixels meet a 3 x 3 stem at full resolution, larger ones a 7 x 7 stem with stride 2 and max-pooling.
The stride of a bottleneck is in its 3 x 3 convolution, as in the implementations that published numbers come from.
Weights are He-normal by fan-out. The scale of the last batch normalisation of a block starts at 1: starting it at 0
(Goyal et al. 2017) is part of ImageNet recipes, not of the CIFAR ones.

| network   | image | classes | parameters | published in |
| --------- | ----- | ------- | ---------- | ------------ |
| resnet18  | 32    | 10      | 11,173,962 | He et al. 2016 with a CIFAR stem, as in pytorch-cifar |
| resnet20  | 32    | 10      | 269,722    | He et al. 2016, table 6 (0.27 M) |
| resnet50  | 224   | 1000    | 25,557,032 | He et al. 2016, table 1; torchvision |
| resnet101 | 224   | 1000    | 44,549,160 | He et al. 2016, table 1; torchvision |
| resnext   | 32    | 10      | 34,426,698 | Xie et al. 2017, table 7: ResNeXt-29, 8x64d (34.4 M) |
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.config import ModelConfig, Remat
from experiments.models.functional import Model, functional, run_blocks
from experiments.models.layers import BatchNorm, classifier, conv, global_mean, pad_channels, scaled

LARGEST_CIFAR_IMAGE = 64


class Architecture(NamedTuple):
    """Sizes of a network. Channels are those of the first stage; each stage has twice those of the one before."""

    depths: tuple[int, ...]
    """Blocks of each stage."""
    stem: int
    """Channels of the stem."""
    inner: int
    """Channels inside a block."""
    outer: int
    """Channels between the blocks."""
    bottleneck: bool = False
    """Blocks of 1 x 1, 3 x 3 and 1 x 1 convolutions rather than of two 3 x 3 ones."""
    groups: int = 1
    """Groups of the 3 x 3 convolutions."""
    projection: bool = True
    """Shortcuts between different sizes are 1 x 1 convolutions; otherwise they subsample, and pad with zeros."""


def resnet18(config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int) -> Model:
    """ResNet-18."""
    return model(Architecture((2, 2, 2, 2), 64, 64, 64), config, image_shape, num_classes)


def resnet20(config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int) -> Model:
    """ResNet-20 of section 4.2, whose shortcuts have no parameters (option A); with ``depth`` n its ResNet-6n+2."""
    depths = (config.depth or 3,) * 3
    return model(Architecture(depths, 16, 16, 16, projection=False), config, image_shape, num_classes)


def resnet50(config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int) -> Model:
    """ResNet-50."""
    return model(Architecture((3, 4, 6, 3), 64, 64, 256, bottleneck=True), config, image_shape, num_classes)


def resnet101(config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int) -> Model:
    """ResNet-101."""
    return model(Architecture((3, 4, 23, 3), 64, 64, 256, bottleneck=True), config, image_shape, num_classes)


def resnext(config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int) -> Model:
    """ResNeXt-29, 8 groups of 64 channels."""
    architecture = Architecture((3, 3, 3), 64, 512, 256, bottleneck=True, groups=8)
    return model(architecture, config, image_shape, num_classes)


def model(
    architecture: Architecture, config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int
) -> Model:
    """The network with these sizes."""
    return functional(lambda rngs: ResNet(architecture, config, image_shape, num_classes, rngs), config)


class ConvNorm(nnx.Module):
    """Convolution, with the options of :func:`experiments.models.layers.conv`, and batch normalisation."""

    def __init__(
        self,
        features_in: int,
        features: int,
        size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        dtype: str,
        rngs: nnx.Rngs,
    ):
        self.conv = conv(features_in, features, size, stride=stride, groups=groups, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(features)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return self.norm(self.conv(x), train)


class SubsampleAndPad(nnx.Module):
    """The shortcut without parameters."""

    def __init__(self, features: int, stride: int):
        self.features, self.stride = features, stride

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        del train
        return pad_channels(x[:, :: self.stride, :: self.stride], self.features)


class Block(nnx.Module):
    """``relu(shortcut(x) + branch(x))``, with ReLU between the layers of the branch."""

    def __init__(self, branch: list[ConvNorm], shortcut: ConvNorm | SubsampleAndPad | None):
        self.branch, self.shortcut = nnx.List(branch), shortcut

    def __call__(self, x: jax.Array, train: bool, key: jax.Array | None) -> jax.Array:
        del key  # nothing random here
        y = x
        for layer in self.branch[:-1]:
            y = jax.nn.relu(layer(y, train))
        y = self.branch[-1](y, train)
        return jax.nn.relu(y + (x if self.shortcut is None else self.shortcut(x, train)))


class ResNet(nnx.Module):
    """Stem, stages of residual blocks, mean over all pixels, linear classifier."""

    def __init__(
        self,
        architecture: Architecture,
        config: ModelConfig,
        image_shape: tuple[int, int, int],
        num_classes: int,
        rngs: nnx.Rngs,
    ):
        self.remat: Remat = config.remat
        self.large = max(image_shape[:2]) > LARGEST_CIFAR_IMAGE
        features = scaled(architecture.stem, config.width)
        size, stride = (7, 2) if self.large else (3, 1)
        self.stem = ConvNorm(image_shape[2], features, size, stride=stride, dtype=config.dtype, rngs=rngs)
        self.blocks = nnx.List([])
        for stage, depth in enumerate(architecture.depths):
            inner = scaled(architecture.inner * 2**stage, config.width, architecture.groups)
            outer = scaled(architecture.outer * 2**stage, config.width)
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                self.blocks.append(_block(architecture, features, inner, outer, stride, config.dtype, rngs))
                features = outer
        self.head = classifier(features, num_classes, rngs)

    def __call__(self, images: jax.Array, train: bool, key: jax.Array | None) -> jax.Array:
        x = jax.nn.relu(self.stem(images, train))
        if self.large:
            x = _max_pool(x)
        x = run_blocks(self.blocks, x, train, key, remat=self.remat)
        return self.head(global_mean(x))


def _max_pool(x: jax.Array) -> jax.Array:
    """Largest of 3 x 3 pixels at every second pixel, padded alike on both sides."""
    padding = ((0, 0), (1, 1), (1, 1), (0, 0))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding)


def _block(
    architecture: Architecture, features: int, inner: int, outer: int, stride: int, dtype: str, rngs: nnx.Rngs
) -> Block:
    if architecture.bottleneck:
        branch = [
            ConvNorm(features, inner, 1, dtype=dtype, rngs=rngs),
            ConvNorm(inner, inner, 3, stride=stride, groups=architecture.groups, dtype=dtype, rngs=rngs),
            ConvNorm(inner, outer, 1, dtype=dtype, rngs=rngs),
        ]
    else:
        branch = [
            ConvNorm(features, outer, 3, stride=stride, dtype=dtype, rngs=rngs),
            ConvNorm(outer, outer, 3, dtype=dtype, rngs=rngs),
        ]
    if stride == 1 and features == outer:
        return Block(branch, None)
    if architecture.projection:
        return Block(branch, ConvNorm(features, outer, 1, stride=stride, dtype=dtype, rngs=rngs))
    return Block(branch, SubsampleAndPad(outer, stride))
