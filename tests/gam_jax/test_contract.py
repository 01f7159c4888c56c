"""What optax expects of every transformation, as one table over the whole family."""

import dataclasses
import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gam_jax
from tests.gam_jax.family import FACTORIES, FAMILY, HELD, parametrize
from tests.gam_jax.problems import PROBLEMS, mlp

EVERY = FAMILY | HELD
family = parametrize(*EVERY, slow=HELD.keys() - {"gam, held"})


def step_with(tx, problem, **extra):
    def step(params, state):
        grads = jax.grad(problem.loss_fn)(params, problem.batch)
        updates, state = tx.update(grads, state, params, batch=problem.batch, **extra)
        return optax.apply_updates(params, updates), state

    return step


def chained(name, problem, learning_rate=0.1):
    return optax.chain(EVERY[name](problem.loss_fn), optax.sgd(learning_rate, momentum=0.9))


@functools.cache
def plain_step(name):
    """The compiled step of a chain, which others are compared with."""
    return jax.jit(step_with(chained(name, mlp()), mlp()))


@family
@pytest.mark.parametrize("problem", PROBLEMS)
def test_keeps_structure_shapes_and_dtypes(name, problem):
    """Updates like the gradient, leaf by leaf; the state scalars, and buffers like the parameters if there are any."""
    problem = PROBLEMS[problem]()
    tx = EVERY[name](problem.loss_fn)
    state = tx.init(problem.params)
    grads = jax.grad(problem.loss_fn)(problem.params, problem.batch)
    updates, after = jax.jit(tx.update)(grads, state, problem.params, batch=problem.batch)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, problem.params)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    assert all(leaf.shape == () for leaf in jax.tree.leaves((after.count, after.diagnostics)))
    if name in HELD:
        chex.assert_trees_all_equal_shapes_and_dtypes(after.held.term, problem.params)
        assert after.held.held_cosine.shape == () and after.held.held_cosine.dtype == jnp.float32
    else:
        assert after.held == ()
    if jax.tree.leaves(after.memory):
        chex.assert_trees_all_equal_shapes_and_dtypes(after.memory, problem.params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((updates, after)))
    assert {leaf.dtype for leaf in jax.tree.leaves(after.diagnostics)} == {jnp.dtype("float32")}


@family
def test_ignores_and_forwards_unknown_extra_args(name):
    problem = mlp()
    tx = optax.chain(EVERY[name](problem.loss_fn), optax.contrib.reduce_on_plateau(), optax.sgd(0.1))
    step = step_with(tx, problem, value=1.0, something="else")
    params, _ = step(problem.params, tx.init(problem.params))
    assert not np.array_equal(params["w1"], problem.params["w1"])


@family
def test_converges_under_scan_and_does_not_recompile(name):
    problem = mlp()
    tx = chained(name, problem, learning_rate=0.3)
    step = step_with(tx, problem)
    traces = []

    @jax.jit
    def run(params, state):
        traces.append(None)
        return jax.lax.scan(lambda carry, _: (step(*carry), None), (params, state), length=100)[0]

    first = run(problem.params, tx.init(problem.params))
    second = run(*first)
    assert len(traces) == 1
    losses = [problem.loss_fn(p, problem.batch) for p in (problem.params, first[0], second[0])]
    assert losses[0] > 2 * losses[1] > 0


@family
def test_state_survives_tree_map_params_and_donation(name):
    problem = mlp()
    tx = chained(name, problem)
    state = tx.init(problem.params)
    mapped = optax.tree.map_params(tx, lambda x: x * 2, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(mapped, state)
    step = jax.jit(step_with(tx, problem), donate_argnums=(0, 1))
    copy = lambda tree: jax.tree.map(jnp.copy, tree)  # noqa: E731
    expected = plain_step(name)(problem.params, state)
    chex.assert_trees_all_equal(step(copy(problem.params), copy(state)), expected)
    step(copy(problem.params), tx.init(problem.params))  # as it comes from init: no buffer twice


STATIC = {
    "minimal": ("loss_fn",),
    "all": ("loss_fn", "interval", "hvp", "perturb_mask", "axis_name", "num_microbatches", "eps"),
}


@family
@pytest.mark.parametrize("static_args", STATIC)
def test_inside_inject_hyperparams(name, static_args):
    problem = mlp()
    method = EVERY[name]
    injected = optax.inject_hyperparams(method.factory, static_args=STATIC[static_args])(
        loss_fn=problem.loss_fn, **method.coefficients, **method.options
    )
    plain = chained(name, problem)
    wrapped = optax.chain(injected, optax.sgd(0.1, momentum=0.9))
    got, expected = problem.params, problem.params
    state, plain_state = wrapped.init(got), plain.init(expected)
    step = jax.jit(step_with(wrapped, problem))
    for _ in range(3):
        got, state = step(got, state)
        expected, plain_state = plain_step(name)(expected, plain_state)
    chex.assert_trees_all_close(got, expected, rtol=1e-5)


def test_injected_rho_can_be_set():
    problem = mlp()
    tx = optax.inject_hyperparams(gam_jax.gam, static_args=("loss_fn",))(problem.loss_fn, rho=0.1, alpha=0.5)
    state = tx.init(problem.params)
    state.hyperparams["rho"] = jnp.asarray(0.3)
    grads = jax.grad(problem.loss_fn)(problem.params, problem.batch)
    _, state = tx.update(grads, state, problem.params, batch=problem.batch)
    d = state.inner_state.diagnostics
    np.testing.assert_allclose(d.first_order_flatness / d.perturbed_grad_norm, 0.3, rtol=1e-5)


@family
def test_inside_multi_steps(name):
    """Two half-batches: the inner optimizer acts every second call, with the batch of that call."""
    problem = mlp()
    tx = optax.MultiSteps(chained(name, problem), every_k_schedule=2)
    step = jax.jit(step_with(tx, problem))
    params, state = step(problem.params, tx.init(problem.params))
    chex.assert_trees_all_equal(params, problem.params)
    params, state = step(params, state)
    expected, _ = plain_step(name)(problem.params, chained(name, problem).init(params))
    chex.assert_trees_all_close(params, expected, rtol=1e-5, atol=1e-7)


@family
def test_state_is_stable_under_cond(name):
    problem = mlp()
    tx = chained(name, problem)
    step = step_with(tx, problem)

    @jax.jit
    def maybe(flag, params, state):
        return jax.lax.cond(flag, step, lambda p, s: (p, s), params, state)

    state = tx.init(problem.params)
    chex.assert_trees_all_equal(maybe(False, problem.params, state), (problem.params, state))
    chex.assert_trees_all_close(maybe(True, problem.params, state), plain_step(name)(problem.params, state), rtol=1e-6)


@family
def test_apply_if_finite_skips_a_bad_gradient(name):
    """A NaN stays visible in the updates, so that the step is skipped; the next step is as if it had not been."""
    problem = mlp()
    tx = optax.apply_if_finite(chained(name, problem), max_consecutive_errors=5)
    bad = problem._replace(batch=problem.batch | {"x": problem.batch["x"].at[0, 0].set(jnp.nan)})
    state = tx.init(problem.params)

    @jax.jit
    def step(params, state, batch):
        return step_with(tx, problem._replace(batch=batch))(params, state)

    params, after_bad = step(problem.params, state, bad.batch)
    chex.assert_trees_all_equal(params, problem.params)
    good, _ = step(params, after_bad, problem.batch)
    expected, _ = step(problem.params, state, problem.batch)
    chex.assert_trees_all_equal(good, expected)


@family
def test_a_bad_gradient_does_not_poison_the_state(name):
    problem = mlp()
    tx = EVERY[name](problem.loss_fn)
    bad = problem._replace(batch=problem.batch | {"x": problem.batch["x"].at[0, 0].set(jnp.inf)})

    @jax.jit
    def update(state, batch):
        return tx.update(jax.grad(problem.loss_fn)(problem.params, batch), state, problem.params, batch=batch)

    updates, state = update(tx.init(problem.params), bad.batch)
    assert any(np.isnan(x).any() for x in jax.tree.leaves(updates))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
    updates, _ = update(state, problem.batch)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(updates))


def test_diagnostics_are_found_by_name(x64):
    problem = mlp()
    tx = optax.chain(gam_jax.sam(problem.loss_fn, 0.05), gam_jax.gam(problem.loss_fn, 0.1, 0.5), optax.sgd(0.1))
    _, state = jax.jit(step_with(tx, problem))(problem.params, tx.init(problem.params))
    flat, unravel = jax.flatten_util.ravel_pytree(problem.params)
    loss = lambda w: problem.loss_fn(unravel(w), problem.batch)  # noqa: E731
    unit = lambda x: x / jnp.linalg.norm(x)  # noqa: E731
    gradient, hessian = jax.jit(jax.grad(loss)), jax.jit(jax.hessian(loss))
    g = gradient(flat)
    adversary = flat + 0.1 * unit(hessian(flat) @ unit(g))
    g_adv = gradient(adversary)
    h_norm = 0.1 * hessian(adversary) @ unit(g_adv)
    h_loss = gradient(flat + 0.05 * unit(g))
    norm = jnp.linalg.norm
    expected = (norm(g), norm(g_adv), 0.1 * norm(g_adv), norm(h_norm), unit(h_loss) @ unit(h_norm))
    np.testing.assert_allclose(state[1].diagnostics, expected, rtol=1e-5)
    assert optax.tree.get(state, "first_order_flatness") == state[1].diagnostics.first_order_flatness
    np.testing.assert_allclose(state[0].diagnostics, (norm(g), norm(h_loss), unit(g) @ unit(h_loss)), rtol=1e-5)


@pytest.mark.parametrize("name", FACTORIES)
def test_signature_shows_every_option(name):
    parameters = inspect.signature(FAMILY[name].factory).parameters
    for field in dataclasses.fields(gam_jax.Options):
        if field.name != "rho_prime":  # shown by the methods that have Hessian-vector products only
            assert parameters[field.name].default == field.default
    assert all(p.kind is not p.VAR_KEYWORD for p in parameters.values())
