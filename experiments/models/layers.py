"""Layers that the networks share. Images are NHWC."""

import jax
import jax.numpy as jnp
from flax import nnx


class BatchNorm(nnx.Module):
    """Batch normalisation (Ioffe and Szegedy 2015) as PyTorch has it: momentum 0.9, running variance unbiased.

    Statistics are float32 whatever the type of the input. Under jit with sharded arrays they are those of the whole
    batch. The variance is the mean of the squared deviations, which unlike the difference of two means cannot cancel,
    and of which XLA shares more between the passes of one training step.
    """

    def __init__(self, features: int, *, eps: float = 1e-5):
        self.scale, self.bias = nnx.Param(jnp.ones(features)), nnx.Param(jnp.zeros(features))
        self.mean, self.var = nnx.BatchStat(jnp.zeros(features)), nnx.BatchStat(jnp.ones(features))
        self.eps = eps

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        dtype, x = x.dtype, x.astype(jnp.float32)
        if train:
            axes = tuple(range(x.ndim - 1))
            mean = x.mean(axes)
            var = jnp.square(x - _per_channel(mean, x)).mean(axes)
            count = x.size // x.shape[-1]
            self.mean[...] = 0.9 * self.mean[...] + 0.1 * mean
            self.var[...] = 0.9 * self.var[...] + 0.1 * var * (count / max(count - 1, 1))
        else:
            mean, var = self.mean[...], self.var[...]
        factor = jax.lax.rsqrt(var + self.eps) * self.scale[...]
        x = (x - _per_channel(mean, x)) * _per_channel(factor, x) + _per_channel(self.bias[...], x)
        return x.astype(dtype)


def _per_channel(vector: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.expand_dims(vector, tuple(range(x.ndim - 1)))


def conv(
    features_in: int, features: int, size: int, *, stride: int = 1, groups: int = 1, dtype: str, rngs: nnx.Rngs
) -> nnx.Conv:
    """A square convolution without bias, padded alike on both sides; He-normal by fan-out (He et al. 2015, eq. 14)."""
    return nnx.Conv(
        features_in,
        features,
        (size, size),
        strides=stride,
        padding=[(size // 2, size // 2)] * 2,
        feature_group_count=groups,
        use_bias=False,
        kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
        dtype=jnp.dtype(dtype),
        rngs=rngs,
    )


def classifier(features: int, num_classes: int, rngs: nnx.Rngs, *, stddev: float = 0.01) -> nnx.Linear:
    """The last layer, computed in float32: normal weights (0.01: Goyal et al. 2017, section 5.1), zero biases."""
    kernel_init = nnx.initializers.normal(stddev)
    return nnx.Linear(features, num_classes, kernel_init=kernel_init, dtype=jnp.float32, rngs=rngs)


def global_mean(x: jax.Array) -> jax.Array:
    """Mean over height and width, in float32."""
    return jnp.mean(x, (1, 2), dtype=jnp.float32)


def pad_channels(x: jax.Array, features: int) -> jax.Array:
    """Zeros after the channels, up to ``features``; the shortcut without parameters."""
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, features - x.shape[-1])))


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Each element is zero with probability ``rate``, and scaled to keep the mean; nothing happens without a key."""
    return x if key is None else _drop(x, rate, key, x.shape)


def drop_path(branch: jax.Array, rate: jax.typing.ArrayLike, key: jax.Array | None) -> jax.Array:
    """Stochastic depth (Huang et al. 2016): as dropout, but for the whole branch of an example at once."""
    return branch if key is None else _drop(branch, rate, key, (branch.shape[0], *[1] * (branch.ndim - 1)))


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Rates of all residual branches, rising linearly from 0 for the first one to ``rate`` for the last."""
    return [rate * i / max(depth - 1, 1) for i in range(depth)]


def _drop(x: jax.Array, rate: jax.typing.ArrayLike, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    keep = 1 - jnp.asarray(rate, jnp.float32)
    kept = jax.random.bernoulli(key, keep, shape)
    return jnp.where(kept, x / keep.astype(x.dtype), jnp.zeros_like(x))


def scaled(channels: int, width: float, multiple: int = 1) -> int:
    """Channels of a network ``width`` times as wide: a multiple of ``multiple``, and at least that."""
    return max(1, round(channels * width / multiple)) * multiple
