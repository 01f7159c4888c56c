"""Where an interval is decided: in Python outside jit, in the program under vmap."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gam_jax
from tests.gam_jax.family import FAMILY


def loss_fn(params):
    return jnp.sum(jnp.sin(params) ** 2) + jnp.prod(params)


PARAMS = jnp.array([0.3, -0.7, 1.1])


def run(tx, params, state, steps):
    step = jax.jit(lambda p, s: tx.update(jax.grad(loss_fn)(p), s, p))
    for _ in range(steps):
        updates, state = step(params, state)
        params = params - 0.1 * updates
    return params, state


@pytest.mark.parametrize("interval", [2, np.int64(2), jnp.asarray(2), lambda count: count % 2 == 0], ids=type)
def test_steps_outside_jit_compile_once(interval):
    """From the third step on nothing is compiled, and the numbers are those of jit."""
    compiled = []
    tx = optax.chain(gam_jax.gam(loss_fn, 0.1, 0.5, interval=interval), optax.sgd(0.1))
    params, state = PARAMS, tx.init(PARAMS)

    def listen(name, *_, **__):
        if "backend_compile" in name:
            compiled.append(name)

    for i in range(5):
        if i == 2:
            jax.monitoring.register_event_duration_secs_listener(listen)
        updates, state = tx.update(jax.grad(loss_fn)(params), state, params)
        params = optax.apply_updates(params, updates)
    jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled == []
    expected, _ = run(
        gam_jax.gam(loss_fn, 0.1, 0.5, interval=2), PARAMS, gam_jax.gam(loss_fn, 0.1, 0.5).init(PARAMS), 5
    )
    np.testing.assert_allclose(params, expected, rtol=1e-5)


@pytest.mark.parametrize("bad", [lambda count: None, lambda count: "yes", lambda count: jnp.ones(2, bool)])
def test_intervals_that_return_no_bool(bad):
    tx = gam_jax.gam(loss_fn, 0.1, 0.5, interval=bad)
    with pytest.raises(TypeError, match="interval must return one bool"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)


@pytest.mark.parametrize("options", [{}, {"between": "hold", "max_ratio": 1.0}], ids=["skip", "hold"])
@pytest.mark.parametrize("name", ["gam", "sam"])
def test_an_ensemble_skips_as_one_does(name, options):
    """vmap over members: a branch of the program stays, and each member is as if alone, out of step or not."""
    tx = FAMILY[name](loss_fn, interval=3, **options)
    members = jnp.stack([PARAMS, 1.3 * PARAMS, 0.5 * PARAMS])
    state = jax.vmap(tx.init)(members)
    ahead = state._replace(count=jnp.array([0, 1, 3], jnp.int32))
    for start in (state, ahead):
        params, states = members, start
        step = jax.jit(jax.vmap(lambda p, s: tx.update(jax.grad(loss_fn)(p), s, p)))
        for _ in range(4):
            updates, states = step(params, states)
            params = params - 0.1 * updates
        for i, member in enumerate(members):
            alone, alone_state = run(tx, member, jax.tree.map(lambda x: x[i], start), 4)  # noqa: B023
            np.testing.assert_allclose(params[i], alone, rtol=1e-5)
            np.testing.assert_allclose(states.diagnostics.grad_norm[i], alone_state.diagnostics.grad_norm, rtol=1e-5)
    assert step.lower(members, state).compile().as_text().count(" conditional(") == 1


def test_an_ensemble_of_ensembles_skips():
    tx = gam_jax.gam(loss_fn, 0.1, 0.5, interval=3)
    members = jnp.stack([jnp.stack([PARAMS, 2 * PARAMS]), jnp.stack([-PARAMS, 0.1 * PARAMS])])
    state = jax.vmap(jax.vmap(tx.init))(members)
    step = jax.jit(jax.vmap(jax.vmap(lambda p, s: tx.update(jax.grad(loss_fn)(p), s, p))))
    assert step.lower(members, state).compile().as_text().count(" conditional(") == 1
    got, _ = step(members, state)
    alone, _ = run(tx, members[1, 0], tx.init(PARAMS), 1)
    np.testing.assert_allclose(members[1, 0] - 0.1 * got[1, 0], alone, rtol=1e-5)
