"""Lemma 4.1, Proposition 4.2 and Theorem 4.4, as the notes state them, for what the transformations compute."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gam_jax
from tests.gam_jax.problems import mlp


def quadratic(eigenvalues, seed=0):
    """0.5 w.H.w with H of the given spectrum, and H."""
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(eigenvalues),) * 2))
    hessian = jnp.asarray(rotation @ np.diag(eigenvalues) @ rotation.T)
    return (lambda w: 0.5 * w @ hessian @ w), hessian


def diagnostics(loss_fn, w, rho):
    tx = gam_jax.gam(loss_fn, rho, 0.5)
    return tx.update(jax.grad(loss_fn)(w), tx.init(w), w)[1].diagnostics


@pytest.mark.parametrize("rho", [0.01, 0.5, 3.0])
def test_lemma_4_1_isotropic(rho, x64):
    """H = lam I: h_norm = rho lam w / ||w|| (NOTES 5.1), and R1 = rho lam (||w|| + rho) in one step."""
    lam, w = 2.5, jnp.array([3.0, 0.0, -4.0])
    loss_fn = lambda w: 0.5 * lam * w @ w  # noqa: E731
    _, grads = gam_jax.gam_value_and_grad(loss_fn, rho, 1.0)(w)
    np.testing.assert_allclose(grads, lam * w + rho * lam * w / 5, rtol=1e-12)
    np.testing.assert_allclose(diagnostics(loss_fn, w, rho).first_order_flatness, rho * lam * (5 + rho), rtol=1e-6)


@pytest.mark.parametrize("eigenvalues", [[5.0, 3.0, 1.0, 0.0], [3.0, 1.0, 0.5, -5.0]])
def test_lemma_4_1_by_repeated_ascent(eigenvalues, x64):
    """The one-step estimate from a point near the minimum, iterated, gives R1 / rho^2 = max |lambda|.

    The ascent point of one step, shrunk, is the start of the next: power iteration on H^2. With indefinite H the
    limit is the largest absolute eigenvalue.
    """
    loss_fn, hessian = quadratic(eigenvalues)
    w, rho = 1e-9 * jnp.ones(4), 0.7
    for _ in range(60):
        f = hessian @ hessian @ w
        w = 1e-9 * f / jnp.linalg.norm(f)
    flatness = diagnostics(loss_fn, w, rho).first_order_flatness
    np.testing.assert_allclose(flatness / rho**2, np.abs(eigenvalues).max(), rtol=1e-5)


def test_the_one_step_estimate_is_zero_at_a_minimum(x64):
    """Why flatness is measured by ascent from random starts, not by the diagnostics (NOTES 5.2)."""
    loss_fn, _ = quadratic([5.0, 3.0, 1.0])
    assert diagnostics(loss_fn, jnp.zeros(3), 0.5).first_order_flatness == 0


def test_proposition_4_2_is_an_equality_for_linear_losses(x64):
    """R1 >= R0, with equality when the loss is linear: both are rho ||slope||."""
    slope, rho = jnp.array([3.0, -4.0]), 0.2
    loss_fn = lambda w: slope @ w  # noqa: E731
    w = jnp.array([1.0, 1.0])
    np.testing.assert_allclose(diagnostics(loss_fn, w, rho).first_order_flatness, rho * 5, rtol=1e-6)
    zeroth_order = loss_fn(w + rho * slope / 5) - loss_fn(w)
    np.testing.assert_allclose(zeroth_order, rho * 5, rtol=1e-12)


def test_theorem_4_4_schedules(x64):
    """eta_t = eta_0 / sqrt(t) and rho_t = rho_0 / sqrt(t): the mean squared gradient norm falls like log T / sqrt T."""
    problem = mlp()
    inverse_root = lambda initial: lambda count: initial / jnp.sqrt(count + 1)  # noqa: E731
    tx = optax.chain(gam_jax.gam(problem.loss_fn, inverse_root(0.2), 0.5), optax.sgd(inverse_root(0.5)))

    def step(carry, _):
        params, state = carry
        _, overall = gam_jax.gam_value_and_grad(problem.loss_fn, inverse_root(0.2), 0.5)(
            params, problem.batch, count=state[0].count
        )
        grads = jax.grad(problem.loss_fn)(params, problem.batch)
        updates, state = tx.update(grads, state, params, batch=problem.batch)
        return (optax.apply_updates(params, updates), state), optax.tree.norm(overall) ** 2

    (_, state), squares = jax.lax.scan(step, (problem.params, tx.init(problem.params)), length=400)
    bound = lambda t: np.log(t) / np.sqrt(t)  # noqa: E731
    mean = np.cumsum(squares) / np.arange(1, 401)
    assert mean[399] / mean[24] < bound(400) / bound(25)
    seen = state[0].diagnostics
    np.testing.assert_allclose(seen.first_order_flatness / seen.perturbed_grad_norm, 0.2 / 20, rtol=1e-5)
