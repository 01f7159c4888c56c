"""Top eigenvalues against problems with known Hessians and against dense linear algebra."""

import jax
import jax.numpy as jnp
import matfree.decomp
import matfree.eig
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from gam_jax import flatness
from tests.gam_jax.flatness.oracles import dense_hessian, factorization, factorization_sharpness, network, quadratic

KEY = jax.random.key(0)


@pytest.mark.parametrize("scale", [1.0, 3.0, 0.2])
def test_factorization_of_depth_two(x64, scale):
    loss_fn, params, batches = factorization([5, 4, 6], scale=scale)
    expected = np.linalg.norm(params[0], 2) ** 2 + np.linalg.norm(params[1], 2) ** 2
    found = flatness.hessian_top_eigenvalues(loss_fn, params, batches, key=KEY)
    np.testing.assert_allclose(found.values, [expected], rtol=1e-8)
    np.testing.assert_allclose(factorization_sharpness(params), expected, rtol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("widths", [[4, 3, 5, 4], [4, 3, 4, 5, 3], [3, 4, 3, 5, 3, 4]])
def test_factorization_of_any_depth(x64, widths, scale):
    loss_fn, params, batches = factorization(widths, scale=scale)
    found = flatness.hessian_top_eigenvalues(loss_fn, params, batches, key=KEY)
    np.testing.assert_allclose(found.values, [factorization_sharpness(params)], rtol=1e-8)


@pytest.mark.parametrize("k", [1, 4, 27])
@pytest.mark.parametrize("which", ["largest", "smallest", "magnitude"])
def test_network_against_its_dense_hessian(x64, k, which):
    loss_fn, params, data = network()
    exact = np.linalg.eigvalsh(dense_hessian(loss_fn, params, data))
    order = {"largest": -exact, "smallest": exact, "magnitude": -np.abs(exact)}[which]
    found = flatness.hessian_top_eigenvalues(loss_fn, params, [data], k, key=KEY, which=which)
    assert exact.size == 27
    np.testing.assert_allclose(found.values, exact[np.argsort(order)][:k], atol=1e-9)


def test_eigenvectors_and_residuals(x64):
    loss_fn, params, data = network()
    h = dense_hessian(loss_fn, params, data)
    found = flatness.hessian_top_eigenvalues(loss_fn, params, [data], 3, key=KEY, rtol=1e-2, return_vectors=True)
    vectors = np.stack([ravel_pytree(jax.tree.map(lambda x, i=i: x[i], found.vectors))[0] for i in range(3)])
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(3), atol=1e-12)
    residuals = np.linalg.norm(vectors @ h - found.values[:, None] * vectors, axis=1)
    np.testing.assert_allclose(found.residuals, residuals, atol=1e-12)
    assert (found.residuals <= 1e-2 * np.abs(h).sum()).all()
    assert jax.tree.structure(found.vectors) == jax.tree.structure(params)


@pytest.mark.parametrize("spectrum", [[5.0] * 3 + [3.0, 2.0] + [1.0] * 60, [2.0] * 40])
def test_repeated_eigenvalues_are_all_found(x64, spectrum):
    loss_fn, params, batches = quadratic(spectrum)
    found = flatness.hessian_top_eigenvalues(loss_fn, params, batches, 5, key=KEY)
    np.testing.assert_allclose(found.values, spectrum[:5], atol=1e-10)


def test_a_linear_loss_has_no_curvature():
    found = flatness.hessian_top_eigenvalues(lambda w: w.sum(), jnp.ones(50), None, 3, key=KEY)
    assert not found.values.any() and not found.residuals.any()


@pytest.mark.parametrize("basis_size", [7, 12, 30, 60])
def test_basis_size_changes_the_cost_only(x64, basis_size):
    spectrum = np.linspace(-1, 1, 150) ** 3
    loss_fn, params, batches = quadratic(spectrum)
    found = flatness.hessian_top_eigenvalues(
        loss_fn, params, batches, 5, key=KEY, basis_size=basis_size, max_products=5000
    )
    np.testing.assert_allclose(found.values, np.sort(spectrum)[:-6:-1], atol=1e-10)


def test_giving_up_warns_and_tells_the_residual(x64):
    loss_fn, params, batches = quadratic(np.linspace(0, 1, 300))
    with pytest.warns(RuntimeWarning, match="20 Hessian-vector products did not bring"):
        found = flatness.hessian_top_eigenvalues(loss_fn, params, batches, key=KEY, max_products=20, rtol=1e-12)
    assert found.num_products == 21
    assert abs(found.values[0] - 1) <= found.residuals[0] < 0.1


@pytest.mark.slow
def test_float32_is_as_good_as_its_products():
    loss_fn, params, data = network()
    exact = np.linalg.eigvalsh(dense_hessian(loss_fn, params, data))[::-1]
    found = flatness.hessian_top_eigenvalues(loss_fn, params, [data], 4, key=KEY)
    np.testing.assert_allclose(found.values, exact[:4], rtol=1e-5)
    assert found.values.dtype == np.float64


def test_bfloat16_parameters():
    loss_fn, params, data = network()
    params, data = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (params, data))
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), (params, data))
    exact = np.linalg.eigvalsh(dense_hessian(loss_fn, *wide))[-1]
    found = flatness.hessian_top_eigenvalues(loss_fn, params, [data], key=KEY)
    np.testing.assert_allclose(found.values, [exact], rtol=0.05)


def test_agrees_with_matfree(x64):
    loss_fn, params, data = network()
    h = dense_hessian(loss_fn, params, data)
    lanczos = matfree.eig.eigh_partial(matfree.decomp.tridiag_sym(len(h)))
    values, _ = lanczos(lambda v: h @ v, jnp.ones(len(h)))
    found = flatness.hessian_top_eigenvalues(loss_fn, params, [data], 5, key=KEY)
    np.testing.assert_allclose(found.values, np.sort(values)[:-6:-1], atol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"k": 28}, ValueError, "k must be at most 27, the number of parameters, got k=28"),
        ({"k": 0}, ValueError, "k must be at least 1, got k=0"),
        ({"k": 1.5}, TypeError, "got k=1.5"),
        ({"which": "LM"}, ValueError, "got 'LM'"),
        ({"rtol": 0.0}, ValueError, "got rtol=0.0"),
        ({"k": 5, "basis_size": 6}, ValueError, "basis_size must be at least 7, got basis_size=6"),
        ({"max_products": 3}, ValueError, "got max_products=3"),
        ({"key": np.array([0, 1], np.uint32)}, TypeError, "jax.random.key"),
        ({"key": jax.random.split(KEY)}, ValueError, r"shape \(2,\)"),
    ],
)
def test_bad_arguments(arguments, error, message):
    loss_fn, params, data = network()
    with pytest.raises(error, match=message):
        flatness.hessian_top_eigenvalues(loss_fn, params, [data], **{"key": KEY, **arguments})
