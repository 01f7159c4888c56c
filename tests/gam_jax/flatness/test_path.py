"""Two networks: the loss between them and the overlap of their eigenvectors, against direct evaluation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax import flatness
from tests.gam_jax.flatness.oracles import network, network_loss, quadratic, symmetric

KEY = jax.random.key(0)


def test_path_is_the_loss_between(x64):
    _, one, data = network()
    _, two, _ = network(1)
    found = flatness.loss_path(network_loss, one, two, [data], num_points=6)
    between = [jax.tree.map(lambda a, b, t=t: (1 - t) * a + t * b, one, two) for t in found.t]
    losses = np.array([network_loss(params, data) for params in between])
    np.testing.assert_allclose(found.t, np.arange(6) / 5)
    np.testing.assert_allclose(found.values, losses, rtol=1e-12)
    excess = losses - (losses[0] + found.t * (losses[-1] - losses[0]))
    np.testing.assert_allclose([found.barrier, found.barrier_at], [excess.max(), np.argmax(excess) / 5])


def test_barriers_of_known_paths(x64):
    well = flatness.loss_path(lambda w: jnp.sum((w**2 - 1) ** 2), jnp.ones(2), -jnp.ones(2), None)
    np.testing.assert_allclose([well.barrier, well.barrier_at], [2, 0.5])
    bowl = flatness.loss_path(lambda w: jnp.sum(w**2), jnp.ones(2), -jnp.ones(2), None)
    assert bowl.barrier == 0
    slope = flatness.loss_path(lambda w: jnp.sum(w), jnp.zeros(2), jnp.ones(2), None)
    np.testing.assert_allclose(slope.barrier, 0, atol=1e-15)
    hole = flatness.loss_path(lambda w: jnp.where(w > 0.4, jnp.nan, w), jnp.zeros(()), jnp.ones(()), None, num_points=5)
    assert np.isnan(hole.barrier) and hole.barrier_at == 0


def test_overlap_against_dense_eigenvectors(x64):
    spectrum, found, exact = np.arange(1.0, 9.0), [], []
    for seed, k in ((0, 2), (3, 4)):
        problem = quadratic(spectrum, seed)
        found.append(flatness.hessian_top_eigenvalues(*problem, k, key=KEY, return_vectors=True).vectors)
        exact.append(np.linalg.eigh(symmetric(spectrum, seed))[1])
    u, v = exact
    expected = np.abs(u[:, :-3:-1].T @ v[:, :-5:-1])
    overlap = flatness.eigenvector_overlap(*found)
    np.testing.assert_allclose(np.abs(overlap.cosines), expected, atol=1e-6)
    np.testing.assert_allclose(overlap.value, np.sum(expected**2) / 2, rtol=1e-6)
    np.testing.assert_allclose(flatness.eigenvector_overlap(found[1], found[1]).value, 1, rtol=1e-9)


def test_random_spaces_overlap_by_their_dimension(x64):
    rng = np.random.default_rng(0)
    (a, _), (b, _) = (np.linalg.qr(rng.normal(size=(200, k))) for k in (5, 40))
    found = flatness.eigenvector_overlap({"w": a.T.reshape(5, 20, 10)}, {"w": b.T.reshape(40, 20, 10)})
    assert found.cosines.shape == (5, 40) and found.value == pytest.approx(40 / 200, rel=0.25)
