"""Swin-T (Liu et al. 2021): attention inside windows, shifted in every other block. 28,288,354 parameters.

Feature maps that windows do not tile are padded with zeros at the bottom and right, as in the published code, where
padded positions are attended to like all others. The parameters do not depend on the size of the image: where a map is
smaller than a window, the window is the map, and uses the middle of the table of relative positions.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.models.config import ModelConfig, Remat
from experiments.models.functional import Model, functional, run_blocks
from experiments.models.layers import classifier, drop_path, drop_path_rates, global_mean, scaled

PATCH = 4
WINDOW = 7
DEPTHS = (2, 2, 6, 2)
HEADS = (3, 6, 12, 24)


def swin_t(config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int) -> Model:
    """The network for images with these channels. ``width`` changes the width of the heads, and not their number."""
    return functional(lambda rngs: _Swin(config, image_shape[2], num_classes, rngs), config)


class _Swin(nnx.Module):
    def __init__(self, config: ModelConfig, channels_in: int, num_classes: int, rngs: nnx.Rngs):
        width = scaled(96, config.width, HEADS[0])
        dtype = jnp.dtype(config.dtype)
        self.embed = nnx.Conv(
            channels_in,
            width,
            (PATCH, PATCH),
            strides=PATCH,
            padding="VALID",
            kernel_init=nnx.initializers.normal(0.02),
            dtype=dtype,
            rngs=rngs,
        )
        self.embed_norm = _layer_norm(width, dtype, rngs)
        rates = iter(drop_path_rates(config.drop_path, sum(DEPTHS)))
        stages, merges = [], []
        for stage, (depth, heads) in enumerate(zip(DEPTHS, HEADS, strict=True)):
            if stage > 0:
                merges.append(_Merge(width, dtype, rngs))
                width *= 2
            stages.append(nnx.List([_Block(width, heads, i % 2 == 1, next(rates), dtype, rngs) for i in range(depth)]))
        self.stages, self.merges = nnx.List(stages), nnx.List(merges)
        self.norm = _layer_norm(width, dtype, rngs)
        self.classifier = classifier(width, num_classes, rngs, stddev=0.02)
        self.remat: Remat = config.remat

    def __call__(self, images: jax.Array, train: bool, key: jax.Array | None) -> jax.Array:
        x = self.embed_norm(self.embed(_pad_to_multiple(images, PATCH)))
        for i, blocks in enumerate(self.stages):
            if i > 0:
                x = self.merges[i - 1](x)
            stage_key = None if key is None else jax.random.fold_in(key, i)
            x = run_blocks(blocks, x, train, stage_key, remat=self.remat)
        return self.classifier(global_mean(self.norm(x)))


class _Block(nnx.Module):
    """Attention inside windows and a perceptron, each behind a layer norm and beside a shortcut."""

    def __init__(self, width: int, heads: int, shifted: bool, drop_rate: float, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.norm1 = _layer_norm(width, dtype, rngs)
        self.attention = _WindowAttention(width, heads, shifted, dtype, rngs)
        self.norm2 = _layer_norm(width, dtype, rngs)
        self.up = _linear(width, 4 * width, dtype, rngs)
        self.down = _linear(4 * width, width, dtype, rngs)
        self.drop_rate = drop_rate

    def __call__(self, x: jax.Array, train: bool, key: jax.Array | None) -> jax.Array:
        key1, key2 = (None, None) if key is None else jax.random.split(key)
        x = x + drop_path(self.attention(self.norm1(x)), self.drop_rate, key1)
        y = self.down(jax.nn.gelu(self.up(self.norm2(x)), approximate=False))
        return x + drop_path(y, self.drop_rate, key2)


class _WindowAttention(nnx.Module):
    """Multi-head self-attention inside windows; ``shifted`` windows lie half a window further down and right."""

    def __init__(self, width: int, heads: int, shifted: bool, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.qkv = _linear(width, 3 * width, dtype, rngs)
        self.out = _linear(width, width, dtype, rngs)
        table = 0.02 * jax.random.normal(rngs.params(), ((2 * WINDOW - 1) ** 2, heads))
        self.relative_position = nnx.Param(table)
        self.heads, self.shifted = heads, shifted

    def __call__(self, x: jax.Array) -> jax.Array:
        height, width = x.shape[1:3]
        tiled = min(height, width) <= WINDOW  # the published rule, also for a map that is not a square
        window = min(height, width, WINDOW)
        shift = 0 if tiled or not self.shifted else WINDOW // 2
        x = _pad_to_multiple(x, window)
        shape = x.shape
        separated = _separated(shape[1], shape[2], window, shift) if shift else None
        x = self._attend(_split(jnp.roll(x, (-shift, -shift), (1, 2)), window), window, separated)
        x = jnp.roll(_join(x, window, shape), (shift, shift), (1, 2))
        return x[:, :height, :width]

    def _attend(self, x: jax.Array, window: int, separated: np.ndarray | None) -> jax.Array:
        """Attention for x [batch, windows, positions, features]; the softmax is float32."""
        qkv = self.qkv(x)
        q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:3], 3, self.heads, -1), 3, 0)
        scale = q.shape[-1] ** -0.5
        scores = jnp.einsum("bwqhd,bwkhd->bwhqk", q * scale, k, preferred_element_type=jnp.float32)
        bias = self.relative_position[...][_relative_positions(window)]
        scores += jnp.transpose(bias, (2, 0, 1))[None, None]
        if separated is not None:
            scores -= 100.0 * separated[None, :, None]
        weights = jax.nn.softmax(scores).astype(v.dtype)
        return self.out(jnp.einsum("bwhqk,bwkhd->bwqhd", weights, v).reshape(x.shape))


class _Merge(nnx.Module):
    """Patch merging: four neighbours become one position with twice the features."""

    def __init__(self, width: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.norm = _layer_norm(4 * width, dtype, rngs)
        self.reduce = _linear(4 * width, 2 * width, dtype, rngs, bias=False)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = _pad_to_multiple(x, 2)
        neighbours = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]  # the order of published weights
        return self.reduce(self.norm(jnp.concatenate(neighbours, -1)))


def _pad_to_multiple(x: jax.Array, multiple: int) -> jax.Array:
    """Zeros at the bottom and right, until height and width are multiples."""
    _, height, width, _ = x.shape
    return jnp.pad(x, ((0, 0), (0, -height % multiple), (0, -width % multiple), (0, 0)))


def _split(x: jax.Array, window: int) -> jax.Array:
    """[batch, height, width, features] -> [batch, windows, positions in a window, features]."""
    batch, height, width, features = x.shape
    x = x.reshape(batch, height // window, window, width // window, window, features)
    return x.swapaxes(2, 3).reshape(batch, -1, window**2, features)


def _join(x: jax.Array, window: int, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of :func:`_split`."""
    batch, height, width, features = shape
    x = x.reshape(batch, height // window, width // window, window, window, features)
    return x.swapaxes(2, 3).reshape(shape)


def _relative_positions(window: int) -> np.ndarray:
    """Row of the table for each query and key, [positions, positions]: down and right from the key to the query."""
    rows, columns = np.divmod(np.arange(window**2), window)
    down, right = rows[:, None] - rows, columns[:, None] - columns
    return (down + WINDOW - 1) * (2 * WINDOW - 1) + right + WINDOW - 1


def _separated(height: int, width: int, window: int, shift: int) -> np.ndarray:
    """Which positions share a window only because the shift wraps around, [windows, positions, positions]."""

    def wrapped(size: int) -> np.ndarray:
        return np.arange(size) >= size - shift

    parts = 2 * wrapped(height)[:, None] + wrapped(width)
    parts = parts.reshape(height // window, window, width // window, window).swapaxes(1, 2).reshape(-1, window**2)
    return parts[:, :, None] != parts[:, None, :]


def _layer_norm(features: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(features, epsilon=1e-5, use_fast_variance=False, dtype=dtype, rngs=rngs)


def _linear(features_in: int, features: int, dtype: jnp.dtype, rngs: nnx.Rngs, *, bias: bool = True) -> nnx.Linear:
    kernel_init = nnx.initializers.normal(0.02)
    return nnx.Linear(features_in, features, use_bias=bias, kernel_init=kernel_init, dtype=dtype, rngs=rngs)
