"""Average-case sharpness against closed forms on quadratics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax import flatness
from tests.gam_jax.flatness.oracles import network, network_loss

KEY = jax.random.key(0)
H = np.diag(np.linspace(0.5, 2, 40)) + 0.2


def loss_fn(params):
    """A quadratic and a slope."""
    w = jnp.concatenate([params["a"], params["b"]])
    return w @ H @ w / 2 + 3 * w.sum()


PARAMS = {"a": np.linspace(-1, 1, 25), "b": np.linspace(0.5, 2, 15)}
W = np.concatenate([*PARAMS.values()])


@pytest.mark.parametrize(("norm", "variance"), [("l2", 1.0), ("linf", 1 / 3)])
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("mask", [None, {"a": True, "b": False}])
def test_quadratic(x64, norm, variance, adaptive, mask):
    scaling = (np.abs(W) if adaptive else np.ones(40)) * (np.arange(40) < (25 if mask else 40))
    exact = 0.3**2 * variance * np.sum(np.diag(H) * scaling**2) / 2
    found = flatness.average_sharpness(
        loss_fn, PARAMS, None, 0.3, key=KEY, num_samples=300, norm=norm, adaptive=adaptive, mask=mask
    )
    assert abs(found.value - exact) < 4 * found.standard_error < 0.4 * exact
    np.testing.assert_allclose(found.standard_error, found.samples.std(ddof=1) / 300**0.5)
    if not adaptive and norm == "l2":  # the variance of a quadratic form of Gaussians
        spread = 0.3**2 * (np.sum(np.outer(scaling, scaling) ** 2 * H**2) / 2) ** 0.5
        np.testing.assert_allclose(found.samples.std(), spread, rtol=0.15)


def test_the_gradient_cancels_and_batches_only_divide(x64):
    found = flatness.average_sharpness(lambda w: 5 * w.sum(), jnp.ones(7), None, 2.0, key=KEY, num_samples=2)
    np.testing.assert_allclose(found.samples, 0, atol=1e-12)
    _, params, data = network()
    parts = [jax.tree.map(lambda x, part=part: x[part], data) for part in (slice(0, 8), slice(8, 11))]
    whole, cut = (
        flatness.average_sharpness(network_loss, params, batches, 0.1, key=KEY, num_samples=3).samples
        for batches in ([data], parts)
    )
    np.testing.assert_allclose(cut, whole, rtol=1e-9)


def test_a_loss_that_overflows():
    with pytest.raises(ValueError, match=r"must be finite at the perturbed points, got .*rho=1e\+25"):
        flatness.average_sharpness(lambda w: jnp.sum(w**2) ** 2, jnp.ones(2), None, 1e25, key=KEY)
