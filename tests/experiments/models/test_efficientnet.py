"""EfficientNet-B0: its published size and cost, TensorFlow's padding, and derivatives of the training loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from experiments.models import efficientnet
from experiments.models.config import ModelConfig
from experiments.models.efficientnet import efficientnet_b0

pytestmark = pytest.mark.slow
KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).standard_normal((4, 16, 16, 3), np.float32)


def config(**fields):
    return ModelConfig(**({"name": "efficientnet_b0"} | fields))


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def with_variables(model):
    """The model, and random variables that take no time to compile."""
    rng = np.random.default_rng(1)
    params, state = jax.eval_shape(model.init, KEY)
    params = jax.tree.map(lambda p: rng.normal(0, 0.3, p.shape).astype("float32"), params)
    return model, params, jax.tree.map(lambda s: rng.uniform(0.5, 1, s.shape).astype("float32"), state)


def shallow(**fields):
    """A block without expansion, one with stride 2, and a residual one: everything there is, quick to compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(efficientnet, "STAGES", (efficientnet.STAGES[0], efficientnet.STAGES[2]))
        return with_variables(efficientnet_b0(config(width=0.25, **fields), IMAGES.shape[1:], 5))


@pytest.mark.parametrize("classes, parameters", [(1000, 5_288_548), (10, 4_020_358)])
def test_published_number_of_parameters(classes, parameters):
    params, state = jax.eval_shape(efficientnet_b0(config(), (224, 224, 3), classes).init, KEY)
    assert size(params) == parameters
    assert size(state) == 42_016


def test_published_number_of_multiply_adds():
    model = efficientnet_b0(config(), (224, 224, 3), 1000)
    variables = jax.eval_shape(model.init, KEY)
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    logits = jax.jit(lambda variables, images: model.apply(*variables, images, train=False)[0])
    flops = logits.lower(variables, images).cost_analysis()["flops"]
    assert flops / 2 == pytest.approx(0.39e9, rel=0.05)  # Tan and Le, Table 2; XLA counts some elementwise work


@pytest.mark.parametrize("shape", [(28, 28, 1), (61, 40, 3)])
def test_any_image_size(shape):
    model = efficientnet_b0(config(dtype="bfloat16"), shape, 7)
    variables = jax.eval_shape(model.init, KEY)
    images = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    logits, state = jax.eval_shape(lambda v, x: model.apply(*v, x, train=True), variables, images)
    assert logits.shape == (2, 7)
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, state, logits))} == {jnp.dtype("float32")}


def test_stride_2_starts_at_the_first_pixel_of_an_even_side():
    conv = efficientnet._conv(1, 1, 3, stride=2, dtype="float32", rngs=nnx.Rngs(0))
    conv.kernel[...] = jnp.ones((3, 3, 1, 1))
    x = jnp.arange(36.0).reshape(1, 6, 6, 1)
    assert conv(x)[0, 0, 0, 0] == x[0, :3, :3].sum()
    assert conv(x)[0, -1, -1, 0] == x[0, 4:, 4:].sum()
    assert conv(x[:, :5, :5])[0, 0, 0, 0] == x[0, :2, :2].sum()


@pytest.mark.slow
def test_hessian_vector_products_with_recomputed_activations_are_symmetric():
    model, params, state = shallow(dropout=0.2, drop_path=0.5, remat="all")

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


def test_statistics_move_only_in_training():
    model, params, state = shallow()
    _, moved = jax.jit(functools.partial(model.apply, train=True))(params, state, IMAGES)
    assert all(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (state, moved)), strict=True))
    _, kept = jax.jit(functools.partial(model.apply, train=False))(params, state, IMAGES)
    jax.tree.map(np.testing.assert_array_equal, state, kept)


@pytest.mark.parametrize("drop, least, most", [("drop_path", 2, 2), ("dropout", 30, 32)])
def test_copies_of_one_image_differ_by_what_is_dropped(drop, least, most):
    model, *variables = shallow(**{drop: 0.5})  # drop path: the last residual branch, or nothing
    train = jax.jit(functools.partial(model.apply, train=True))
    copies = np.repeat(IMAGES[:1], 32, axis=0)
    one, again, other = (train(*variables, copies, key=jax.random.key(i))[0] for i in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.any(one != other)
    assert least <= len(np.unique(np.round(one, 2), axis=0)) <= most
