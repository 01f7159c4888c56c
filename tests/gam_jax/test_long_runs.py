"""Thousands of steps from a Python loop: nothing compiles again, and nothing is kept."""

import jax
import numpy as np
import optax
import pytest

import gam_jax
from gam_jax.averaging import swad
from tests.gam_jax.family import FAMILY, HELD
from tests.gam_jax.problems import mlp
from tests.growth import nothing_compiled, nothing_grown

pytestmark = pytest.mark.slow
PROBLEM = mlp()


def loop(step, state, steps):
    for _ in range(steps):
        state = step(*state)
    return jax.block_until_ready(state)


def assert_steady(step, state, steps):
    """From the third step on nothing compiles, and after a third of the steps nothing grows; returns the last state."""
    state = loop(step, state, 2)
    with nothing_compiled():
        state = loop(step, state, steps // 3 - 2)
        with nothing_grown():
            state = loop(step, state, steps - steps // 3)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    return state


def step_with(tx):
    def step(params, state):
        grads = jax.grad(PROBLEM.loss_fn)(params, PROBLEM.batch)
        updates, state = tx.update(grads, state, params, batch=PROBLEM.batch)
        return optax.apply_updates(params, updates), state

    return step


def chained(method, **options):
    return optax.chain(method(PROBLEM.loss_fn, **options), optax.sgd(0.05, momentum=0.9))


@pytest.mark.parametrize("name", FAMILY | HELD)
def test_every_method(name):
    tx = chained((FAMILY | HELD)[name])
    _, state = assert_steady(jax.jit(step_with(tx)), (PROBLEM.params, tx.init(PROBLEM.params)), 3000)
    assert state[0].count == 3000


def test_gam_value_and_grad():
    """Which has no count of its own."""
    value_and_grad = gam_jax.gam_value_and_grad(PROBLEM.loss_fn, optax.constant_schedule(0.1), 0.5, interval=2)
    tx = optax.sgd(0.05, momentum=0.9)

    @jax.jit
    def step(params, state, count):
        _, grads = value_and_grad(params, PROBLEM.batch, count=count)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, count + 1

    *_, count = assert_steady(step, (PROBLEM.params, tx.init(PROBLEM.params), jax.numpy.int32(0)), 3000)
    assert count == 3000


def test_swad_over_a_chain():
    """It hears of the same validation loss after every step, so that its average starts, and never ends."""
    tx, averaging = chained(FAMILY["sam"]), swad()

    @jax.jit
    def step(params, state, averaged):
        params, state = step_with(tx)(params, state)
        return params, state, averaging.validate(averaging.update(averaged, params), 1.0)

    *_, averaged = assert_steady(step, (PROBLEM.params, tx.init(PROBLEM.params), averaging.init(PROBLEM.params)), 3000)
    assert averaged.started and not averaged.ended


@pytest.mark.parametrize("between", ["skip", "hold"])
def test_outside_jit_with_an_interval(between):
    """There Python decides which steps act."""
    tx = chained(FAMILY["gam"], interval=2, between=between)
    _, state = assert_steady(step_with(tx), (PROBLEM.params, tx.init(PROBLEM.params)), 60)
    assert state[0].count == 60
