"""PyramidNet (Han, Kim and Kim 2017): the number of channels grows a little with every block.

PyramidNet-110 with alpha 270 has blocks of two 3 x 3 convolutions (the paper's bottleneck networks with this alpha have
164 layers), and 28,485,477 parameters with 10 classes, 28,511,307 with 100, as in imgclsmob. The stem is that for
32 x 32 images whatever their size. Weights are He-normal by fan-out.
"""

import jax
from flax import nnx

from experiments.models.config import ModelConfig, Remat
from experiments.models.functional import Model, functional, run_blocks
from experiments.models.layers import BatchNorm, classifier, conv, global_mean, pad_channels, scaled


def pyramidnet110(config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int) -> Model:
    """PyramidNet-110, alpha 270."""
    return model(110, 270, config, image_shape, num_classes)


def model(depth: int, alpha: int, config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int) -> Model:
    """PyramidNet of this depth, 2 more than a multiple of 6, that widens from 16 to 16 + alpha channels."""
    return functional(lambda rngs: PyramidNet(depth, alpha, config, image_shape[2], num_classes, rngs), config)


class Block(nnx.Module):
    """BN-conv-BN-ReLU-conv-BN, no ReLU first or last; the shortcut averages and pads."""

    def __init__(self, features_in: int, features: int, stride: int, dtype: str, rngs: nnx.Rngs):
        self.features, self.stride = features, stride
        self.norm1, self.norm2, self.norm3 = BatchNorm(features_in), BatchNorm(features), BatchNorm(features)
        self.conv1 = conv(features_in, features, 3, stride=stride, dtype=dtype, rngs=rngs)
        self.conv2 = conv(features, features, 3, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, train: bool, key: jax.Array | None) -> jax.Array:
        del key  # nothing random here
        y = self.conv1(self.norm1(x, train))
        y = self.conv2(jax.nn.relu(self.norm2(y, train)))
        return self.norm3(y, train) + pad_channels(_mean_of_patches(x, self.stride), self.features)


def _mean_of_patches(x: jax.Array, size: int) -> jax.Array:
    """Mean over size x size pixels; a last incomplete row or column counts the pixels that it has."""
    if size == 1:
        return x
    return nnx.avg_pool(x, (size, size), strides=(size, size), padding="SAME", count_include_pad=False)


class PyramidNet(nnx.Module):
    """Convolution and BN, three stages of blocks, BN-ReLU, mean over all pixels, linear classifier."""

    def __init__(self, depth: int, alpha: int, config: ModelConfig, channels: int, num_classes: int, rngs: nnx.Rngs):
        self.remat: Remat = config.remat
        features = scaled(16, config.width)
        self.stem = conv(channels, features, 3, dtype=config.dtype, rngs=rngs)
        self.stem_norm = BatchNorm(features)
        self.blocks = nnx.List([])
        per_stage = (depth - 2) // 6
        for index in range(3 * per_stage):
            stride = 2 if index in (per_stage, 2 * per_stage) else 1
            outer = scaled(round(16 + alpha * (index + 1) / (3 * per_stage)), config.width)
            self.blocks.append(Block(features, outer, stride, config.dtype, rngs))
            features = outer
        self.norm = BatchNorm(features)
        self.head = classifier(features, num_classes, rngs)

    def __call__(self, images: jax.Array, train: bool, key: jax.Array | None) -> jax.Array:
        x = self.stem_norm(self.stem(images), train)
        x = run_blocks(self.blocks, x, train, key, remat=self.remat)
        return self.head(global_mean(jax.nn.relu(self.norm(x, train))))
