"""What came in against the method's own gradient: silent mistakes of the caller become a number."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gam_jax
from tests.gam_jax.family import FAMILY
from tests.gam_jax.problems import mlp


def dropout_loss(params, batch, rng=None):
    x = batch["x"] if rng is None else batch["x"] * jax.random.bernoulli(rng, 0.5, batch["x"].shape)
    return mlp().loss_fn(params, {**batch, "x": x})


def seen_with(tx, params, batch, dropped_by, **arguments):
    grads = jax.grad(dropout_loss)(params, batch, dropped_by)
    _, state = tx.update(grads, tx.init(params), params, batch=batch, **arguments)
    return grads, gam_jax.diagnostics(state)


@pytest.mark.parametrize("name", ["gam", "sam", "accelerated_gam"])
def test_another_key_is_seen(name, x64):
    _, params, batch = mlp()
    a, b = jax.random.split(jax.random.key(0))
    tx = FAMILY[name](dropout_loss, mismatch=True)
    _, right = seen_with(tx, params, batch, a, rng=a)
    assert right[f"{name}/mismatch"] < 1e-12
    grads, wrong = seen_with(tx, params, batch, a, rng=b)
    own = jax.grad(dropout_loss)(params, batch, b)
    want = optax.tree.norm(optax.tree.sub(grads, own)) / optax.tree.norm(own)
    np.testing.assert_allclose(wrong[f"{name}/mismatch"], want, rtol=1e-6)
    assert want > 0.1
    _, forgotten = seen_with(tx, params, batch, a, key=a)  # not misspelt, but another name
    assert forgotten[f"{name}/mismatch"] > 0.1


def test_is_free_where_the_method_has_the_gradient():
    _, params, batch = mlp()
    state = gam_jax.gam(dropout_loss).init(params)
    assert set(state.checks) == {"mismatch"}
    assert gam_jax.sam(dropout_loss).init(params).checks == {}
    assert gam_jax.gam(dropout_loss, share=2).init(params).checks == {}  # that of a part is no measure


def test_on_a_share_and_in_groups_and_in_microbatches(x64):
    _, params, batch = mlp()
    for options in ({"share": 2}, {"groups": 2}, {"num_microbatches": 2}):
        tx = gam_jax.gam(mlp().loss_fn, mismatch=True, **options)
        _, state = tx.update(jax.grad(mlp().loss_fn)(params, batch), tx.init(params), params, batch=batch)
        assert state.checks["mismatch"] < 1e-12, options


def test_zero_gradients():
    tx = gam_jax.gam(lambda params: jnp.sum(params**2))
    zero = jnp.zeros(2)
    _, state = tx.update(zero, tx.init(zero), zero)
    assert state.checks["mismatch"] == 0
    _, state = tx.update(zero + 1, state, zero)  # infinite: the last one stays
    assert state.checks["mismatch"] == 0


def test_a_misspelt_option_is_refused():
    for name, hint in {
        "intervall": "did you mean 'interval'",
        "rho_prime": "there is no option",
        "lr": "the options",
    }.items():
        with pytest.raises(TypeError, match=hint):
            gam_jax.sam(mlp().loss_fn, **{name: 2})


def test_a_misspelt_argument_is_refused():
    def loss_fn(params, batch, rngs=None, class_weights=1.0):
        return mlp().loss_fn(params, batch) * class_weights

    _, params, batch = mlp()
    tx = gam_jax.sam(loss_fn)
    update = lambda **more: tx.update(params, tx.init(params), params, batch=batch, **more)  # noqa: E731
    for name, meant in {"rng": "rngs", "class_weight": "class_weights"}.items():
        with pytest.raises(TypeError, match=f"got {name}=.*not '{meant}'.*misspelt"):
            update(**{name: 1.0})
        update(**{name: 1.0, meant: 1.0})  # both: one is for another link
    chex.assert_trees_all_equal(update(value=1.0, key=2)[0], update()[0])  # meant for others
