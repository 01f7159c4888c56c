"""The term held for the steps between, and bounded: options of the whole family."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gam_jax
from tests.gam_jax.family import FAMILY, parametrize
from tests.gam_jax.problems import PROBLEMS, mlp

family = parametrize()
STEPS = 7


def add(a, b):
    return jax.tree.map(jnp.add, a, b)


def subtract(a, b):
    return jax.tree.map(jnp.subtract, a, b)


def scaled(factor, tree):
    return jax.tree.map(lambda x: factor * x, tree)


def flat(tree):
    return jax.flatten_util.ravel_pytree(tree)[0]


gradient = jax.jit(jax.grad(lambda params, batch: mlp().loss_fn(params, batch)))


@functools.cache
def walk():
    """Points and batches of some steps, no two the same, in float64: (params, batch, gradient) each."""
    problem = mlp()
    params = [scaled(1 + 0.1 * i, problem.params) for i in range(STEPS)]
    batches = [jax.tree.map(lambda x: jnp.roll(x, i, 0)[:8], problem.batch) for i in range(STEPS)]  # noqa: B023
    return [(p, b, gradient(p, b)) for p, b in zip(params, batches, strict=True)]


def jitted(tx):
    return jax.jit(lambda g, s, p, batch: tx.update(g, s, p, batch=batch))


def along(tx):
    """The updates and the states of a transformation at each point of the walk."""
    update, state, results = jitted(tx), tx.init(mlp().params), []
    for params, batch, grads in walk():
        updates, state = update(grads, state, params, batch)
        results.append((updates, state))
    return results


@functools.cache
def terms(name, interval=1):
    """What the method adds to the gradient at each point of the walk, zero on the steps that it skips."""
    updates = [updates for updates, _ in along(FAMILY[name](mlp().loss_fn, interval=interval))]
    return [subtract(u, grads) for u, (*_, grads) in zip(updates, walk(), strict=True)]


def assert_adds(results, expected):
    """Each step adds the expected term to its own gradient."""
    for (updates, _), (*_, grads), term in zip(results, walk(), expected, strict=True):
        chex.assert_trees_all_close(updates, add(grads, term), rtol=1e-9, atol=1e-13)


@family
def test_the_last_term_is_added_between(name, x64):
    """The state holds it, and its cosine with the one it replaced: 0 at the first, as it was on the steps between."""
    results = along(FAMILY[name](mlp().loss_fn, interval=3, between="hold"))
    acting = terms(name, interval=3)
    expected = [acting[i] for i in (0, 0, 0, 3, 3, 3, 6)]
    assert_adds(results, expected)
    for (_, state), term in zip(results, expected, strict=True):
        chex.assert_trees_all_close(state.held.term, term, rtol=1e-9, atol=1e-13)
    unit = lambda i: flat(acting[i]) / jnp.linalg.norm(flat(acting[i]))  # noqa: E731
    first, second = unit(0) @ unit(3), unit(3) @ unit(6)
    seen = [state.held.held_cosine for _, state in results]
    np.testing.assert_allclose(seen, [0, 0, 0, first, first, first, second], rtol=1e-5, atol=1e-7)


def test_nothing_is_added_before_the_first_acting_step(x64):
    chosen = lambda count: (count == 2) | (count == 5)  # noqa: E731
    zero = scaled(0.0, mlp().params)
    third, sixth = terms("gam")[2], terms("gam")[5]
    results = along(gam_jax.gam(mlp().loss_fn, 0.1, 0.5, interval=chosen, between="hold"))
    assert_adds(results, [zero, zero, third, third, third, sixth, sixth])


def test_links_of_a_chain_hold_each_its_own(x64):
    """SAM + GAM: the difference of two gradients, and the norm term."""
    loss_fn, options = mlp().loss_fn, {"interval": 3, "between": "hold"}
    every = along(optax.chain(gam_jax.sam(loss_fn, 0.05), gam_jax.gam(loss_fn, 0.1, 0.5)))
    held = along(optax.chain(gam_jax.sam(loss_fn, 0.05, **options), gam_jax.gam(loss_fn, 0.1, 0.5, **options)))
    both = [subtract(u, grads) for (u, _), (*_, grads) in zip(every, walk(), strict=True)]
    assert_adds(held, [both[i] for i in (0, 0, 0, 3, 3, 3, 6)])


def test_held_is_found_by_name():
    link = gam_jax.gam(mlp().loss_fn, 0.1, 0.5, interval=2, between="hold")
    state = optax.chain(link, optax.sgd(0.1, momentum=0.9)).init(mlp().params)
    assert optax.tree.get(state, "held_cosine") == 0
    chex.assert_trees_all_equal(optax.tree.get(state, "term"), scaled(0.0, mlp().params))


@pytest.mark.parametrize("name", ["gam", "sam", "c_flat"])
def test_a_bad_term_is_seen_once_and_not_held(name, x64):
    """The acting step's NaN is in its updates; the steps after it add the last finite term."""
    params, batch, grads = walk()[0]
    tx = FAMILY[name](mlp().loss_fn, interval=2, between="hold")
    update = jitted(tx)
    bad = batch | {"x": batch["x"].at[0, 0].set(jnp.nan)}
    _, first = update(grads, tx.init(params), params, batch)
    _, state = update(grads, first, params, batch)
    updates, state = update(gradient(params, bad), state, params, bad)
    assert np.isnan(flat(updates)).any()
    chex.assert_trees_all_equal(state.held, first.held)
    updates, _ = update(grads, state, params, batch)
    chex.assert_trees_all_close(updates, add(grads, first.held.term), rtol=1e-12)


def test_a_term_too_large_for_the_buffer_is_not_held():
    """float16 parameters, float32 updates: a term of 1e5 is finite in the updates and would be inf in the buffer."""
    params = jnp.ones(3, jnp.float16)
    tx = gam_jax.sam(lambda p: 5e4 * jnp.sum(p.astype(jnp.float32)), 0.1, interval=2, between="hold")
    updates, state = tx.update(jnp.full(3, -5e4, jnp.float32), tx.init(params), params)
    np.testing.assert_allclose(updates, 5e4, rtol=1e-3)
    np.testing.assert_array_equal(state.held.term, jnp.zeros(3, jnp.float16))


def test_masked_leaves_hold_their_part(x64):
    """Leaves out of the ascent still receive their part of the term, on every step."""
    options = {"perturb_mask": {k: k[0] == "w" for k in mlp().params}}
    every = along(gam_jax.gam(mlp().loss_fn, 0.1, 0.5, **options))
    term = subtract(every[0][0], walk()[0][2])
    assert_adds(along(gam_jax.gam(mlp().loss_fn, 0.1, 0.5, interval=STEPS, between="hold", **options)), [term] * STEPS)
    assert jnp.linalg.norm(term["b1"]) > 0


def ratio(term, grads):
    return float(optax.tree.norm(term) / optax.tree.norm(grads))


@family
def test_max_ratio(name, x64):
    """What is longer than the bound keeps its direction and gets that length, fresh or held; the rest is as it was."""
    free = [terms(name, interval=3)[i] for i in (0, 0, 0, 3, 3, 3, 6)]
    ratios = [ratio(term, grads) for term, (*_, grads) in zip(free, walk(), strict=True)]
    limit = float(np.median(ratios))
    bounded = [scaled(min(1, limit / r), term) for r, term in zip(ratios, free, strict=True)]
    results = along(FAMILY[name](mlp().loss_fn, interval=3, between="hold", max_ratio=limit))
    assert_adds(results, bounded)
    chex.assert_trees_all_close(results[-1][1].held.term, free[-1], rtol=1e-9, atol=1e-13)  # held as it was seen


def test_max_ratio_with_skipped_steps(x64):
    zero, limit = scaled(0.0, mlp().params), 0.01
    results = along(gam_jax.gam(mlp().loss_fn, 0.1, 0.5, interval=4, max_ratio=limit))
    short = [scaled(limit / ratio(terms("gam")[i], walk()[i][2]), terms("gam")[i]) for i in (0, 4)]
    assert_adds(results, [short[0], zero, zero, zero, short[1], zero, zero])
    for i in (1, 2, 3):
        chex.assert_trees_all_equal(results[i][0], walk()[i][2])


def test_max_ratio_of_value_and_grad(x64):
    params, batch, grads = walk()[0]
    _, got = gam_jax.gam_value_and_grad(mlp().loss_fn, 0.1, 0.5, max_ratio=0.01)(params, batch)
    np.testing.assert_allclose(ratio(subtract(got, grads), grads), 0.01, rtol=1e-9)
    _, free = gam_jax.gam_value_and_grad(mlp().loss_fn, 0.1, 0.5, max_ratio=1e3)(params, batch)
    chex.assert_trees_all_close(free, add(grads, terms("gam")[0]), rtol=1e-9)


def test_max_ratio_at_zero_and_at_nan():
    """No gradient, no term; a NaN stays visible."""
    tx = gam_jax.sam(lambda p: jnp.sum(p), 0.1, max_ratio=0.5)
    params = jnp.ones(3)
    update = lambda grads: tx.update(grads, tx.init(params), params)[0]  # noqa: E731
    np.testing.assert_array_equal(update(jnp.zeros(3)), jnp.zeros(3))
    assert np.isnan(update(jnp.full(3, jnp.nan))).all()
    assert not np.isfinite(update(jnp.array([1.0, jnp.inf, 1.0]))).all()


@family
def test_dtypes(name):
    """bfloat16 parameters, float32 updates: each keeps its own, the buffer is like the parameters."""
    problem = PROBLEMS["mixed_precision"]()
    tx = FAMILY[name](problem.loss_fn, interval=2, between="hold", max_ratio=jnp.float32(0.5))
    grads = jax.tree.map(lambda p: jnp.ones(p.shape, jnp.float32), problem.params)
    with jax.numpy_dtype_promotion("strict"):
        state = tx.init(problem.params)
        updates, after = jax.eval_shape(
            lambda *args: tx.update(*args, batch=problem.batch), grads, state, problem.params
        )
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, grads)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(state.held.term, problem.params)
