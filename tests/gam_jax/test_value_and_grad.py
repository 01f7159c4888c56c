"""Each method in the form of ``jax.value_and_grad``: the link's updates and diagnostics, the loss and its aux."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gam_jax
from tests.gam_jax.family import FAMILY
from tests.gam_jax.problems import mlp


def with_aux(params, batch):
    return mlp().loss_fn(params, batch), {"rows": batch["y"]}


def call(name, fn, params, batch, **more):
    """Loss, gradients and what comes after them; a method with a memory is at its first step."""
    memory = {"memory": optax.tree.zeros_like(params)} if name == "friendly_sam" else {}
    return jax.jit(fn)(params, batch, **memory, **more)


@pytest.mark.parametrize("name", FAMILY)
def test_is_the_link(name, x64):
    loss_fn, params, batch = mlp()
    loss, grads = jax.value_and_grad(loss_fn)(params, batch)
    tx = FAMILY[name](loss_fn)
    want, state = jax.jit(lambda g, p, b: tx.update(g, tx.init(p), p, batch=b))(grads, params, batch)
    fn = FAMILY[name].function(with_aux, has_aux=True, has_diagnostics=True)
    (value, aux), got, seen, *memory = call(name, fn, params, batch)
    np.testing.assert_allclose(value, loss, rtol=1e-12)
    np.testing.assert_array_equal(aux["rows"], batch["y"])
    chex.assert_trees_all_close(got, want, rtol=1e-10, atol=1e-13)
    assert optax.tree.norm(optax.tree.sub(got, grads)) > 1e-4
    assert type(seen) is type(state.diagnostics)
    chex.assert_trees_all_close(seen, state.diagnostics, rtol=1e-5)
    chex.assert_trees_all_close(memory, [state.memory] if memory else [], rtol=1e-12)


def test_sam_and_gam_is_their_chain(x64):
    loss_fn, params, batch = mlp()
    tx = optax.chain(gam_jax.sam(loss_fn, 0.07), gam_jax.gam(loss_fn, 0.2, 0.6))
    want, state = tx.update(jax.grad(loss_fn)(params, batch), tx.init(params), params, batch=batch)
    fn = gam_jax.sam_gam_value_and_grad(loss_fn, 0.07, 0.2, 0.6, has_diagnostics=True)
    loss, got, seen = jax.jit(fn)(params, batch)
    np.testing.assert_allclose(loss, loss_fn(params, batch), rtol=1e-12)
    chex.assert_trees_all_close(got, want, rtol=1e-10, atol=1e-13)
    chex.assert_trees_all_close(tuple(seen), tuple(s.diagnostics for s in state), rtol=1e-5)


@pytest.mark.parametrize("name", ["sam", "accelerated_gam"])
def test_schedules_and_intervals_take_the_count(name, x64):
    loss_fn, params, batch = mlp()
    scheduled = {**FAMILY[name].coefficients, "rho": optax.linear_schedule(0.0, 0.4, 10)}
    fn = FAMILY[name].function(loss_fn, **{**scheduled, "interval": 5}, has_diagnostics=True)
    want = FAMILY[name].function(loss_fn, rho=0.2)(params, batch)[1]
    chex.assert_trees_all_close(fn(params, batch, count=5)[1], want, rtol=1e-6)
    loss, plain, seen = fn(params, batch, count=4)
    chex.assert_trees_all_close((loss, plain), jax.value_and_grad(loss_fn)(params, batch), rtol=1e-6)
    assert set(map(float, seen)) == {0.0}
    with pytest.raises(TypeError, match="needs the step count: call f"):
        fn(params, batch)


def test_the_bound_and_the_drop(x64):
    loss_fn, params, batch = mlp()
    grads = jax.grad(loss_fn)(params, batch)
    _, new = gam_jax.sam_value_and_grad(loss_fn, 5.0, max_ratio=0.1)(params, batch)
    np.testing.assert_allclose(optax.tree.norm(optax.tree.sub(new, grads)), 0.1 * optax.tree.norm(grads), rtol=1e-9)

    def kink(params, batch):
        return loss_fn(params, batch) + jnp.abs(params["b1"][0] - params["b1"][0]) ** 1.5  # an infinite Hessian entry

    fn = gam_jax.gradient_norm_penalty_value_and_grad
    assert not np.isfinite(optax.tree.norm(fn(kink, 0.1)(params, batch)[1]))
    chex.assert_trees_all_close(fn(kink, 0.1, drop_nonfinite=True)(params, batch)[1], grads, rtol=1e-12)


def test_what_has_no_place_in_a_function():
    loss_fn, params, batch = mlp()
    for options in ({"between": "hold", "interval": 2}, {"between": "look", "interval": 2}, {"mismatch": True}):
        with pytest.raises(ValueError, match="function"):
            gam_jax.sam_value_and_grad(loss_fn, **options)
    with pytest.raises(TypeError, match="has_diagnostics must be True or False, got has_diagnostics='yes'"):
        gam_jax.sam_value_and_grad(loss_fn, has_diagnostics="yes")
    with pytest.raises(TypeError, match="memory=memory.*zeros_like"):
        gam_jax.friendly_sam_value_and_grad(loss_fn, 0.1)(params, batch)


def test_defaults(x64):
    """alpha * rho of gam is sam's radius; with them both methods do about the same to a nearly quadratic loss."""
    loss_fn, params, batch = mlp()
    grads = jax.grad(loss_fn)(params, batch)
    terms = [
        optax.tree.sub(fn(loss_fn)(params, batch)[1], grads)
        for fn in (gam_jax.gam_value_and_grad, gam_jax.sam_value_and_grad)
    ]
    cosine = optax.tree.vdot(*terms) / (optax.tree.norm(terms[0]) * optax.tree.norm(terms[1]))
    assert cosine > 0.9
    np.testing.assert_allclose(optax.tree.norm(terms[0]), optax.tree.norm(terms[1]), rtol=0.2)
    for name in ("gam", "sam"):
        tx = getattr(gam_jax, name)(loss_fn)
        updates, _ = tx.update(grads, tx.init(params), params, batch=batch)
        term = optax.tree.sub(updates, grads)
        chex.assert_trees_all_close(term, terms[["gam", "sam"].index(name)], rtol=1e-9, atol=1e-12)
