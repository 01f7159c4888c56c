"""A gradient that is not that of a function: the products are those of its Jacobian, and Lanczos' method says so."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax import flatness
from tests.gam_jax.flatness.oracles import network, network_loss, quadratic

KEY = jax.random.key(0)
DENSITY = dict(num_probes=2, num_steps=4)


@jax.custom_vjp
def reverse_gradient(x):
    return x


reverse_gradient.defvjp(lambda x: (x, None), lambda _, g: (-g,))


def adversarial(params):
    """Its gradient is (b, -a) + (a, 3 b): the Jacobian is [[1, 1], [-1, 3]]."""
    a, b = params
    return reverse_gradient(b) * a + (a**2 + 3 * b**2) / 2


@jax.custom_vjp
def straight_through(x):
    return x**3


straight_through.defvjp(lambda x: (x**3, None), lambda _, g: (g,))


def quantized(params):
    """Its gradient is (b, a^3 + c^2, 2 b c), whose Jacobian has 1 above and 3 a^2 below the diagonal."""
    a, b, c = params
    return straight_through(a) * b + b * c**2


MEASURES = {
    "eigenvalues": lambda loss, params, batches=None: flatness.hessian_top_eigenvalues(loss, params, batches, key=KEY),
    "density": lambda loss, params, batches=None: flatness.hessian_density(loss, params, batches, key=KEY, **DENSITY),
}


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(("loss_fn", "size"), [(adversarial, 2), (quantized, 3)])
def test_it_is_said(measure, loss_fn, size):
    jacobian = jax.jacobian(jax.grad(loss_fn))(jnp.ones(size))
    assert np.abs(jacobian - jacobian.T).max() > 0.5
    with pytest.warns(RuntimeWarning, match=r"the Hessian-vector product is not symmetric, by [\d.]+ of") as said:
        MEASURES[measure](loss_fn, jnp.ones(size))
    assert [str(warning.filename) for warning in said] == [__file__]


def test_the_trace_is_that_of_the_jacobian():
    found = flatness.hessian_trace(adversarial, jnp.ones(2), None, key=KEY, num_probes=2)
    np.testing.assert_allclose(found.value, 4, rtol=1e-6)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rounding_is_no_asymmetry(measure, dtype):
    _, params, data = network()
    params, data = jax.tree.map(lambda x: x.astype(dtype), (params, data))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MEASURES[measure](network_loss, params, [data])


def test_restarts_and_repeated_eigenvalues_are_no_asymmetry():
    loss_fn, params, batches = quadratic(np.array([3.0, 3.0, 3.0, *np.linspace(-2, 2, 57)]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = flatness.hessian_top_eigenvalues(loss_fn, params, batches, 4, key=KEY, basis_size=8, max_products=900)
    np.testing.assert_allclose(found.values, [3, 3, 3, 2], rtol=1e-4)
