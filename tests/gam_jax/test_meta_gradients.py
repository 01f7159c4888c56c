"""Derivatives of a step where the gradient is zero: the ascent has none there, of any order, in either mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax._tree import cosine, global_norm, normalize, perpendicular
from tests.gam_jax.family import FACTORIES, FAMILY

HESSIAN = np.diag([2.0, 6.0, 10.0])


def loss_fn(params):
    return jnp.sum(jnp.array([1.0, 3.0, 5.0]) * params**2)


CASES = [(name, {}) for name in FACTORIES] + [("gam", {"interval": 2}), ("sam", {"max_ratio": 1.0, "adaptive": True})]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_derivative_of_a_step_at_a_stationary_point(name, options):
    """All gradients are H p while ascents stand still; zero has no direction, so that all of it is perpendicular."""
    tx = FAMILY[name](loss_fn, **options)
    direction = lambda p: tx.update(jax.grad(loss_fn)(p), tx.init(p), p)[0]  # noqa: E731
    zero = jnp.zeros(3)
    forward, backward = jax.jit(jax.jacfwd(direction))(zero), jax.jit(jax.jacrev(direction))(zero)
    np.testing.assert_allclose(forward, backward, atol=1e-6)
    weight = 1 - FAMILY[name].coefficients.get("gamma", 0)
    np.testing.assert_allclose(forward, weight * HESSIAN, rtol=1e-5, atol=1e-5)
    second = jax.jit(jax.hessian(lambda p: jnp.sum(direction(p))))(zero)
    assert np.isfinite(second).all()


@pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev])
def test_norms_and_directions_at_zero(mode):
    zero, one = jnp.zeros(3), jnp.array([1.0, 2.0, 2.0])
    np.testing.assert_array_equal(mode(global_norm)(zero), np.zeros(3))
    np.testing.assert_array_equal(mode(mode(global_norm))(zero), np.zeros((3, 3)))
    np.testing.assert_array_equal(mode(lambda x: normalize(x, 1e-12))(zero), np.zeros((3, 3)))
    np.testing.assert_allclose(mode(global_norm)(one), one / 3, rtol=1e-6)
    unit = np.asarray(one) / 3
    np.testing.assert_allclose(
        mode(lambda x: normalize(x, 0.0))(one), (np.eye(3) - np.outer(unit, unit)) / 3, atol=1e-6
    )
    for fn in (lambda x: cosine(x, one), lambda x: cosine(one, x), lambda x: perpendicular(one, to=x)):
        assert np.isfinite(mode(fn)(zero)).all() and np.isfinite(mode(mode(fn))(zero)).all()
