"""How far and in which metric parameters move: radii by leaf or layer, scalings of one's own, masks of any pytree."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import gam_jax
from tests.gam_jax.family import FACTORIES, FAMILY

PARAMS = {
    "conv": {"kernel": jnp.array([0.4, -0.9]), "bias": jnp.array([0.0])},
    "out": {"kernel": jnp.array([1.2]), "bias": jnp.array([0.3])},
}
FLAT, UNRAVEL = ravel_pytree(PARAMS)  # conv bias, conv kernel, out bias, out kernel


def loss_fn(params):
    w = ravel_pytree(params)[0]
    return jnp.sum(jnp.sin(w + jnp.arange(1.0, 6.0)) ** 2) + jnp.prod(w + 1.0)


def gradient(w):
    return np.asarray(jax.grad(lambda w: loss_fn(UNRAVEL(w)))(jnp.asarray(w, jnp.float32)), np.float64)


def hessian(w):
    return np.asarray(jax.hessian(lambda w: loss_fn(UNRAVEL(w)))(jnp.asarray(w, jnp.float32)), np.float64)


W, GRADS = np.asarray(FLAT, np.float64), jax.grad(loss_fn)(PARAMS)


def update(tx, params=PARAMS):
    updates, state = tx.update(jax.grad(loss_fn)(params), tx.init(params), params)
    return np.asarray(ravel_pytree(updates)[0]), gam_jax.diagnostics(state)


def unit(v):
    return v / np.linalg.norm(v)


BY_LEAF = {"conv": {"kernel": 0.1, "bias": 0.3}, "out": {"kernel": jnp.asarray(0.2), "bias": lambda count: 0.4}}
BY_LAYER = {"conv": 0.3, "out": 0.05}


@pytest.mark.parametrize(
    ("rho", "radii"),
    [(BY_LEAF, [0.3, 0.1, 0.1, 0.4, 0.2]), (BY_LAYER, [0.3, 0.3, 0.3, 0.05, 0.05])],
    ids=["leaf", "layer"],
)
def test_radii_as_parameter_groups_have_them(rho, radii):
    """SAM and GAM: each entry its own rho, the norms those over all entries."""
    radii = np.array(radii)
    got, _ = update(gam_jax.sam(loss_fn, rho))
    np.testing.assert_allclose(got, gradient(W + radii * unit(gradient(W))), rtol=1e-4, atol=1e-5)

    there = W + radii * unit(hessian(W) @ unit(gradient(W)))
    expected = gradient(W) + 0.5 * radii * (hessian(there) @ unit(gradient(there)))
    got, seen = update(gam_jax.gam(loss_fn, rho, 0.5))
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(seen["gam/first_order_flatness"], np.linalg.norm(radii * gradient(there)), rtol=1e-4)
    _, grads = gam_jax.gam_value_and_grad(loss_fn, rho, 0.5)(PARAMS, count=0)
    np.testing.assert_allclose(ravel_pytree(grads)[0], got, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in FACTORIES if "rho" in FAMILY[name].coefficients])
def test_equal_radii_are_one_radius(name):
    rho = FAMILY[name].coefficients["rho"]
    one, seen = update(FAMILY[name](loss_fn))
    for tree in (jax.tree.map(lambda _: rho, PARAMS), {"conv": rho, "out": {"kernel": rho, "bias": rho}}):
        many, seen_many = update(FAMILY[name](loss_fn, rho=tree))
        np.testing.assert_allclose(many, one, rtol=1e-5, atol=1e-6)
        for key, value in seen.items():
            np.testing.assert_allclose(seen_many[key], value, rtol=1e-3)


def test_radii_may_be_traced_and_scheduled_as_a_whole():
    expected, _ = update(gam_jax.sam(loss_fn, {"conv": 0.3, "out": 0.1}))
    traced = jax.jit(lambda a, b: update_only(gam_jax.sam(loss_fn, {"conv": a, "out": b})))(0.3, 0.1)
    np.testing.assert_allclose(traced, expected, rtol=1e-5)
    scheduled, _ = update(gam_jax.sam(loss_fn, lambda count: {"conv": 0.3 + count, "out": 0.1}))
    np.testing.assert_allclose(scheduled, expected, rtol=1e-5)
    injected, _ = update(optax.inject_hyperparams(gam_jax.sam)(loss_fn, rho={"conv": 0.3, "out": 0.1}))
    np.testing.assert_allclose(injected, expected, rtol=1e-5)


def update_only(tx):
    return ravel_pytree(tx.update(GRADS, tx.init(PARAMS), PARAMS)[0])[0]


@pytest.mark.parametrize(
    ("rho", "error", "message"),
    [
        ({"conv": -0.1, "out": 0.1}, ValueError, r"rho\['conv'\]=-0.1"),
        ({"conv": 0.1, "out": "0.1"}, TypeError, r"rho\['out'\]='0.1'"),
        ({"conv": 0.1, "out": jnp.ones(2)}, ValueError, r"rho\['out'\]=Array"),
        ({"conv": 0.1}, ValueError, r"rho must be .* structure of the parameters.*got PyTreeDef\(\{'conv': \*\}\)"),
        ({"conv": 0.1, "out": {"kernel": 0.1}}, ValueError, "or a prefix of it"),
        ({}, TypeError, "rho={}"),
    ],
)
def test_radii_that_do_not_fit(rho, error, message):
    with pytest.raises(error, match=message):
        update(gam_jax.sam(loss_fn, rho))


def test_only_rho_has_radii():
    with pytest.raises(TypeError, match="alpha={'conv': 0.1"):
        gam_jax.gam(loss_fn, 0.1, {"conv": 0.1, "out": 0.1})


def asam(scaling, rho=0.5):
    """Kwon et al., Eq. 3: rho T^2 g / ||T g||."""
    g = gradient(W)
    return gradient(W + rho * scaling**2 * g / np.linalg.norm(scaling * g))


AUTHORS = np.array([1.0, 0.41, 0.91, 1.0, 1.21])  # biases 1, weights |w| + 0.01


@pytest.mark.parametrize(
    ("adaptive", "scaling"),
    [
        (True, np.abs(W)),
        (gam_jax.asam_scaling, AUTHORS),
        (functools.partial(gam_jax.asam_scaling, eta=0.5), np.array([1.0, 0.9, 1.4, 1.0, 1.7])),
        (gam_jax.asam_scaling(PARAMS), AUTHORS),
        (lambda params: jax.tree.map(lambda p: jnp.abs(p) + 2.0, params), np.abs(W) + 2),
        ({"conv": {"kernel": jnp.array([1.0, 2.0]), "bias": 3.0}, "out": {"kernel": jnp.ones(1), "bias": np.ones(1)}},
         np.array([3.0, 1.0, 2.0, 1.0, 1.0])),
    ],
    ids=["True", "asam_scaling", "eta", "pytree", "function", "scalars"],
)  # fmt: skip
def test_scalings(adaptive, scaling):
    got, seen = update(gam_jax.sam(loss_fn, 0.5, adaptive=adaptive))
    np.testing.assert_allclose(got, asam(scaling), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(seen["sam/grad_norm"], np.linalg.norm(scaling * gradient(W)), rtol=1e-5)


def test_biases_are_told_by_name_or_by_hand():
    names = {"kernel": 2.0, "bias": 2.0, "b": 2.0, "b1": 2.0, "out_bias": 2.0, "scale": 2.0, "beta": 2.0, "w": 2.0}
    found = gam_jax.asam_scaling({name: jnp.asarray(value) for name, value in names.items()}, eta=1.0)
    assert {name for name, value in found.items() if value == 1} == {"bias", "b", "b1", "out_bias"}
    assert {name for name, value in found.items() if value == 3} == {"kernel", "scale", "beta", "w"}
    nested = gam_jax.asam_scaling({"biased": [jnp.asarray(2.0)], "bias": {"value": jnp.asarray(2.0)}}, eta=1.0)
    assert (nested["biased"][0], nested["bias"]["value"]) == (1, 1)
    with pytest.raises(ValueError, match=r"params\[0\] has none: give biases="):
        gam_jax.asam_scaling([jnp.ones(2), jnp.ones(2)])
    by_hand = gam_jax.asam_scaling([jnp.ones(2), jnp.ones(2)], biases=[False, True])
    np.testing.assert_allclose(by_hand, [[1.01, 1.01], [1, 1]])
    with pytest.raises(ValueError, match="eta=-1"):
        gam_jax.asam_scaling(PARAMS, eta=-1)


@pytest.mark.parametrize(
    ("adaptive", "error", "message"),
    [
        (lambda params: {"conv": 1.0}, ValueError, "adaptive must have the structure"),
        (jax.tree.map(lambda _: True, PARAMS), TypeError, "adaptive must hold floating-point arrays, got True at"),
        (jax.tree.map(lambda _: jnp.ones(7), PARAMS), ValueError, r"got shape \(7,\)"),
    ],
)
def test_scalings_that_do_not_fit(adaptive, error, message):
    with pytest.raises(error, match=message):
        update(gam_jax.sam(loss_fn, 0.5, adaptive=adaptive))


class Model(eqx.Module):
    """A pytree that can be called."""

    kernel: jax.Array
    bias: jax.Array

    def __call__(self, x):
        return self.kernel * x + self.bias


def test_models_as_masks_scalings_and_radii_are_pytrees():
    """As optax has it: what is called is a function, not a pytree that can be called."""
    params = Model(jnp.array([0.5, -1.0]), jnp.array([0.2, 0.1]))
    quartic = lambda m: jnp.sum(m(2.0) ** 4)  # noqa: E731
    grads = jax.grad(quartic)(params)
    g, w = np.ravel([grads.kernel, grads.bias]), np.ravel([params.kernel, params.bias])
    tree = lambda v: Model(jnp.asarray(v[:2], jnp.float32), jnp.asarray(v[2:], jnp.float32))  # noqa: E731
    mask = np.array([1.0, 1.0, 0.0, 0.0])
    for options, ascent in [
        ({"rho": 0.1, "perturb_mask": Model(True, False)}, 0.1 * mask * g / np.linalg.norm(mask * g)),
        (
            {"rho": 0.1, "adaptive": tree(2 * mask + 1)},
            0.1 * (2 * mask + 1) ** 2 * g / np.linalg.norm((2 * mask + 1) * g),
        ),
        ({"rho": Model(0.1, 0.4)}, np.array([0.1, 0.1, 0.4, 0.4]) * unit(g)),
    ]:
        tx = gam_jax.sam(quartic, **options)
        got, _ = tx.update(grads, tx.init(params), params)
        expected = jax.grad(quartic)(tree(w + ascent))
        np.testing.assert_allclose(got.kernel, expected.kernel, rtol=1e-4)
        np.testing.assert_allclose(got.bias, expected.bias, rtol=1e-4)


def test_a_schedule_that_is_a_pytree_is_a_schedule():
    class Halving(eqx.Module):
        start: float

        def __call__(self, count):
            return self.start / 2.0**count

    got, _ = update(gam_jax.sam(loss_fn, Halving(0.4)))
    np.testing.assert_allclose(got, gradient(W + 0.4 * unit(gradient(W))), rtol=1e-4, atol=1e-5)
