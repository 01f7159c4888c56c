"""The scanned vision transformer against a loop over its layers, and what it drops."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.common.errors import UserError
from experiments.models import vit
from experiments.models.config import ModelConfig
from experiments.models.registry import build

IMAGE_SHAPE = (8, 8, 3)
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiles faster
IMAGES = jax.random.normal(jax.random.key(0), (6, *IMAGE_SHAPE))


def architecture(depth=3):
    return vit.Architecture(patch=4, embedding=8, heads=2, depth=depth)


def make(**options):
    """A small ViT as pure functions, and its parameters, which are the same whatever the options."""
    return vit.model(architecture(), ModelConfig(name="vit", **options), IMAGE_SHAPE, 5), initial_params()


@functools.cache
def initial_params():
    model = vit.model(architecture(), ModelConfig(name="vit"), IMAGE_SHAPE, 5)
    return compiled(model.init)(jax.random.key(0))[0]


def block():
    """One layer."""
    make = lambda: vit.Block(8, 2, "float32", nnx.Rngs(0))  # noqa: E731
    return nnx.merge(nnx.split(nnx.eval_shape(make))[0], compiled(lambda: nnx.split(make())[1])())


def test_scan_is_a_loop_over_the_layers():
    @compiled
    def scanned_and_looped():
        net = vit.VisionTransformer(architecture(), ModelConfig(name="vit"), IMAGE_SHAPE, 5, nnx.Rngs(0))
        seen = []
        net.norm = lambda x: seen.append(x) or x  # what leaves the layers
        net(IMAGES, False, None)

        x = net.embed(IMAGES).reshape(6, 4, 8)
        x = jnp.concatenate([jnp.tile(net.class_token[...], (6, 1, 1)), x], axis=1) + net.positions[...]
        graph, stacked = nnx.split(net.blocks)
        for layer in range(3):
            x = nnx.merge(graph, jax.tree.map(operator.itemgetter(layer), stacked))(x, jnp.zeros(()), None)
        return seen[0], x

    scanned, looped = scanned_and_looped()
    np.testing.assert_allclose(scanned, looped, rtol=1e-4, atol=1e-5)


def test_layers_start_different():
    _, params = make()
    kernel = params["blocks"]["up"]["kernel"]
    assert kernel.shape == (3, 8, 32) and jnp.any(kernel[0] != kernel[1])


def test_attention_by_hand():
    net = block()
    kernel = jax.random.normal(jax.random.key(1), (8, 24))
    net.query_key_value.kernel[...] = kernel
    x = np.asarray(jax.random.normal(jax.random.key(2), (3, 5, 8)))
    q, k, v = np.split(x @ np.asarray(kernel), 3, axis=-1)
    expected = []
    for head in (slice(0, 4), slice(4, 8)):
        scores = np.exp(q[..., head] @ k[..., head].swapaxes(1, 2) / np.sqrt(4))
        expected.append(scores / scores.sum(-1, keepdims=True) @ v[..., head])
    expected = np.concatenate(expected, axis=-1) @ np.asarray(net.project.kernel[...])
    np.testing.assert_allclose(net._attention(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-5)


def test_the_program_does_not_grow_with_depth():
    def size(depth):
        model = vit.model(architecture(depth), ModelConfig(name="vit"), IMAGE_SHAPE, 5)
        params, _ = jax.eval_shape(model.init, jax.random.key(0))
        grad = jax.grad(lambda params: model.apply(params, {}, IMAGES, train=True)[0].sum())
        return len(jax.jit(grad).lower(params).as_text().splitlines())

    assert size(3) == size(9)


@functools.cache
def evaluated():
    """The logits without any option."""
    model, params = make()
    return compiled(functools.partial(model.apply, train=False))(params, {}, IMAGES)[0]


@pytest.mark.parametrize("option", ["dropout", "drop_path"])
def test_what_is_dropped_is_a_function_of_the_key(option):
    model, params = make(**{option: 0.5})
    logits = compiled(
        lambda seed, train: model.apply(params, {}, IMAGES, train=train, key=jax.random.key(seed))[0], static_argnums=1
    )
    np.testing.assert_array_equal(logits(0, True), logits(0, True))
    assert jnp.any(logits(0, True) != logits(1, True))
    np.testing.assert_array_equal(logits(0, False), logits(1, False))
    np.testing.assert_allclose(logits(0, False), evaluated(), rtol=1e-5)
    with pytest.raises(ValueError, match="needs a key to train"):
        model.apply(params, {}, IMAGES, train=True)


def test_a_dropped_path_leaves_an_example_as_it_was():
    x = jax.random.normal(jax.random.key(1), (200, 5, 8))
    net = block()
    y = compiled(lambda x: net(x, 0.5, jax.random.split(jax.random.key(2))))(x)
    untouched = jnp.all(y == x, axis=(1, 2))
    assert float(untouched.mean()) == pytest.approx(0.25, abs=0.1)  # both branches dropped


def test_width_keeps_the_heads():
    model = build(ModelConfig(name="vit", width=0.26), IMAGE_SHAPE, 5)
    params, _ = jax.eval_shape(model.init, jax.random.key(0))
    assert params["class_token"].shape == (1, 1, 51)


def test_images_must_divide_into_patches():
    with pytest.raises(UserError, match=r"'vit' .* multiples of 4, got 30 x 32"):
        build(ModelConfig(name="vit"), (30, 32, 3), 10)
