"""Methods and practices that are chains of links, as the docstrings give them, against what their papers compute."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gam_jax
from tests.gam_jax.family import FAMILY
from tests.gam_jax.problems import mlp

RHO, STEPS = 0.1, 3
LOSS, PARAMS, _ = mlp()
GRAD = jax.jit(jax.grad(LOSS))
NAMES = ("gam", "sam", "accelerated_gam")


@pytest.fixture(scope="module")
def problem():
    """In float64: parameters and a batch for each step."""
    with jax.enable_x64(True):
        _, params, batch = mlp()
        yield params, [jax.tree.map(lambda rows: jnp.roll(rows, i, 0)[:10], batch) for i in range(STEPS)]  # noqa: B023


def run(tx, params, batches, grad=GRAD):
    """What comes out of a chain at the same parameters, batch by batch."""
    state, results = tx.init(params), []
    for batch in batches:
        updates, state = tx.update(grad(params, batch), state, params, batch=batch)
        results.append(updates)
    return results, state


def ascend(params, direction, rho=RHO):
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(direction)))
    return jax.tree.map(lambda p, d: p + rho * d / norm, params, direction)


def close(found, expected):
    chex.assert_trees_all_close(found, expected, rtol=1e-9, atol=1e-12)


def test_vasso(problem, x64):
    params, batches = problem
    found, _ = run(optax.chain(optax.ema(0.8, debias=False), gam_jax.sam(LOSS, RHO)), params, batches)
    mean = jax.tree.map(jnp.zeros_like, params)
    for batch, updates in zip(batches, found, strict=True):
        mean = jax.tree.map(lambda m, g: 0.8 * m + 0.2 * g, mean, GRAD(params, batch))
        close(updates, GRAD(ascend(params, mean), batch))


def test_gc_sam(problem, x64):
    params, batches = problem

    def centred(tree):  # as optax has it: over all axes but the first
        return jax.tree.map(lambda g: g - g.mean(1, keepdims=True) if g.ndim > 1 else g, tree)

    tx = optax.chain(optax.centralize(), gam_jax.sam(LOSS, RHO), optax.centralize())
    (updates, *_), _ = run(tx, params, batches)
    close(updates, centred(GRAD(ascend(params, centred(GRAD(params, batches[0]))), batches[0])))


@pytest.mark.parametrize("weight", [0.3, 0.8])
def test_wsam(weight, problem, x64):
    params, batches = problem
    link = gam_jax.gradient_norm_penalty(LOSS, RHO * weight / (1 - weight), hvp="finite_difference", rho_prime=RHO)
    (updates, *_), _ = run(link, params, batches)
    g0 = GRAD(params, batches[0])
    g1 = GRAD(ascend(params, g0), batches[0])
    close(updates, jax.tree.map(lambda a, b: a + weight / (1 - weight) * (b - a), g0, g1))


def test_disam(problem, x64):
    """Two domains, the even and the odd rows."""
    params, batches = problem

    def domains(params, batch):
        return jnp.stack([LOSS(params, jax.tree.map(lambda rows: rows[i::2], batch)) for i in range(2)])  # noqa: B023

    toward = jax.grad(lambda params, batch: domains(params, batch).mean() - 0.5 * domains(params, batch).var())
    mean = lambda params, batch: domains(params, batch).mean()  # noqa: E731
    (updates, *_), _ = run(gam_jax.sam(mean, RHO), params, batches, toward)
    close(updates, jax.grad(mean)(ascend(params, toward(params, batches[0])), batches[0]))


@pytest.mark.parametrize("name", NAMES)
def test_clipping_after_and_a_decay_of_matrices(name, problem, x64):
    params, batches = problem
    matrices = jax.tree.map(lambda p: p.ndim > 1, params)
    tx = optax.chain(FAMILY[name](LOSS), optax.clip_by_global_norm(0.1), optax.add_decayed_weights(0.3, matrices))
    (found, *_), _ = run(tx, params, batches)
    (plain, *_), _ = run(FAMILY[name](LOSS), params, batches)
    assert optax.tree.norm(plain) > 0.1
    clipped = optax.tree.scale(0.1 / optax.tree.norm(plain), plain)
    close(found, jax.tree.map(lambda u, p, m: u + 0.3 * p * m, clipped, params, matrices))


def test_clipping_before_changes_the_oracle_of_gam_and_nothing_of_sam(problem, x64):
    params, batches = problem
    g = GRAD(params, batches[0])
    clipped = optax.tree.scale(0.1 / optax.tree.norm(g), g)
    for name in ("gam", "sam"):
        (found, *_), _ = run(optax.chain(optax.clip_by_global_norm(0.1), FAMILY[name](LOSS)), params, batches)
        (plain, *_), _ = run(FAMILY[name](LOSS), params, batches)
        close(found, plain if name == "sam" else jax.tree.map(lambda c, u, g: c + u - g, clipped, plain, g))


@pytest.mark.parametrize("name", NAMES)
def test_a_mean_of_the_parameters(name, problem, x64):
    """optax.ema of what is optimized, beside the chain, as users keep it for evaluation."""
    params, batches = problem
    tx, ema = optax.chain(FAMILY[name](LOSS), optax.sgd(0.1)), optax.ema(0.9)
    state, mean_state, iterates = tx.init(params), ema.init(params), []
    for batch in batches:
        updates, state = tx.update(GRAD(params, batch), state, params, batch=batch)
        params = optax.apply_updates(params, updates)
        mean, mean_state = ema.update(params, mean_state)
        iterates.append(params)
    weights = np.array([0.9**2, 0.9, 1.0])
    close(mean, jax.tree.map(lambda *p: np.average(np.stack(p), 0, weights), *iterates))  # pyright: ignore


def test_microbatches_are_the_way_of_multi_steps(problem, x64):
    params, (batch, *_) = problem
    (whole, *_), _ = run(gam_jax.gam(LOSS), params, [batch])
    (parts, *_), _ = run(gam_jax.gam(LOSS, num_microbatches=2), params, [batch])
    close(parts, whole)


def test_late_phase(problem, x64):
    params, batches = problem
    tx = gam_jax.sam(LOSS, RHO, interval=gam_jax.late_phase(STEPS, 1 / 3))
    found, state = run(tx, params, batches)
    for batch, updates in zip(batches[:2], found[:2], strict=True):
        close(updates, GRAD(params, batch))
    close(found[2], GRAD(ascend(params, GRAD(params, batches[2])), batches[2]))
    acts = jax.jit(gam_jax.late_phase(10, 0.4, interval=2))
    assert [bool(acts(count)) for count in range(10)] == [False] * 6 + [True, False, True, False]
    for wrong, message in (((0, 0.1), "steps must be at least 1"), ((9, 1.5), "fraction must be .* <= 1")):
        with pytest.raises(ValueError, match=message):
            gam_jax.late_phase(*wrong)
