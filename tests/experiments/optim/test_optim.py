"""Config values become the right optax chains, and every method gets the same number of trials."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gam_jax
from experiments.common.errors import UserError
from experiments.configs import load
from experiments.optim.chain import acts, build
from experiments.optim.config import OptimConfig
from experiments.optim.methods import METHODS
from experiments.study.search import best_trial, grid_size, trials
from tests.gam_jax.family import FAMILY

NUMBERS = {
    "learning_rate": 0.3,
    "weight_decay": 0.2,
    "sam_rho": 0.4,
    "gam_rho": 0.5,
    "gam_alpha": 0.7,
    "beta": 0.6,
    "gamma": 0.35,
    "strength": 0.15,
}
COMPARED = ("plain", "sam", "gam", "sam+gam")


def config_of(method, **changes):
    own = {name: NUMBERS[name] for name in METHODS[method].hyperparameters}
    return OptimConfig(**{"method": method, "momentum": 0.9, **own, **changes})


def loss_fn(params, batch):
    return jnp.sum(jnp.sin(params * batch)) + jnp.sum(params**4) / 4


def link(method):
    """The method of the family with the trainer's numbers, where the trainer has one."""
    row, own = FAMILY[method], METHODS[method].own
    names = {"rho": "gam_rho" if "gam_rho" in own else "sam_rho", "rho_prime": "sam_rho", "alpha": "gam_alpha"}
    given = {name: NUMBERS[ours] for name in row.coefficients if (ours := names.get(name, name)) in own}
    assert len(given) == len(own)
    return row.factory(loss_fn, **given, **row.options)


def oracle(method, params, batch, state=None):
    """The gradient that SGD gets: where it can, put together by hand from one-point quantities; and a link's state."""
    grad = update = jax.grad(loss_fn)(params, batch)
    if method not in COMPARED:
        tx = link(method)
        update, state = tx.update(grad, tx.init(params) if state is None else state, params, batch=batch)
    if method in ("sam", "sam+gam"):
        update = jax.grad(loss_fn)(params + 0.4 * grad / jnp.linalg.norm(grad), batch)
    if method in ("gam", "sam+gam"):
        full = gam_jax.gam_value_and_grad(loss_fn, 0.5, 0.7)(params, batch)[1]
        update = update + (full - grad)  # the flatness term belongs to the clean point, also behind SAM
    return update + 0.2 * params, state


def iterates(tx, steps):
    """The parameters after each step, on batches that change."""

    @jax.jit
    def run(params):
        def take(carry, step):
            params, state = carry
            batch = jnp.array([1.0, 2.0, 3.0]) + step
            updates, state = tx.update(jax.grad(loss_fn)(params, batch), state, params, batch=batch)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        return jax.lax.scan(take, (params, tx.init(params)), jnp.arange(steps))[1]

    return np.asarray(run(jnp.array([0.5, -1.0, 2.0])))


@pytest.mark.parametrize("method", METHODS)
def test_chain_is_the_method_then_decay_then_momentum_and_cosine(x64, method):
    found = iterates(build(config_of(method), loss_fn, steps=4).tx, 4)
    expected, velocity, state = jnp.array([0.5, -1.0, 2.0]), jnp.zeros(3), None
    for step in range(4):
        gradient, state = oracle(method, expected, jnp.array([1.0, 2.0, 3.0]) + step, state)
        velocity = 0.9 * velocity + gradient
        expected = expected - 0.3 * 0.5 * (1 + np.cos(np.pi * step / 4)) * velocity
        np.testing.assert_allclose(found[step], expected, rtol=1e-10)


def test_methods_differ():
    """At the second step, when there is something to remember."""
    params, seen = jnp.array([0.5, -1.0, 2.0]), set()
    for method in METHODS:
        _, state = oracle(method, params, jnp.ones(3))
        gradient, _ = oracle(method, params, jnp.array([1.0, 2.0, 3.0]), state)
        seen.add(tuple(gradient.tolist()))
    assert len(seen) == len(METHODS)


def test_adamw_decays_matrices_only(x64):
    params = {"weight": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    tx = build(config_of("plain", base="adamw"), lambda params: 0.0, steps=4).tx
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["weight"], -0.3 * 0.2 * np.ones((2, 2)))
    np.testing.assert_array_equal(updates["bias"], np.zeros(2))


def test_warmup_is_linear_and_the_cosine_ends_at_zero(x64):
    schedule = build(config_of("plain", warmup=0.2), loss_fn, steps=20).learning_rate
    found = [float(schedule(step)) for step in range(21)]
    np.testing.assert_allclose(found[:5], [0.0, 0.075, 0.15, 0.225, 0.3], atol=1e-12)
    np.testing.assert_allclose(found[12], 0.15)  # half of the cosine
    np.testing.assert_allclose(found[20], 0.0, atol=1e-12)
    assert schedule(25) == schedule(20)


@pytest.mark.parametrize(
    "name, factor",
    [
        ("proportional", lambda step: 0.5 * (1 + np.cos(np.pi * step / 4))),
        ("inverse_sqrt", lambda step: 1 / np.sqrt(step + 1)),
    ],
)
def test_radii_follow_their_schedule(x64, name, factor):
    scheduled = build(config_of("sam+gam", rho_schedule=name), loss_fn, steps=4).tx
    by_hand = optax.chain(
        gam_jax.sam(loss_fn, lambda step: 0.4 * jnp.asarray([factor(i) for i in range(5)])[step]),
        gam_jax.gam(loss_fn, lambda step: 0.5 * jnp.asarray([factor(i) for i in range(5)])[step], 0.7),
        optax.add_decayed_weights(0.2),
        optax.sgd(lambda step: 0.15 * (1 + jnp.cos(jnp.pi * step / 4)), 0.9),
    )
    np.testing.assert_allclose(iterates(scheduled, 4), iterates(by_hand, 4), rtol=1e-9)


def test_radii_in_proportion_to_the_learning_rate_are_never_negative(monkeypatch):
    radii = {}
    monkeypatch.setattr(gam_jax, "sam", lambda _, rho, **options: radii.update(rho=rho) or optax.identity())
    build(config_of("sam", rho_schedule="proportional", warmup=0.1), loss_fn, steps=1000)
    assert min(float(radii["rho"](step)) for step in (0, 50, 998, 999, 1000, 1001, 5000)) >= 0
    np.testing.assert_allclose(float(radii["rho"](100)), 0.4)


RECIPES = [
    {"interval": 2, "between": "hold"},
    {"interval": 2, "between": "hold", "max_ratio": 0.1},
    {"ascent_hvp": "finite_difference"},
]


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_a_recipe_reaches_the_link(x64, recipe):
    by_hand = optax.chain(
        gam_jax.gam(loss_fn, 0.5, 0.7, **recipe),
        optax.add_decayed_weights(0.2),
        optax.sgd(lambda step: 0.15 * (1 + jnp.cos(jnp.pi * step / 4)), 0.9),
    )
    found, exact = (iterates(build(config_of("gam", **changes), loss_fn, 4).tx, 4) for changes in (recipe, {}))
    np.testing.assert_allclose(found, iterates(by_hand, 4), rtol=1e-9)
    assert np.abs(found - exact).max() > 1e-9


@pytest.mark.parametrize("method", ["gam", "sam", "accelerated_gam"])
def test_a_share_of_the_batch_is_what_the_method_sees(method, x64):
    def mean_loss(params, batch):
        return jnp.mean(jax.vmap(loss_fn, (None, 0))(params, batch["x"]))

    params, batch = jnp.array([0.5, -1.0, 2.0]), {"x": jnp.arange(12.0).reshape(4, 3)}
    base = {"weight_decay": 0.0, "learning_rate": 1.0}
    share, full = (build(config_of(method, **base, **more), mean_loss, 1).tx for more in ({"curvature_share": 2}, {}))
    gradient, rows = jax.jit(jax.grad(mean_loss)), {"x": batch["x"][::2]}
    whole, part = gradient(params, batch), gradient(params, rows)
    found, _ = jax.jit(share.update)(whole, share.init(params), params, batch=batch)
    there, _ = jax.jit(full.update)(part, full.init(params), params, batch=rows)
    np.testing.assert_allclose(found, -(whole + (-there - part)), rtol=1e-9)


@pytest.mark.parametrize("interval", [1, 2])
def test_a_late_phase(interval, x64):
    """The base optimizer before it; which steps act, in the program and for the training loop."""
    config = config_of("sam", late=0.5, interval=interval)
    expected = [False, False, True, interval == 1]
    assert [acts(config, 4, count) for count in range(4)] == expected
    assert config.rests and config.acting_share == 0.5 / interval
    late, plain = (iterates(build(c, loss_fn, steps=4).tx, 4) for c in (config, config_of("plain")))
    np.testing.assert_allclose(late[:2], plain[:2], rtol=1e-12)
    assert np.abs(late[2] - plain[2]).max() > 1e-3


def test_look_and_groups_reach_the_links(x64):
    looked, skipped = (
        iterates(build(config_of("sam", interval=2, **more), loss_fn, steps=4).tx, 2)
        for more in ({"between": "look", "look_ratio": 0.7}, {})
    )
    assert np.abs(looked[1] - skipped[1]).max() > 1e-3

    def mean_loss(params, batch):
        return jnp.mean(jax.vmap(loss_fn, (None, 0))(params, batch["x"]))

    params, batch = jnp.array([0.5, -1.0, 2.0]), {"x": jnp.arange(12.0).reshape(4, 3)}
    tx = build(config_of("sam", groups=2, weight_decay=0.0, learning_rate=1.0), mean_loss, 1).tx
    found, _ = tx.update(jax.grad(mean_loss)(params, batch), tx.init(params), params, batch=batch)
    rho = config_of("sam").sam_rho
    want = gam_jax.sam_value_and_grad(mean_loss, rho, groups=2)(params, batch)[1]
    np.testing.assert_allclose(found, -want, rtol=1e-9)


def test_between_its_steps_a_method_is_the_base_optimizer(x64):
    every_second = iterates(build(config_of("gam", interval=2), loss_fn, steps=4).tx, 2)
    full, plain = (iterates(build(config_of(method), loss_fn, steps=4).tx, 1)[0] for method in ("gam", "plain"))
    np.testing.assert_allclose(every_second[0], full, rtol=1e-12)
    assert np.abs(full - plain).max() > 1e-3
    gradient = jax.grad(loss_fn)(every_second[0], jnp.array([2.0, 3.0, 4.0])) + 0.2 * every_second[0]
    velocity = (jnp.array([0.5, -1.0, 2.0]) - full) / 0.3
    rate = 0.15 * (1 + np.cos(np.pi / 4))
    np.testing.assert_allclose(every_second[1], every_second[0] - rate * (0.9 * velocity + gradient), rtol=1e-10)


@pytest.mark.parametrize("method", COMPARED)
def test_every_method_gets_the_same_number_of_distinct_points_of_its_own_grid(method):
    config = load("digits")
    settings = trials(config, method)
    assert len(set(settings)) == len(settings) == config.trials == 25
    assert settings == trials(config, method)
    for setting in settings:
        assert set(setting.tuned()) == set(METHODS[method].hyperparameters)
        for name, value in setting.tuned().items():
            assert value in getattr(config.grid, name)
        unused = NUMBERS.keys() - setting.tuned().keys()
        assert all(getattr(setting, name) is None for name in unused)


def test_sgd_tries_its_whole_grid():
    config = load("digits")
    assert grid_size(config, "plain") == config.trials


def test_a_budget_beyond_a_grid_is_refused():
    config = dataclasses.replace(load("digits"), trials=26)
    with pytest.raises(UserError, match=r"'plain' has 25 points for trials=26"):
        trials(config, "plain")


def tuned(*scores):
    names = ("trial", "validation_accuracy", "validation_loss")
    return [dict(zip(names, score, strict=True), diverged=score[1] is None) for score in scores]


def test_best_trial_has_the_best_mean_accuracy_and_then_the_lowest_loss():
    records = tuned((0, 0.9, 1.0), (0, 0.7, 1.0), (1, 0.8, 0.9), (1, 0.8, 0.9), (2, 0.85, 3.0), (2, 0.75, 2.0))
    assert best_trial(records) == 1 and best_trial([*records, *tuned((3, 0.81, 9.0))]) == 3
    assert best_trial(tuned((2, 0.5, 1.0), (1, 0.5, 1.0))) == 1  # in whatever order they were recorded


def test_a_trial_that_diverged_loses_against_every_other():
    diverged = tuned((0, 0.9, 0.1), (0, None, None), (1, None, None))
    assert best_trial([*diverged, *tuned((2, 0.01, 90.0))]) == 2
    assert best_trial(diverged) == 0
