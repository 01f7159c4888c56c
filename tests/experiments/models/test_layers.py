"""Layers against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.models import layers
from experiments.models.config import ModelConfig
from experiments.models.functional import functional


def batch_norm():
    """Batch normalisation of 3 channels, as pure functions."""

    class Net(nnx.Module):
        def __init__(self):
            self.norm = layers.BatchNorm(3)

        def __call__(self, x, train, key):
            return self.norm(x, train)

    return functional(lambda rngs: Net(), ModelConfig(name="resnet18"))


X = 3 + 2 * jax.random.normal(jax.random.key(0), (8, 4, 5, 3))
PARAMS = {"norm": {"scale": jnp.array([1.0, 2.0, 0.5]), "bias": jnp.array([0.0, 1.0, -1.0])}}


def test_batch_norm_in_training_by_hand():
    model = batch_norm()
    state = {"norm": {"mean": jnp.array([1.0, 2.0, 3.0]), "var": jnp.array([0.5, 1.0, 2.0])}}
    y, new_state = model.apply(PARAMS, state, X, train=True)
    rows = np.asarray(X, np.float64).reshape(-1, 3)
    standard = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5)
    np.testing.assert_allclose(y.reshape(-1, 3), standard * [1.0, 2.0, 0.5] + [0.0, 1.0, -1.0], rtol=1e-4, atol=1e-5)
    expected = {
        "mean": 0.9 * np.array([1.0, 2.0, 3.0]) + 0.1 * rows.mean(0),
        "var": 0.9 * np.array([0.5, 1.0, 2.0]) + 0.1 * rows.var(0, ddof=1),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(new_state["norm"][name], value, rtol=1e-5)


def test_batch_norm_in_evaluation_by_hand():
    state = {"norm": {"mean": jnp.array([1.0, 2.0, 3.0]), "var": jnp.array([0.5, 1.0, 2.0])}}
    y, new_state = batch_norm().apply(PARAMS, state, X, train=False)
    expected = (np.asarray(X) - [1.0, 2.0, 3.0]) / np.sqrt(np.array([0.5, 1.0, 2.0]) + 1e-5)
    np.testing.assert_allclose(y, expected * [1.0, 2.0, 0.5] + [0.0, 1.0, -1.0], rtol=1e-4, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, new_state, state)


def test_batch_norm_does_not_cancel_far_from_zero():
    model = batch_norm()
    params, state = model.init(jax.random.key(0))
    y, _ = model.apply(params, state, X + 4096, train=True)
    np.testing.assert_allclose(y.std((0, 1, 2)), 1, rtol=1e-2)


def test_statistics_are_those_of_the_global_batch():
    model = batch_norm()
    params, state = model.init(jax.random.key(0))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(X, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    apply = jax.jit(lambda x: model.apply(params, state, x, train=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), apply(sharded), apply(X))


@pytest.mark.parametrize(("groups", "fan_out"), [(1, 9 * 128), (4, 9 * 128)])
def test_convolutions_are_he_normal_by_fan_out(groups, fan_out):
    kernel = layers.conv(64, 128, 3, groups=groups, dtype="float32", rngs=nnx.Rngs(0)).kernel[...]
    assert kernel.shape == (3, 3, 64 // groups, 128)
    assert kernel.std() == pytest.approx(np.sqrt(2 / fan_out), rel=0.03)


def test_strided_convolution_is_padded_alike_on_both_sides():
    conv = layers.conv(1, 1, 3, stride=2, dtype="float32", rngs=nnx.Rngs(0))
    conv.kernel[...] = jnp.ones_like(conv.kernel[...])
    np.testing.assert_array_equal(conv(jnp.ones((1, 4, 4, 1)))[0, :, :, 0], [[4, 6], [6, 9]])


def test_dropout_drops_elements_and_drop_path_examples():
    key, x = jax.random.key(1), jnp.ones((4000, 2, 2))
    elements, paths = layers.dropout(x, 0.25, key), layers.drop_path(x, 0.25, key)
    for dropped in (elements, paths):
        np.testing.assert_allclose(np.unique(dropped), [0, 4 / 3], rtol=1e-6)
        assert float((dropped == 0).mean()) == pytest.approx(0.25, abs=0.03)
    assert float((paths.min((1, 2)) == paths.max((1, 2))).mean()) == 1
    assert float((elements.min((1, 2)) == elements.max((1, 2))).mean()) < 0.5
    for drop in (layers.dropout, layers.drop_path):
        np.testing.assert_array_equal(drop(x, 0.25, key), drop(x, 0.25, key))
        assert jnp.any(drop(x, 0.25, key) != drop(x, 0.25, jax.random.key(2)))
        np.testing.assert_array_equal(drop(x, 0.25, None), x)


def test_drop_path_rates_rise_linearly():
    np.testing.assert_allclose(layers.drop_path_rates(0.3, 4), [0, 0.1, 0.2, 0.3])


def test_scaled_channels_are_multiples():
    assert [layers.scaled(64, width) for width in (1.0, 0.25, 0.001)] == [64, 16, 1]
    assert [layers.scaled(192, width, 3) for width in (1.0, 0.33, 0.001)] == [192, 63, 3]
