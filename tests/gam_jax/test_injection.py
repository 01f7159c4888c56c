"""In optax.inject_hyperparams coefficients are hyperparameters; the loss and the options are not."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gam_jax
from tests.gam_jax.family import FACTORIES, FAMILY

PARAMS = {"w": jnp.array([1.0, -2.0]), "b": jnp.array([0.5])}


def loss_fn(params, batch):
    return jnp.sum(batch * jnp.sin(params["w"])) + jnp.sum(params["b"] ** 4)


BATCH = jnp.array([1.0, 3.0])
GRADS = jax.grad(loss_fn)(PARAMS, BATCH)


def conditionals(tx):
    """In the compiled step."""
    step = jax.jit(lambda g, s, p: tx.update(g, s, p, batch=BATCH))
    return step.lower(GRADS, tx.init(PARAMS), PARAMS).compile().as_text().count(" conditional(")


CASES = [(name, {}, ()) for name in FACTORIES] + [
    ("gam", {"interval": 1}, "loss_fn"),
    ("sam", {"interval": 1, "eps": 0.0, "max_ratio": 2.0}, ("loss_fn", "interval", "eps")),
]


@pytest.mark.parametrize(("name", "options", "static_args"), CASES)
def test_no_conditional_in_a_step_without_an_interval(name, options, static_args):
    method = FAMILY[name]
    tx = optax.inject_hyperparams(method.factory, static_args=static_args)(loss_fn, **method.coefficients, **options)
    state = tx.init(PARAMS)
    others = {"gamma", "rho_prime"} | ({"max_ratio"} & set(options))
    assert set(method.coefficients) <= set(state.hyperparams) <= set(method.coefficients) | others
    assert conditionals(tx) == 0


def test_one_conditional_with_an_interval():
    tx = optax.inject_hyperparams(gam_jax.gam)(loss_fn, rho=0.1, alpha=0.5, interval=3)
    assert conditionals(tx) == 1
    assert "interval" not in tx.init(PARAMS).hyperparams


def test_functions_among_the_options_are_not_schedules():
    """A mask, a metric and an interval made by functions, beside schedules of coefficients."""
    options = {
        "perturb_mask": lambda params: {"w": True, "b": False},
        "interval": lambda count: count % 2 == 0,
        "adaptive": gam_jax.asam_scaling,
    }
    rho = optax.linear_schedule(0.1, 0.3, 2)
    injected = optax.inject_hyperparams(gam_jax.gam)(loss_fn, rho=rho, alpha=0.5, **options)
    plain = gam_jax.gam(loss_fn, rho, 0.5, **options)
    state, plain_state = injected.init(PARAMS), plain.init(PARAMS)
    for _ in range(3):
        got, state = injected.update(GRADS, state, PARAMS, batch=BATCH)
        expected, plain_state = plain.update(GRADS, plain_state, PARAMS, batch=BATCH)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, expected)
    assert set(state.hyperparams) == {"rho", "alpha", "rho_prime"}
    np.testing.assert_allclose(state.hyperparams["rho"], 0.3)


def test_max_ratio_can_be_set():
    tx = optax.inject_hyperparams(gam_jax.gam)(loss_fn, rho=0.5, alpha=50.0, max_ratio=2.0)
    state = tx.init(PARAMS)
    state.hyperparams["max_ratio"] = jnp.asarray(0.25)
    updates, _ = tx.update(GRADS, state, PARAMS, batch=BATCH)
    added = jax.tree.map(jnp.subtract, updates, GRADS)
    np.testing.assert_allclose(optax.tree.norm(added), 0.25 * optax.tree.norm(GRADS), rtol=1e-5)


@pytest.mark.parametrize("name", ["eps", "max_ratio", "rho_prime"])
def test_options_take_no_schedules(name):
    with pytest.raises(TypeError, match=f"{name} must be a number.*not a function"):
        gam_jax.gam(loss_fn, 0.1, 0.5, **{name: optax.constant_schedule(0.1)})


@pytest.mark.parametrize("value", ["False", "", "True", 1, 0, None, [True], jnp.asarray(True)], ids=repr)
@pytest.mark.parametrize("flag", ["has_aux", "per_replica", "drop_nonfinite", "adaptive"])
def test_flags_are_bools(flag, value):
    if flag == "adaptive" and isinstance(value, list | jax.Array):
        tx = gam_jax.sam(loss_fn, 0.1, adaptive=value)  # a pytree, but not like the parameters
        with pytest.raises(ValueError, match="adaptive must have the structure"):
            tx.update(GRADS, tx.init(PARAMS), PARAMS, batch=BATCH)
        return
    for factory in (gam_jax.gam, gam_jax.gam_value_and_grad):
        with pytest.raises(TypeError, match=f"{flag} must be True.*got {flag}="):
            factory(loss_fn, 0.1, 0.5, **{flag: value})


def test_flags_of_numpy_are_bools():
    gam_jax.sam(loss_fn, 0.1, adaptive=np.True_, has_aux=np.False_)


@pytest.mark.parametrize("name", ["interval", "num_microbatches"])
@pytest.mark.parametrize("value", ["2", [2], {"k": 2}])
def test_counts_that_are_no_numbers(name, value):
    with pytest.raises(ValueError, match=f"{name} must be an integer >= 1.*got {name}="):
        gam_jax.gam(loss_fn, 0.1, 0.5, **{name: value})
