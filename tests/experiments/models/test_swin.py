"""Swin-T: its published size and cost, attention inside windows, and derivatives of the training loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from experiments.models import swin
from experiments.models.config import ModelConfig
from experiments.models.swin import swin_t

pytestmark = pytest.mark.slow
KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).standard_normal((4, 36, 36, 3), np.float32)  # maps of 9, padded, and 5


def config(**fields):
    return ModelConfig(**({"name": "swin_t"} | fields))


def with_variables(model):
    """The model, and random variables that take no time to compile."""
    rng = np.random.default_rng(1)
    params, state = jax.eval_shape(model.init, KEY)
    params = jax.tree.map(lambda p: rng.normal(0, 0.3, p.shape).astype("float32"), params)
    return model, params, jax.tree.map(lambda s: rng.uniform(0.5, 1, s.shape).astype("float32"), state)


def shallow(**fields):
    """A block and a shifted block: quick to compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(swin, "DEPTHS", (2,))
        patch.setattr(swin, "HEADS", (3,))
        return with_variables(swin_t(config(width=0.125, **fields), IMAGES.shape[1:], 5))


@pytest.mark.parametrize("size, classes, parameters", [(224, 1000, 28_288_354), (32, 10, 27_527_044)])
def test_published_number_of_parameters(size, classes, parameters):
    params, state = jax.eval_shape(swin_t(config(), (size, size, 3), classes).init, KEY)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters
    assert state == {}


def test_published_number_of_multiply_adds():
    model = swin_t(config(), (224, 224, 3), 1000)
    variables = jax.eval_shape(model.init, KEY)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    logits = jax.jit(lambda variables, images: model.apply(*variables, images, train=False)[0])
    flops = logits.lower(variables, images).cost_analysis()["flops"]
    assert flops / 2 == pytest.approx(4.5e9, rel=0.05)  # Liu et al., Table 1; XLA counts some elementwise work


@pytest.mark.parametrize("shape", [(28, 28, 1), (61, 120, 3)])
def test_any_image_size(shape):
    model = swin_t(config(dtype="bfloat16"), shape, 7)
    variables = jax.eval_shape(model.init, KEY)
    images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    logits, _ = jax.eval_shape(lambda v, x: model.apply(*v, x, train=True), variables, images)
    assert logits.shape == (2, 7)
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, logits))} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    "height, width, shifted, window, shift",
    [(14, 14, False, 7, 0), (14, 14, True, 7, 3), (9, 16, True, 7, 3), (7, 7, True, 7, 0), (4, 4, True, 4, 0)],
)
def test_attention_stays_inside_windows(height, width, shifted, window, shift):
    heads, features = 2, 8
    attention = swin._WindowAttention(features, heads, shifted, jnp.dtype("float32"), nnx.Rngs(0))
    rng = np.random.default_rng(0)
    for array, scale in ((attention.qkv.kernel, 0.5), (attention.qkv.bias, 0.5), (attention.relative_position, 1.0)):
        array[...] = jnp.asarray(rng.normal(0, scale, array.shape), "float32")
    x = rng.normal(0, 1, (height, width, features))

    padded = np.zeros((-(-height // window) * window, -(-width // window) * window, features))
    padded[:height, :width] = x
    positions = [(i, j) for i in range(padded.shape[0]) for j in range(padded.shape[1])]
    qkv = padded.reshape(-1, features) @ np.asarray(attention.qkv.kernel[...]) + np.asarray(attention.qkv.bias[...])
    q, k, v = qkv.reshape(-1, 3, heads, features // heads).transpose(1, 0, 2, 3)
    table = np.asarray(attention.relative_position[...]).reshape(13, 13, heads)
    expected = np.zeros((height, width, features))
    windows = [((i - shift) // window, (j - shift) // window) for i, j in positions]
    for a, (i, j) in enumerate(positions):
        if i >= height or j >= width:
            continue
        same = [b for b in range(len(positions)) if windows[b] == windows[a]]
        bias = np.array([table[i - positions[b][0] + 6, j - positions[b][1] + 6] for b in same])
        scores = np.einsum("hd,bhd->bh", q[a], k[same]) / np.sqrt(features // heads) + bias
        weights = np.exp(scores) / np.exp(scores).sum(0)
        expected[i, j] = np.einsum("bh,bhd->hd", weights, v[same]).reshape(-1)
    expected = expected @ np.asarray(attention.out.kernel[...]) + np.asarray(attention.out.bias[...])
    np.testing.assert_allclose(attention(jnp.float32(x)[None])[0], expected, rtol=1e-4, atol=1e-5)


def test_merging_takes_neighbours_in_the_published_order():
    merge = swin._Merge(1, jnp.dtype("float32"), nnx.Rngs(0))
    merge.norm.scale[...] = jnp.arange(1.0, 5.0)
    merge.reduce.kernel[...] = jnp.ones((4, 2))
    x = jnp.array([[1.0, 2.0, 5.0], [3.0, 4.0, 6.0], [0.0, 0.0, 0.0]])[None, :, :, None]  # an odd side: zeros join
    first = (jnp.array([1.0, 3.0, 2.0, 4.0]) - 2.5) / jnp.sqrt(1.25 + 1e-5)
    np.testing.assert_allclose(merge(x)[0, 0, 0], jnp.full(2, first @ jnp.arange(1.0, 5.0)), rtol=1e-5)
    assert merge(x).shape == (1, 2, 2, 2)


def test_hessian_vector_products_with_recomputed_activations_are_symmetric():
    model, params, state = shallow(drop_path=0.5, remat="all")

    @jax.jit
    def product(u, v, params, state, images):
        def loss(params):
            logits, _ = model.apply(params, state, images, train=True, key=jax.random.key(2))
            return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(4)).mean()

        return optax.tree.vdot(u, jax.jvp(jax.grad(loss), (params,), (v,))[1])

    rng = np.random.default_rng(2)
    u, v = (jax.tree.map(lambda p: rng.normal(0, 1, p.shape).astype("float32"), params) for _ in range(2))
    one, other = product(u, v, params, state, IMAGES), product(v, u, params, state, IMAGES)
    assert abs(one) > 0.1
    np.testing.assert_allclose(one, other, rtol=1e-2)


def test_copies_of_one_image_differ_by_the_branches_dropped():
    model, *variables = shallow(drop_path=0.5)  # both branches of the last block, one of them, or none
    train = jax.jit(functools.partial(model.apply, train=True))
    copies = np.repeat(IMAGES[:1], 32, axis=0)
    one, again, other = (train(*variables, copies, key=jax.random.key(i))[0] for i in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.any(one != other)
    assert len(np.unique(np.round(one, 2), axis=0)) == 4
