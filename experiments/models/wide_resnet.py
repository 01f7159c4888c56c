"""Wide residual networks (Zagoruyko and Komodakis 2016): pre-activation blocks of two 3 x 3 convolutions.

The stem is that for 32 x 32 images whatever their size, and there is no dropout inside the blocks, as in most published
runs. Weights are He-normal by fan-out.

| network  | classes | parameters | published in |
| -------- | ------- | ---------- | ------------ |
| wrn28_2  | 10      | 1,467,610  | Oliver et al. 2018 (1.5 M) |
| wrn28_10 | 10      | 36,479,194 | Zagoruyko and Komodakis 2016, table 4 (36.5 M) |
"""

import jax
from flax import nnx

from experiments.models.config import ModelConfig, Remat
from experiments.models.functional import Model, functional, run_blocks
from experiments.models.layers import BatchNorm, classifier, conv, global_mean, scaled


def wrn28_2(config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int) -> Model:
    """WRN-28-2."""
    return model(28, 2, config, image_shape, num_classes)


def wrn28_10(config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int) -> Model:
    """WRN-28-10."""
    return model(28, 10, config, image_shape, num_classes)


def model(depth: int, factor: int, config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int) -> Model:
    """WRN-depth-factor; the depth is 4 more than a multiple of 6."""
    return functional(lambda rngs: WideResNet(depth, factor, config, image_shape[2], num_classes, rngs), config)


class Block(nnx.Module):
    """Twice BN-ReLU-conv. A projection shortcut starts from the first activation, not from the input."""

    def __init__(self, features_in: int, features: int, stride: int, dtype: str, rngs: nnx.Rngs):
        self.norm1, self.norm2 = BatchNorm(features_in), BatchNorm(features)
        self.conv1 = conv(features_in, features, 3, stride=stride, dtype=dtype, rngs=rngs)
        self.conv2 = conv(features, features, 3, dtype=dtype, rngs=rngs)
        same_shape = stride == 1 and features_in == features
        self.shortcut = None if same_shape else conv(features_in, features, 1, stride=stride, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, train: bool, key: jax.Array | None) -> jax.Array:
        del key  # nothing random here
        activation = jax.nn.relu(self.norm1(x, train))
        shortcut = x if self.shortcut is None else self.shortcut(activation)
        return shortcut + self.conv2(jax.nn.relu(self.norm2(self.conv1(activation), train)))


class WideResNet(nnx.Module):
    """Convolution, three stages of blocks, BN-ReLU, mean over all pixels, linear classifier."""

    def __init__(self, depth: int, factor: int, config: ModelConfig, channels: int, num_classes: int, rngs: nnx.Rngs):
        self.remat: Remat = config.remat
        features = scaled(16, config.width)
        self.stem = conv(channels, features, 3, dtype=config.dtype, rngs=rngs)
        self.blocks = nnx.List([])
        for stage in range(3):
            for index in range((depth - 4) // 6):
                stride = 2 if stage > 0 and index == 0 else 1
                outer = scaled(16 * factor * 2**stage, config.width)
                self.blocks.append(Block(features, outer, stride, config.dtype, rngs))
                features = outer
        self.norm = BatchNorm(features)
        self.head = classifier(features, num_classes, rngs)

    def __call__(self, images: jax.Array, train: bool, key: jax.Array | None) -> jax.Array:
        x = run_blocks(self.blocks, self.stem(images), train, key, remat=self.remat)
        return self.head(global_mean(jax.nn.relu(self.norm(x, train))))
