"""The clamp: a projection onto a box around the reference, which its state keeps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gam_jax

BOUND = 0.1
REFERENCE = {"w": jax.random.normal(jax.random.key(0), (500,)), "b": jnp.linspace(-2, 2, 40)}


def start(dtype=jnp.float32):
    reference = jax.tree.map(lambda x: x.astype(dtype), REFERENCE)
    return gam_jax.clamp_to(BOUND), reference


def step(tx, state, params, updates):
    updates, state = tx.update(updates, state, params)
    return optax.apply_updates(params, updates), state


def box(reference, wide=np.float32):
    return jax.tree.map(lambda r: (np.asarray(r, wide) - wide(BOUND), np.asarray(r, wide) + wide(BOUND)), reference)


SCALES = {jnp.float32: (0.01, 5.0, 100.0), jnp.bfloat16: (0.01, 0.3)}


@pytest.mark.parametrize("dtype", SCALES)
def test_it_is_an_idempotent_projection(dtype):
    """Also from far outside, where params + (target - params) is rounded; a second time changes nothing."""
    tx, reference = start(dtype)
    state, take = tx.init(reference), jax.jit(functools.partial(step, tx))
    rng, low_high = np.random.default_rng(0), box(reference)
    for scale in SCALES[dtype]:
        random = lambda r, s=scale: jnp.asarray(s * rng.normal(size=r.shape), dtype)  # noqa: E731
        far, updates = (jax.tree.map(random, reference) for _ in range(2))
        there = optax.apply_updates(far, updates)
        params, _ = take(state, far, updates)
        again, _ = take(state, params, jax.tree.map(jnp.zeros_like, params))
        for name, (low, high) in low_high.items():
            assert params[name].dtype == dtype
            found, wanted = (np.asarray(tree[name], np.float32) for tree in (params, there))
            tolerance = (
                {"rtol": 1e-2, "atol": 1e-2} if dtype == jnp.bfloat16 else {"rtol": 0, "atol": 1e-6 * (1 + scale)}
            )
            np.testing.assert_allclose(found, np.clip(wanted, low, high), **tolerance)
            if dtype == jnp.float32:
                assert np.all(found >= low) and np.all(found <= high)
                np.testing.assert_array_equal(again[name], params[name])


def test_a_step_inside_the_box_is_passed_on_bitwise():
    tx, reference = start()
    updates = jax.tree.map(lambda r: 0.01 * jnp.cos(77 * r), reference)
    passed, state = tx.update(updates, tx.init(reference), reference)
    jax.tree.map(np.testing.assert_array_equal, passed, updates)
    assert state.reference is not reference


def test_frozen_leaves_do_not_move():
    """With a bound of zero, or by optax.masked with the others unbounded; both bitwise."""
    updates = jax.tree.map(jnp.ones_like, REFERENCE)
    params, _ = step(frozen := gam_jax.clamp_to(0.0), frozen.init(REFERENCE), REFERENCE, updates)
    jax.tree.map(np.testing.assert_array_equal, params, REFERENCE)
    masked = optax.masked(gam_jax.clamp_to(0.0), {"w": True, "b": False})
    state = masked.init(REFERENCE)
    params, _ = step(masked, state, REFERENCE, updates)
    np.testing.assert_array_equal(params["w"], REFERENCE["w"])
    np.testing.assert_array_equal(params["b"], REFERENCE["b"] + 1)
    assert len(jax.tree.leaves(state)) == 1  # of the others no reference is kept


def test_the_reference_stays_while_the_parameters_move():
    tx = optax.chain(optax.sgd(0.03), gam_jax.clamp_to(BOUND))
    params, state = REFERENCE, tx.init(REFERENCE)
    for _ in range(9):
        params, state = step(tx, state, params, jax.tree.map(jnp.ones_like, params))
    restored = jax.tree.unflatten(jax.tree.structure(state), [np.asarray(x) for x in jax.tree.leaves(state)])
    params, _ = step(tx, restored, params, jax.tree.map(jnp.ones_like, params))
    jax.tree.map(lambda p, r: np.testing.assert_allclose(p, r - BOUND, atol=1e-6), params, REFERENCE)


def test_the_state_owns_its_reference():
    """A step may donate parameters and state."""
    tx, _ = start()
    params = jax.tree.map(jnp.copy, REFERENCE)
    state = tx.init(params)
    for mine, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(params), strict=True):
        assert mine.unsafe_buffer_pointer() != theirs.unsafe_buffer_pointer()


def test_the_bound_may_be_a_hyperparameter():
    tx = optax.inject_hyperparams(gam_jax.clamp_to)(bound=lambda count: 1.0 / (1 + count))
    params, state = jnp.zeros(1), tx.init(jnp.zeros(1))
    found = []
    for _ in range(3):
        params, state = step(tx, state, params, jnp.full(1, 5.0))
        found.append(float(params[0]))
    np.testing.assert_allclose(found, [1, 1 / 2, 1 / 3], rtol=1e-6)


def test_a_nan_stays_visible():
    tx, reference = start()
    updates = {"w": jnp.full(500, jnp.nan), "b": jnp.zeros(40)}
    assert np.isnan(tx.update(updates, tx.init(reference), reference)[0]["w"]).all()


@pytest.mark.parametrize(
    ("state", "params", "updates", "error", "message"),
    [
        (None, REFERENCE, REFERENCE, TypeError, "ClampState, got None"),
        ("good", None, REFERENCE, ValueError, "params=None"),
        ("good", REFERENCE, {"w": REFERENCE["w"]}, ValueError, "updates must have the structure"),
        ("good", {"w": jnp.ones(2)}, {"w": jnp.ones(2)}, ValueError, "the reference in the state must have"),
    ],
)
def test_what_update_refuses(state, params, updates, error, message):
    tx, reference = start()
    with pytest.raises(error, match=message):
        tx.update(updates, tx.init(reference) if state == "good" else state, params)


def test_init_refuses_integers():
    with pytest.raises(TypeError, match=r"int32 at params\['w'\]"):
        gam_jax.clamp_to(0.1).init({"w": jnp.ones(3, jnp.int32)})
