"""Vision transformer (Dosovitskiy et al. 2021): pre-norm, learned positions, classified by a class token.

The layers are one scanned layer whose parameters are stacked along a leading axis, so that neither the program nor the
time to compile it grows with depth (unless ``unroll`` writes them out). GELU is the tanh approximation, as in the
authors' JAX code. Weights are initialised as in DeiT (Touvron et al. 2021): normal, truncated at two standard
deviations, 0.02.

| network | image | patch | embedding | layers | heads | classes | parameters | published as |
| ------- | ----- | ----- | --------- | ------ | ----- | ------- | ---------- | ------------ |
| vit     | 32    | 4     | 192       | 12     | 3     | 10      | 5,362,762  | DeiT-Ti but for its patches |
| vit_s32 | 224   | 32    | 384       | 12     | 6     | 1000    | 22,878,952 | ViT-S/32 |
| vit_s16 | 224   | 16    | 384       | 12     | 6     | 1000    | 22,050,664 | ViT-S/16 |
| vit_b32 | 224   | 32    | 768       | 12     | 12    | 1000    | 88,224,232 | ViT-B/32 |
| vit_b16 | 224   | 16    | 768       | 12     | 12    | 1000    | 86,567,656 | ViT-B/16 |
| vit_l16 | 224   | 16    | 1024      | 24     | 16    | 1000    | 304,326,632 | ViT-L/16 |
"""

import operator
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.common.errors import require
from experiments.models.config import ModelConfig, Remat
from experiments.models.functional import Model, functional
from experiments.models.layers import classifier, drop_path, drop_path_rates, dropout, scaled
from experiments.models.remat import rematerialised
from experiments.models.shards import gathered


class Architecture(NamedTuple):
    """Sizes of a network."""

    patch: int
    embedding: int
    heads: int
    depth: int = 12


def vit(config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int) -> Model:
    """A ViT for 32 x 32 images."""
    return model(Architecture(patch=4, embedding=192, heads=3), config, image_shape, num_classes)


def vit_s32(config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int) -> Model:
    """ViT-S/32."""
    return model(Architecture(patch=32, embedding=384, heads=6), config, image_shape, num_classes)


def vit_s16(config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int) -> Model:
    """ViT-S/16."""
    return model(Architecture(patch=16, embedding=384, heads=6), config, image_shape, num_classes)


def vit_b32(config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int) -> Model:
    """ViT-B/32."""
    return model(Architecture(patch=32, embedding=768, heads=12), config, image_shape, num_classes)


def vit_b16(config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int) -> Model:
    """ViT-B/16."""
    return model(Architecture(patch=16, embedding=768, heads=12), config, image_shape, num_classes)


def vit_l16(config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int) -> Model:
    """ViT-L/16."""
    return model(Architecture(patch=16, embedding=1024, heads=16, depth=24), config, image_shape, num_classes)


def model(
    architecture: Architecture, config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int
) -> Model:
    """The network with these sizes."""
    require(
        all(n % architecture.patch == 0 for n in image_shape[:2]),
        f"{config.name!r} needs images whose height and width are multiples of {architecture.patch}, "
        f"got {image_shape[0]} x {image_shape[1]}",
    )
    make = lambda rngs: VisionTransformer(architecture, config, image_shape, num_classes, rngs)  # noqa: E731
    return functional(make, config, stacked="blocks")


def _linear(features_in: int, features: int, dtype: str, rngs: nnx.Rngs) -> nnx.Linear:
    kernel_init = nnx.initializers.truncated_normal(0.02)
    return nnx.Linear(features_in, features, kernel_init=kernel_init, dtype=jnp.dtype(dtype), rngs=rngs)


def _layer_norm(features: int, dtype: str, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Statistics are float32 whatever the type of the computation."""
    return nnx.LayerNorm(features, epsilon=1e-6, use_fast_variance=False, dtype=jnp.dtype(dtype), rngs=rngs)


class Block(nnx.Module):
    """Self-attention and a two-layer perceptron, each behind a layer normalisation and with a residual connection."""

    def __init__(self, features: int, heads: int, dtype: str, rngs: nnx.Rngs):
        self.heads = heads
        self.norm1, self.norm2 = (_layer_norm(features, dtype, rngs) for _ in range(2))
        self.query_key_value = _linear(features, 3 * features, dtype, rngs)
        self.project = _linear(features, features, dtype, rngs)
        self.up, self.down = _linear(features, 4 * features, dtype, rngs), _linear(4 * features, features, dtype, rngs)

    def __call__(self, x: jax.Array, rate: jax.Array, keys: jax.Array | None) -> jax.Array:
        key1, key2 = (None, None) if keys is None else keys
        x = x + drop_path(self._attention(self.norm1(x)), rate, key1)
        return x + drop_path(self.down(jax.nn.gelu(self.up(self.norm2(x)))), rate, key2)

    def _attention(self, x: jax.Array) -> jax.Array:
        heads = self.query_key_value(x).reshape(*x.shape[:2], 3, self.heads, -1)
        query, key, value = jnp.moveaxis(heads, 2, 0)
        # softmax in float32; not a fused kernel, since those have no forward mode over reverse mode
        attended = jax.nn.dot_product_attention(query, key, value, implementation="xla")
        return self.project(attended.reshape(x.shape))


class VisionTransformer(nnx.Module):
    """Linear embedding of patches, class token, positions, scanned blocks, layer normalisation, linear classifier."""

    def __init__(
        self,
        architecture: Architecture,
        config: ModelConfig,
        image_shape: tuple[int, int, int],
        num_classes: int,
        rngs: nnx.Rngs,
    ):
        patch, embedding, heads, depth = architecture
        self.depth = config.depth or depth
        self.unroll, self.dropout = config.unroll, config.dropout
        self.remat: Remat = config.remat
        self.rates = tuple(drop_path_rates(config.drop_path, self.depth))
        features = scaled(embedding, config.width, heads)
        tokens = 1 + (image_shape[0] // patch) * (image_shape[1] // patch)
        truncated_normal = nnx.initializers.truncated_normal(0.02)
        self.embed = nnx.Conv(
            image_shape[2],
            features,
            (patch, patch),
            strides=patch,
            padding="VALID",
            dtype=jnp.dtype(config.dtype),
            rngs=rngs,
        )
        self.class_token = nnx.Param(truncated_normal(rngs.params(), (1, 1, features)))
        self.positions = nnx.Param(truncated_normal(rngs.params(), (1, tokens, features)))
        self.dtype = config.dtype
        self.blocks = _stack(lambda rngs: Block(features, heads, config.dtype, rngs), self.depth, rngs)
        self.block_shapes = tuple(leaf.shape[1:] for leaf in jax.tree.leaves(nnx.split(self.blocks)[1]))
        self.norm = _layer_norm(features, config.dtype, rngs)
        self.head = classifier(features, num_classes, rngs, stddev=0.02)

    def __call__(self, images: jax.Array, train: bool, key: jax.Array | None) -> jax.Array:
        del train  # the key says it all
        x = self.embed(images)
        x = x.reshape(len(x), -1, x.shape[-1])
        token = jnp.broadcast_to(self.class_token[...].astype(x.dtype), (len(x), 1, x.shape[-1]))
        x = jnp.concatenate([token, x], axis=1) + self.positions[...].astype(x.dtype)
        classifier_key, blocks_key = (None, None) if key is None else jax.random.split(key)
        x = self._run_blocks(x, blocks_key)
        return self.head(dropout(self.norm(x)[:, 0], self.dropout, classifier_key))

    def _run_blocks(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        graph, params = nnx.split(self.blocks)

        def step(x: jax.Array, layer: tuple[nnx.State, jax.Array, jax.Array | None]) -> tuple[jax.Array, None]:
            params, rate, keys = layer
            params = gathered(params, self.block_shapes, self.dtype)
            return nnx.merge(graph, params)(x, rate, keys), None

        keys = None if key is None else jax.random.split(key, (self.depth, 2))
        step = rematerialised(step, self.remat, prevent_cse=self.unroll)
        layers = (params, jnp.array(self.rates), keys)
        if not self.unroll:
            return jax.lax.scan(step, x, layers)[0]
        for i in range(self.depth):  # not scan(unroll=...), inside which gam_jax shares no gradients either
            x, _ = step(x, jax.tree.map(operator.itemgetter(i), layers))
        return x


def _stack(make: Callable[[nnx.Rngs], Block], depth: int, rngs: nnx.Rngs) -> Block:
    """One module whose parameters are those of ``depth`` independently initialised ones, along a leading axis."""
    graph, _ = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    params = jax.vmap(lambda key: nnx.split(make(nnx.Rngs(key)))[1])(jax.random.split(rngs.params(), depth))
    return nnx.merge(graph, params)
