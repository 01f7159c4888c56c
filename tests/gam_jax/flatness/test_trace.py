"""Trace and spectral density: exactness, unbiasedness, honest standard errors."""

import jax
import jax.numpy as jnp
import matfree.decomp
import matfree.funm
import numpy as np
import pytest

from gam_jax import flatness
from tests.gam_jax.flatness.oracles import dense_hessian, network, quadratic

KEY = jax.random.key(0)


def test_trace_is_exact_with_a_probe_for_each_parameter(x64):
    loss_fn, params, data = network()
    found = flatness.hessian_trace(loss_fn, params, [data], key=KEY, num_probes=27)
    np.testing.assert_allclose(found.value, np.trace(dense_hessian(loss_fn, params, data)), rtol=1e-12)
    assert found.standard_error == 0


@pytest.mark.slow
def test_trace_has_the_analytic_variance_and_reports_it(x64):
    loss_fn, params, data = network()
    h = dense_hessian(loss_fn, params, data)
    variance = 2 * np.sum((h - np.diag(np.diag(h))) ** 2)
    probes, repeats = 12, 150
    runs = [
        flatness.hessian_trace(
            loss_fn, params, [data], key=jax.random.key(i), num_probes=probes, check_determinism=False
        )
        for i in range(repeats)
    ]
    values, errors = np.array([(run.value, run.standard_error) for run in runs]).T
    expected = np.sqrt(variance / probes)
    assert abs(values.mean() - np.trace(h)) < 4 * expected / repeats**0.5
    np.testing.assert_allclose(values.std(ddof=1), expected, rtol=0.2)
    np.testing.assert_allclose(np.sqrt(np.mean(errors**2)), expected, rtol=0.1)


def test_trace_stops_at_the_tolerance(x64):
    loss_fn, params, batches = quadratic(np.linspace(0.5, 1.5, 200))
    found = flatness.hessian_trace(loss_fn, params, batches, key=KEY, num_probes=150, rtol=0.01)
    assert 10 <= len(found.samples) < 100
    assert found.standard_error <= 0.01 * found.value
    np.testing.assert_allclose(found.standard_error, found.samples.std(ddof=1) / len(found.samples) ** 0.5)
    assert abs(found.value - 200) < 4 * found.standard_error
    with pytest.warns(RuntimeWarning, match="20 probes did not bring the standard error below 1e-06"):
        flatness.hessian_trace(loss_fn, params, batches, key=KEY, num_probes=20, rtol=1e-6)


def test_density_moments_are_exact_at_full_budget(x64):
    loss_fn, params, data = network()
    h = dense_hessian(loss_fn, params, data)
    found = flatness.hessian_density(loss_fn, params, [data], key=KEY, num_probes=27, num_steps=27)
    expected = [np.trace(np.linalg.matrix_power(h, p)) / 27 for p in (1, 2, 3, 4)]
    np.testing.assert_allclose(found.moments, expected, rtol=1e-9)
    assert (found.moments_standard_error == 0).all()


def test_density_at_full_budget_is_the_smoothed_spectrum(x64):
    loss_fn, params, data = network()
    exact = np.linalg.eigvalsh(dense_hessian(loss_fn, params, data))
    grid = np.linspace(-10, 30, 200)
    found = flatness.hessian_density(
        loss_fn, params, [data], key=KEY, num_probes=27, num_steps=27, grid=grid, bandwidth=0.5
    )
    gaussians = np.exp(-((grid[:, None] - exact) ** 2) / (2 * 0.5**2)) / (0.5 * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(found.density, gaussians.mean(1), atol=1e-9)


def test_density_integrates_to_one_and_its_errors_are_honest(x64):
    loss_fn, params, data = network()
    h = dense_hessian(loss_fn, params, data)
    second = np.trace(h @ h) / 27
    values, errors, probes = [], [], 6
    for i in range(40):
        # Two steps: a Gauss quadrature of degree 3, exact for the second moment of each probe.
        found = flatness.hessian_density(
            loss_fn,
            params,
            [data],
            key=jax.random.key(i),
            num_probes=probes,
            num_steps=2,
            check_determinism=False,
        )
        values.append(found.moments[1])
        errors.append(found.moments_standard_error[1])
    np.testing.assert_allclose(np.trapezoid(found.density, found.grid), 1, rtol=1e-5)
    assert abs(np.mean(values) - second) < 4 * np.std(values) / 40**0.5
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(errors))), np.std(values), rtol=0.3)


def test_density_in_float32_shows_the_outliers():
    spectrum = np.array([50.0, 20.0] + [1.0] * 50 + [0.0] * 148)
    loss_fn, params, batches = quadratic(spectrum)
    found = flatness.hessian_density(loss_fn, params, batches, key=KEY, num_probes=40, num_steps=20)
    bulk = np.abs(found.grid - 1) < 0.6
    share = np.trapezoid(found.density[bulk], found.grid[bulk])
    assert abs(share - 0.25) < 0.05
    np.testing.assert_allclose(np.nanmax(found.nodes), 50, rtol=1e-4)
    np.testing.assert_allclose(found.weights.sum(1), 1, rtol=1e-6)
    assert abs(found.moments[0] - spectrum.mean()) < 4 * found.moments_standard_error[0]


def test_density_agrees_with_matfree(x64):
    loss_fn, params, data = network()
    h = dense_hessian(loss_fn, params, data)
    tridiagonal = matfree.decomp.tridiag_sym(10)
    quadrature = matfree.funm.monte_carlo_funm_sym(matfree.funm.dense_funm_sym_eigh(jnp.tanh), tridiagonal)
    found = flatness.hessian_density(loss_fn, params, [data], key=KEY, num_probes=27, num_steps=10)
    expected = [quadrature(lambda v: h @ v, unit) for unit in np.eye(27)]
    np.testing.assert_allclose((found.weights * np.tanh(found.nodes)).sum(1), expected, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("hessian_trace", {"num_probes": 0}, "got num_probes=0"),
        ("hessian_trace", {"num_probes": 1}, "num_probes must be at least 2, got num_probes=1"),
        ("hessian_trace", {"rtol": -0.1}, "got rtol=-0.1"),
        ("hessian_density", {"num_steps": 0}, "got num_steps=0"),
        ("hessian_density", {"bandwidth": 0.0}, "got bandwidth=0.0"),
        ("hessian_density", {"grid": [0.0, np.nan]}, "nan"),
    ],
)
def test_bad_arguments(name, arguments, message):
    loss_fn, params, data = network()
    with pytest.raises(ValueError, match=message):
        getattr(flatness, name)(loss_fn, params, [data], key=KEY, **arguments)
