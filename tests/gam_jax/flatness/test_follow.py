"""The top eigenvalue followed in a training loop: against dense Hessians, at the cost that is stated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from gam_jax import flatness
from tests.gam_jax.flatness.oracles import quadratic
from tests.gam_jax.problems import mlp
from tests.gam_jax.step_cost import compile_and_count

KEY = jax.random.key(0)


def test_a_space_of_all_dimensions_is_exact(x64):
    loss_fn, params, batches = quadratic([-5.0, -1.0, 0.0, 1.0, 2.0, 3.0])
    follow = flatness.follow_top_eigenvalue(loss_fn, num_steps=6)
    state = follow.update(follow.init(params, KEY), params, batches[1])
    np.testing.assert_allclose([state.value, state.residual], [3, 0], atol=1e-9)


@pytest.mark.parametrize("spectrum", [[-3.0, -2.0, -1.0, -1.0, -2.0, -3.0], [2.0] * 6])
def test_an_exhausted_space_finds_no_eigenvalue_that_is_not_there(x64, spectrum):
    loss_fn, params, batches = quadratic(spectrum)
    follow = flatness.follow_top_eigenvalue(loss_fn, num_steps=9)
    state = follow.update(follow.init(params, KEY), params, batches[1])
    np.testing.assert_allclose([state.value, state.residual], [max(spectrum), 0], atol=1e-7)


def test_it_follows_training(x64):
    """Gradient descent, measured every third step: close to the dense eigenvalue, never above, within the residual."""
    rng = np.random.default_rng(0)
    data = rng.normal(size=(9, 3)), rng.normal(size=9)
    params = {"w": jnp.asarray(rng.normal(size=(3, 5))), "v": jnp.asarray(rng.normal(size=5))}

    def loss_fn(params, batch):
        return jnp.mean((jnp.tanh(batch[0] @ params["w"]) @ params["v"] - batch[1]) ** 2)

    _, unravel = ravel_pytree(params)
    hessian = jax.jit(jax.hessian(lambda w: loss_fn(unravel(w), data)))
    follow = flatness.follow_top_eigenvalue(loss_fn, num_steps=4, interval=3)
    state = follow.init(params, KEY)

    @jax.jit
    def step(params, state):
        state = follow.update(state, params, data)
        return jax.tree.map(lambda w, g: w - 0.05 * g, params, jax.grad(loss_fn)(params, data)), state

    for i in range(22):
        before, (params, state) = (params, state), step(params, state)
        if i % 3:
            jax.tree.map(np.testing.assert_array_equal, state[1:], before[1][1:])
        else:
            values = np.linalg.eigvalsh(hessian(ravel_pytree(before[0])[0]))
            assert state.value <= values[-1] + 1e-9
            assert np.abs(values - state.value).min() <= state.residual + 1e-9
    assert int(state.count) == 22
    np.testing.assert_allclose(state.value, values[-1], rtol=1e-3)
    assert jax.tree.structure(state.vector) == jax.tree.structure(params)


def test_the_stated_cost():
    """1 + 2 num_steps gradients, by the FLOPs of the compiled programs."""
    loss_fn, params, batch = mlp()
    batch = jax.tree.map(lambda rows: jnp.tile(rows, (40,) + (1,) * (rows.ndim - 1)), batch)
    gradient, _ = compile_and_count(jax.grad(loss_fn), params, batch)
    for num_steps in (2, 4):
        follow = flatness.follow_top_eigenvalue(loss_fn, num_steps=num_steps)
        flops, _ = compile_and_count(follow.update, follow.init(params, KEY), params, batch)
        assert 1 + num_steps < flops / gradient < 1.02 * (1 + 2 * num_steps)


def test_what_is_not_finite_is_seen_and_does_not_stay():
    def loss_fn(params, batch):
        return jnp.sum(batch * params**2) / 2

    follow = flatness.follow_top_eigenvalue(loss_fn, num_steps=2)
    params, state = jnp.ones(2), follow.init(jnp.ones(2), KEY)
    state = follow.update(state, params, jnp.array([jnp.inf, 1.0]))
    assert np.isnan(state.value) and np.isfinite(state.vector).all()
    state = follow.update(state, params, jnp.array([3.0, 1.0]))
    np.testing.assert_allclose(state.value, 3, rtol=1e-6)


def test_bfloat16_aux_and_arguments_by_name():
    loss_fn = lambda params, scale: (jnp.sum(scale * params**2) / 2, "aux")  # noqa: E731
    params = jnp.ones(3, jnp.bfloat16)
    follow = flatness.follow_top_eigenvalue(loss_fn, has_aux=True)
    state = follow.update(follow.init(params, KEY), params, scale=jnp.array([1.0, 2.0, 4.0], jnp.bfloat16))
    assert state.vector.dtype == state.value.dtype == jnp.float32
    np.testing.assert_allclose(state.value, 4, rtol=0.02)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"loss_fn": 3}, TypeError, "loss_fn must be a function .*got 3"),
        ({"num_steps": 1}, ValueError, "num_steps must be at least 2, got num_steps=1"),
        ({"num_steps": 2.0}, TypeError, "got num_steps=2.0"),
        ({"interval": 0}, ValueError, "interval must be an integer >= 1 .*got interval=0"),
        ({"interval": lambda: True}, TypeError, r"interval must be a function of \(count\)"),
        ({"has_aux": 1}, TypeError, "got has_aux=1"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        flatness.follow_top_eigenvalue(**{"loss_fn": jnp.sum, **arguments})


def test_bad_calls():
    follow = flatness.follow_top_eigenvalue(lambda params, batch: jnp.sum(params**2))
    state = follow.init(jnp.ones(2), KEY)
    for call, error, message in (
        (lambda: follow.init(jnp.ones(2), 0), TypeError, "key must be a typed key.*got 0"),
        (lambda: follow.init(jnp.ones(2, int), KEY), TypeError, "got dtype int32"),
        (lambda: follow.update(state, jnp.ones(3), 1.0), ValueError, r"must have the shape \(3,\)"),
        (lambda: follow.update(None, jnp.ones(2), 1.0), TypeError, "state must be like the first one.*got PyTreeDef"),
        (lambda: follow.update(state, jnp.ones(2)), TypeError, "'batch'"),
        (lambda: follow.update(state, jnp.ones(2), 1.0, more=2), TypeError, "'more'"),
    ):
        with pytest.raises(error, match=message):
            call()
