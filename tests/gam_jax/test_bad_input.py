"""Bad input gets an error that prints the offending value, before any work."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gam_jax
from tests.gam_jax.family import FAMILY
from tests.gam_jax.problems import mlp

PROBLEM = mlp()
loss_fn, params, batch = PROBLEM
grads = jax.tree.map(jnp.ones_like, params)


bad_numbers = pytest.mark.parametrize(
    "value", [-0.1, float("nan"), float("inf"), -1, np.float32(-2.5), jnp.asarray(-0.1)], ids=repr
)


@bad_numbers
@pytest.mark.parametrize("name", FAMILY)
def test_coefficients(name, value):
    for coefficient in FAMILY[name].coefficients:
        with pytest.raises(ValueError, match=re.escape(f"{coefficient}={value!r}")):
            FAMILY[name](loss_fn, **{coefficient: value})


@bad_numbers
@pytest.mark.parametrize(
    ("factory", "name"),
    [
        (lambda v: gam_jax.gam_value_and_grad(loss_fn, v, 0.5), "rho"),
        (lambda v: gam_jax.gam(loss_fn, 0.1, 0.5, eps=v), "eps"),
        (lambda v: gam_jax.gam(loss_fn, 0.1, 0.5, rho_prime=v), "rho_prime"),
        (lambda v: gam_jax.gam(loss_fn, 0.1, 0.5, max_ratio=v), "max_ratio"),
        (lambda v: gam_jax.released_coefficients(rho=v, rho_prime=0.1, alpha=0.1, beta=0.1, gamma=0.1), "rho"),
    ],
)
def test_other_numbers(factory, name, value):
    with pytest.raises(ValueError, match=re.escape(f"{name}={value!r}")):
        factory(value)


@pytest.mark.parametrize("value", ["0.1", None, True, [0.1], []])
def test_coefficients_of_another_type(value):
    with pytest.raises(TypeError, match=re.escape(f"alpha={value!r}")):
        gam_jax.gam(loss_fn, 0.1, value)
    if value != [0.1]:  # which is the radius of the one leaf of a list
        with pytest.raises(TypeError, match=re.escape(f"rho={value!r}")):
            gam_jax.gam(loss_fn, value, 0.5)


@pytest.mark.parametrize("name", [name for name, method in FAMILY.items() if method.fractions])
def test_fractions_above_one(name):
    for fraction in FAMILY[name].fractions:
        with pytest.raises(ValueError, match=re.escape(f"{fraction}=1.5")):
            FAMILY[name](loss_fn, **{fraction: 1.5})


def test_released_fractions_above_one():
    with pytest.raises(ValueError, match=r"alpha=1\.5"):
        gam_jax.released_coefficients(rho=0.2, rho_prime=0.02, alpha=1.5, beta=0.5, gamma=0.1)


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"interval": 0}, ValueError, "interval=0"),
        ({"interval": -3}, ValueError, "interval=-3"),
        ({"interval": 2.5}, ValueError, "interval=2.5"),
        ({"interval": True}, ValueError, "interval=True"),
        ({"hvp": "hessian"}, ValueError, "'linearize', 'jvp', 'reverse', 'finite_difference'.*'hessian'"),
        ({"between": "keep"}, ValueError, "'skip', 'hold'.*between='keep'"),
        ({"between": "hold"}, ValueError, "between='hold'.*interval=1"),
        ({"max_ratio": 0}, ValueError, "> 0.*max_ratio=0"),
        ({"num_microbatches": 0}, ValueError, "num_microbatches=0"),
        ({"num_microbatches": 1.5}, ValueError, "num_microbatches=1.5"),
        ({"per_replica": True}, ValueError, "axis_name=None"),
        ({"intervall": 2}, TypeError, "intervall"),
    ],
)
def test_options(name, options, error, message):
    with pytest.raises(error, match=message):
        FAMILY[name](loss_fn, **options)


def update(tx, params=params, grads=grads, **extra):
    return tx.update(grads, tx.init(params), params, **extra)


@pytest.mark.parametrize("name", FAMILY)
def test_missing_loss_argument(name):
    with pytest.raises(TypeError, match=r"missing \['batch'\].*Got \['bach', 'value'\]"):
        update(FAMILY[name](loss_fn), bach=batch, value=1.0)


@pytest.mark.parametrize("name", FAMILY)
def test_params_none(name):
    tx = FAMILY[name](loss_fn)
    with pytest.raises(ValueError, match="params=None"):
        tx.update(grads, tx.init(params), batch=batch)


@pytest.mark.parametrize("name", FAMILY)
def test_integer_parameters(name):
    with pytest.raises(TypeError, match=r"int32 at params\['steps'\]"):
        FAMILY[name](loss_fn).init(params | {"steps": jnp.zeros((), jnp.int32)})
    with pytest.raises(TypeError, match="complex64"):
        FAMILY[name](loss_fn).init({"w": jnp.zeros(2, jnp.complex64)})


def test_losses_that_are_not_scalar_functions():
    cases = [
        (lambda p, batch: batch["x"] @ p["w1"], {}, r"shape \(16, 8\)"),
        (lambda p, batch: jnp.int32(3), {}, "int32"),
        (lambda p, batch: (loss_fn(p, batch), 0), {}, "has_aux"),
        (lambda p, batch: loss_fn(p, batch), {"has_aux": True}, r"\(loss, aux\)"),
    ]
    for bad, options, message in cases:
        with pytest.raises(TypeError, match=message):
            update(gam_jax.gam(bad, 0.1, 0.5, **options), batch=batch)
        with pytest.raises(TypeError, match=message):
            gam_jax.gam_value_and_grad(bad, 0.1, 0.5, **options)(params, batch)


def test_losses_whose_arguments_have_no_names():
    with pytest.raises(TypeError, match=r"\*batch.*lambda params, x, y"):
        gam_jax.gam(lambda p, *batch: 0.0, 0.1, 0.5)
    with pytest.raises(TypeError, match="first argument"):
        gam_jax.gam(lambda: 0.0, 0.1, 0.5)
    with pytest.raises(TypeError, match="loss_fn must be a function.*3"):
        gam_jax.gam(3, 0.1, 0.5)


def test_optional_and_arbitrary_loss_arguments():
    """Defaults need not be given, and a loss with **kwargs gets all names."""
    seen = {}

    def with_default(p, batch, scale=2.0):
        return scale * loss_fn(p, batch)

    def with_kwargs(p, **kwargs):
        seen.update(kwargs)
        return loss_fn(p, kwargs["batch"])

    jax.eval_shape(lambda: update(gam_jax.gam(with_default, 0.1, 0.5), batch=batch))
    jax.eval_shape(lambda: update(gam_jax.gam(with_kwargs, 0.1, 0.5), batch=batch, value=1.0))
    assert set(seen) == {"batch", "value"}


def test_masks_that_do_not_fit():
    for mask, error, message in [
        ({"w1": True}, ValueError, "perturb_mask must have the structure.*'w1'"),
        (lambda p: [True], ValueError, "perturb_mask must have the structure"),
        (jax.tree.map(lambda p: 1.0, params), TypeError, "1.0 at"),
    ]:
        with pytest.raises(error, match=message):
            update(gam_jax.gam(loss_fn, 0.1, 0.5, perturb_mask=mask), batch=batch)


def test_microbatches_that_do_not_fit():
    with pytest.raises(ValueError, match=r"num_microbatches=3 and a batch of 16"):
        update(gam_jax.gam(loss_fn, 0.1, 0.5, num_microbatches=3), batch=batch)
    with pytest.raises(ValueError, match=r"same for all, got .*batch\['weights'\]\": 4.*batch\['x'\]\": 16"):
        update(gam_jax.gam(loss_fn, 0.1, 0.5, num_microbatches=4), batch=batch | {"weights": jnp.ones(4)})
    with pytest.raises(ValueError, match="no argument of the loss is an array"):
        update(gam_jax.gam(lambda p: jnp.sum(p["w1"] ** 2), 0.1, 0.5, num_microbatches=4))
    with pytest.raises(TypeError, match="static_args"):
        jax.jit(lambda n: update(gam_jax.gam(loss_fn, 0.1, 0.5, num_microbatches=n), batch=batch))(2)


def test_updates_of_another_structure():
    with pytest.raises(ValueError, match="updates must have the structure"):
        update(gam_jax.gam(loss_fn, 0.1, 0.5), grads={"w1": grads["w1"]}, batch=batch)


def test_inside_optax_masked_says_what_to_do():
    mask = {"w1": True, "b1": False, "w2": True, "b2": False}
    with pytest.raises(ValueError, match="optax.masked.*perturb_mask"):
        update(optax.masked(gam_jax.gam(loss_fn, 0.1, 0.5), mask), batch=batch)


def test_ascent_hvp():
    for factory in (gam_jax.gam, gam_jax.gam_value_and_grad):
        with pytest.raises(ValueError, match="'finite_difference'.*ascent_hvp='hessian'"):
            factory(loss_fn, 0.1, 0.5, ascent_hvp="hessian")
    with pytest.raises(TypeError, match="ascent_hvp"):
        gam_jax.sam(loss_fn, 0.1, ascent_hvp="jvp")


def test_value_and_grad_has_nowhere_to_hold():
    with pytest.raises(ValueError, match="use gam.*between='hold'"):
        gam_jax.gam_value_and_grad(loss_fn, 0.1, 0.5, interval=2, between="hold")


def test_value_and_grad_without_the_count_it_needs():
    for fn in (
        gam_jax.gam_value_and_grad(loss_fn, 0.1, 0.5, interval=2),
        gam_jax.gam_value_and_grad(loss_fn, optax.constant_schedule(0.1), 0.5),
    ):
        with pytest.raises(TypeError, match="count=step"):
            fn(params, batch)
