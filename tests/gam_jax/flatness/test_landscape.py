"""Slices, filter normalisation, and counts of minima."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax import flatness
from gam_jax.flatness.minima import count_turns
from tests.gam_jax.flatness.oracles import network, network_loss

KEY = jax.random.key(0)


def test_slices_are_the_loss(x64):
    _, params, data = network()
    dx, dy = flatness.filter_normalized_directions(params, key=KEY)
    line = flatness.loss_slice(network_loss, params, [data], dx, x=[-1, 0, 2])
    plane = flatness.loss_slice(network_loss, params, [data], dx, dy, x=[-1, 0, 2], y=[0, 0.5])

    def loss(a, b):
        return network_loss(jax.tree.map(lambda w, u, v: w + a * u + b * v, params, dx, dy), data)

    expected = [[loss(a, b) for a in (-1, 0, 2)] for b in (0, 0.5)]
    np.testing.assert_allclose(plane.values, expected, rtol=1e-12)
    np.testing.assert_allclose(line.values, expected[0], rtol=1e-12)
    assert line.y is None and plane.values.shape == (2, 3)


def test_slice_defaults_and_overflow():
    line = flatness.loss_slice(lambda w: jnp.exp(1000 * w), jnp.zeros(()), None, jnp.ones(()))
    assert line.x.shape == (51,) and line.values[25] == 1 and line.values[-1] == np.inf


def test_the_data_are_read_once():
    _, params, data = network(examples=6)
    calls = []
    options = dict(check_determinism=False, progress=lambda *call: calls.append(call))
    flatness.loss_slice(network_loss, params, [data, data], params, x=[0.1, 0.2, 0.3], **options)
    assert calls == [(0, 1), (0, 2), (1, 1), (1, 2)]  # the loss at the parameters, then all points


def test_filters_have_the_norms_of_the_network():
    _, params, _ = network()
    one, two = flatness.filter_normalized_directions(params, key=KEY)
    for leaf, axes in (("conv", (0, 1, 2)), ("dense", 0)):
        np.testing.assert_allclose(
            np.sqrt(np.sum(one[leaf] ** 2, axes)), np.sqrt(np.sum(params[leaf] ** 2, axes)), rtol=1e-5
        )
        assert (one[leaf] != two[leaf]).all()
    assert not one["bias"].any() and not one["gain"]


def test_filters_of_another_layout_and_dead_filters():
    w = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    (d,) = flatness.filter_normalized_directions(w, key=KEY, num=1, filter_axis=0)
    np.testing.assert_allclose(np.linalg.norm(d, axis=1), [5, 0], rtol=1e-6)


def test_minima_of_a_corrugated_bowl(x64):
    """Along any direction the loss is cos(2 pi r / 0.04): minima at 0.02, 0.06, maxima at 0.04, 0.08."""

    def loss_fn(w):
        return jnp.cos(2 * jnp.pi * jnp.sqrt(jnp.sum(w**2)) / 0.04)

    found = flatness.count_local_minima(loss_fn, jnp.zeros(30), None, key=KEY)
    assert found.losses.shape == (100, 11)
    assert (found.minima == 2).all() and (found.maxima == 2).all()
    assert found.mean_minima == 2 and found.minima_standard_error == 0


def test_minima_by_brute_force_and_their_standard_error(x64):
    _, params, data = network()

    def loss_fn(w, batch):
        ripple = sum(jnp.sum(jnp.sin(400 * leaf)) for leaf in jax.tree.leaves(w))
        return network_loss(w, batch) + ripple

    found = flatness.count_local_minima(loss_fn, params, [data], key=KEY, num_directions=30, threshold=0)
    inner, left, right = found.losses[:, 1:-1], found.losses[:, :-2], found.losses[:, 2:]
    np.testing.assert_array_equal(found.minima, ((inner < left) & (inner < right)).sum(1))
    np.testing.assert_array_equal(found.maxima, ((inner > left) & (inner > right)).sum(1))
    assert 0.5 < found.mean_minima < 5
    np.testing.assert_allclose(found.minima_standard_error, found.minima.std(ddof=1) / 30**0.5)


@pytest.mark.parametrize(
    ("values", "threshold", "minima", "maxima"),
    [
        ([0, 1, 2], 0, 0, 0),
        ([2, 1, 2], 0, 1, 0),
        ([1, 2, 1], 0, 0, 1),
        ([2, 1, 1, 1, 2], 0, 1, 0),  # a plateau is one minimum
        ([1, 1, 0.9, 1, 0.9, 1, 1], 0.2, 0, 0),  # ripples below the threshold
        ([3, 1, 1.1, 1, 3, 2.9, 3, 1], 0.2, 1, 1),
        ([3, 1, 2, 1.5, 2.5, 0], 0, 2, 2),
        ([1, 1, 1], 0, 0, 0),
    ],
)
def test_turns(values, threshold, minima, maxima):
    assert count_turns(np.array(values, float), threshold) == (minima, maxima)


def test_rounding_makes_no_minima():
    """A constant plus rounding in float32 turns many times, all below the default threshold."""

    def loss_fn(w):
        return 1000 + 2e-4 * jnp.sin(1e5 * w[0])

    exact = flatness.count_local_minima(loss_fn, jnp.ones(50), None, key=KEY, threshold=0.0)
    default = flatness.count_local_minima(loss_fn, jnp.ones(50), None, key=KEY)
    assert exact.mean_minima > 0.2 and default.mean_minima == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, w: f.loss_slice(jnp.sum, w, None, jnp.ones(3)), r"direction_x .* got \(3,\)"),
        (lambda f, w: f.loss_slice(jnp.sum, w, None, w, {"a": w}), r"direction_y .* got \{'a'"),
        (lambda f, w: f.loss_slice(jnp.sum, w, None, w, x=[[0.0]]), r"x must be a list of finite numbers, got"),
        (lambda f, w: f.loss_slice(jnp.sum, w, None, w, x=[np.nan]), r"got x=\[nan\]"),
        (lambda f, w: f.loss_slice(jnp.sum, w, None, w, y=[1.0]), r"need a direction_y, got y=\[1.0\]"),
        (lambda f, w: f.filter_normalized_directions(w, key=KEY, num=0), "got num=0"),
        (lambda f, w: f.count_local_minima(jnp.sum, w, None, key=KEY, step_size=0), "got step_size=0"),
        (lambda f, w: f.count_local_minima(jnp.sum, w, None, key=KEY, num_directions=1), "got num_directions=1"),
        (lambda f, w: f.count_local_minima(jnp.sum, w, None, key=KEY, threshold=-1.0), "got threshold=-1.0"),
        (
            lambda f, w: f.count_local_minima(lambda w: jnp.log(1.01 - w[0]), w, None, key=KEY, step_size=0.1),
            "the loss must be finite, got nan at distance 0.",
        ),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call(flatness, jnp.ones(2))
