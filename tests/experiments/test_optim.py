"""Config values become the right optax chains, and every method gets the same number of trials."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gam_jax
from experiments.config import UserError
from experiments.configs import load
from experiments.optim import HYPERPARAMETERS, METHODS, OptimConfig, build
from experiments.search import best_trial, grid_size, trials

NUMBERS = {"learning_rate": 0.3, "weight_decay": 0.2, "sam_rho": 0.4, "gam_rho": 0.5, "gam_alpha": 0.7}


def loss_fn(params, batch):
    return jnp.sum(jnp.sin(params * batch)) + jnp.sum(params**4) / 4


def oracle(method, params, batch):
    """The gradient that SGD gets, put together by hand from one-point quantities."""
    grad = jax.grad(loss_fn)(params, batch)
    update = grad
    if method in ("sam", "sam+gam"):
        update = jax.grad(loss_fn)(params + 0.4 * grad / jnp.linalg.norm(grad), batch)
    if method in ("gam", "sam+gam"):
        full = gam_jax.gam_value_and_grad(loss_fn, 0.5, 0.7)(params, batch)[1]
        update = update + (full - grad)  # the flatness term belongs to the clean point, also behind SAM
    return update + 0.2 * params


@pytest.mark.parametrize("method", METHODS)
def test_chain_is_the_method_then_decay_then_momentum_and_cosine(x64, method):
    config = OptimConfig(method=method, momentum=0.9, **{name: NUMBERS[name] for name in HYPERPARAMETERS[method]})
    tx = build(config, loss_fn, steps=4)
    params = expected = jnp.array([0.5, -1.0, 2.0])
    velocity, state = jnp.zeros(3), tx.init(params)
    for step in range(4):
        batch = jnp.array([1.0, 2.0, 3.0]) + step
        updates, state = tx.update(jax.grad(loss_fn)(params, batch), state, params, batch=batch)
        params = params + updates
        velocity = 0.9 * velocity + oracle(method, expected, batch)
        expected = expected - 0.3 * 0.5 * (1 + np.cos(np.pi * step / 4)) * velocity
        np.testing.assert_allclose(params, expected, rtol=1e-10)


def test_methods_differ():
    params, batch = jnp.array([0.5, -1.0, 2.0]), jnp.ones(3)
    assert len({tuple(oracle(method, params, batch).tolist()) for method in METHODS}) == 4


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gets_the_same_number_of_distinct_points_of_its_own_grid(method):
    config = load("digits")
    settings = trials(config, method)
    assert len(set(settings)) == len(settings) == config.trials == 25
    assert settings == trials(config, method)
    for setting in settings:
        assert set(setting.tuned()) == set(HYPERPARAMETERS[method])
        for name, value in setting.tuned().items():
            assert value in getattr(config.grid, name)
        unused = NUMBERS.keys() - setting.tuned().keys()
        assert all(getattr(setting, name) is None for name in unused)


def test_sgd_tries_its_whole_grid():
    config = load("digits")
    assert grid_size(config, "sgd") == config.trials


def test_a_budget_beyond_a_grid_is_refused():
    config = dataclasses.replace(load("digits"), trials=26)
    with pytest.raises(UserError, match=r"'sgd' has 25 points for trials=26"):
        trials(config, "sgd")


def test_best_trial_has_the_best_mean_accuracy_and_then_the_lowest_loss():
    scores = [(0, 0.9, 1.0), (0, 0.7, 1.0), (1, 0.8, 0.9), (1, 0.8, 0.9), (2, 0.85, 3.0), (2, 0.75, None)]
    records = [
        {"trial": trial, "validation_accuracy": accuracy, "validation_loss": loss} for trial, accuracy, loss in scores
    ]
    assert best_trial(records) == 1
    assert best_trial([*records, {"trial": 3, "validation_accuracy": 0.81, "validation_loss": None}]) == 3
