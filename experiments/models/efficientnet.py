"""EfficientNet-B0 (Tan and Le 2019): 5,288,548 parameters for 1000 classes.

Made to compute what the published weights mean: those of the authors, converted by transformers
(``EfficientNetModel``) and by timm (``tf_efficientnet_b0``). Two things follow from their origin in TensorFlow:

- Convolutions are padded by TensorFlow's rule "SAME", which with stride 2 and an even side puts the odd row and column
  of zeros at the bottom and right. transformers equals this for sides that are multiples of 32, as 224; at other
  sizes it pads by a list in its config that is right for one size.
- The epsilon of batch normalisation is 1e-3. Its momentum is 0.9 as everywhere here, and not the authors' 0.99.

timm's ``efficientnet_b0`` is another network: padded alike on both sides, epsilon 1e-5.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.config import ModelConfig, Remat
from experiments.models.functional import Model, functional, run_blocks
from experiments.models.layers import BatchNorm, classifier, drop_path, drop_path_rates, dropout, global_mean, scaled


class _Stage(NamedTuple):
    """A row of the paper's Table 1: blocks alike, but that the first one has the stride."""

    expansion: int
    kernel: int
    stride: int
    channels: int
    blocks: int


STAGES = (
    _Stage(1, 3, 1, 16, 1),
    _Stage(6, 3, 2, 24, 2),
    _Stage(6, 5, 2, 40, 2),
    _Stage(6, 3, 2, 80, 3),
    _Stage(6, 5, 1, 112, 3),
    _Stage(6, 5, 2, 192, 4),
    _Stage(6, 3, 1, 320, 1),
)


def efficientnet_b0(config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int) -> Model:
    """The network for images with these channels. ``width`` is the width coefficient: channels are multiples of 8."""
    return functional(lambda rngs: _EfficientNet(config, image_shape[2], num_classes, rngs), config)


class _EfficientNet(nnx.Module):
    def __init__(self, config: ModelConfig, channels_in: int, num_classes: int, rngs: nnx.Rngs):
        channels = scaled(32, config.width, 8)
        self.stem = _ConvNorm(channels_in, channels, 3, stride=2, dtype=config.dtype, rngs=rngs)
        layout = [(stage, i) for stage in STAGES for i in range(stage.blocks)]
        blocks = []
        for (stage, i), rate in zip(layout, drop_path_rates(config.drop_path, len(layout)), strict=True):
            out = scaled(stage.channels, config.width, 8)
            stride = stage.stride if i == 0 else 1
            blocks.append(_Block(channels, out, stage.expansion, stage.kernel, stride, rate, config.dtype, rngs))
            channels = out
        self.blocks = nnx.List(blocks)
        features = scaled(1280, config.width, 8)
        self.top = _ConvNorm(channels, features, 1, dtype=config.dtype, rngs=rngs)
        self.classifier = classifier(features, num_classes, rngs)
        self.dropout = config.dropout
        self.remat: Remat = config.remat

    def __call__(self, images: jax.Array, train: bool, key: jax.Array | None) -> jax.Array:
        blocks_key, dropout_key = (None, None) if key is None else jax.random.split(key)
        x = jax.nn.silu(self.stem(images, train))
        x = run_blocks(self.blocks, x, train, blocks_key, remat=self.remat)
        x = global_mean(jax.nn.silu(self.top(x, train)))
        return self.classifier(dropout(x, self.dropout, dropout_key))


class _Block(nnx.Module):
    """Inverted residual (Sandler et al. 2018): expand, convolve each channel alone, squeeze-and-excite, project."""

    def __init__(
        self,
        channels_in: int,
        channels: int,
        expansion: int,
        kernel: int,
        stride: int,
        drop_rate: float,
        dtype: str,
        rngs: nnx.Rngs,
    ):
        wide = channels_in * expansion
        self.expand = _ConvNorm(channels_in, wide, 1, dtype=dtype, rngs=rngs) if expansion > 1 else None
        self.depthwise = _ConvNorm(wide, wide, kernel, stride=stride, groups=wide, dtype=dtype, rngs=rngs)
        self.excite = _SqueezeExcite(wide, channels_in // 4, dtype, rngs)
        self.project = _ConvNorm(wide, channels, 1, dtype=dtype, rngs=rngs)
        self.residual = stride == 1 and channels_in == channels
        self.drop_rate = drop_rate

    def __call__(self, x: jax.Array, train: bool, key: jax.Array | None) -> jax.Array:
        y = x if self.expand is None else jax.nn.silu(self.expand(x, train))
        y = self.excite(jax.nn.silu(self.depthwise(y, train)))
        y = self.project(y, train)
        return x + drop_path(y, self.drop_rate, key) if self.residual else y


class _SqueezeExcite(nnx.Module):
    """A gate for each channel (Hu et al. 2018), from the means over the image."""

    def __init__(self, channels: int, squeezed: int, dtype: str, rngs: nnx.Rngs):
        self.reduce = _conv(channels, squeezed, 1, bias=True, dtype=dtype, rngs=rngs)
        self.expand = _conv(squeezed, channels, 1, bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        means = global_mean(x).astype(x.dtype)[:, None, None, :]
        return x * jax.nn.sigmoid(self.expand(jax.nn.silu(self.reduce(means))))


class _ConvNorm(nnx.Module):
    """Convolution without bias, and batch normalisation."""

    def __init__(
        self,
        channels_in: int,
        channels: int,
        size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        dtype: str,
        rngs: nnx.Rngs,
    ):
        self.conv = _conv(channels_in, channels, size, stride=stride, groups=groups, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(channels, eps=1e-3)

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return self.norm(self.conv(x), train)


def _conv(
    channels_in: int,
    channels: int,
    size: int,
    *,
    stride: int = 1,
    groups: int = 1,
    bias: bool = False,
    dtype: str,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """Padded as TensorFlow does; He-normal by the fan-out within a group, as the authors' program has it."""
    return nnx.Conv(
        channels_in,
        channels,
        (size, size),
        strides=stride,
        padding="SAME",
        feature_group_count=groups,
        use_bias=bias,
        kernel_init=nnx.initializers.normal(math.sqrt(2 * groups / (size * size * channels))),
        dtype=jnp.dtype(dtype),
        rngs=rngs,
    )
