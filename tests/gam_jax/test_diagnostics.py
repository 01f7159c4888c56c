"""gam_jax.diagnostics: what every method of a chain saw, however the chain is wrapped."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gam_jax
from tests.gam_jax.family import FACTORIES, FAMILY


def loss_fn(params):
    return jnp.sum(params**4)


PARAMS = jnp.array([1.0, 2.0])
GRADS = 4 * PARAMS**3
NORM = float(np.linalg.norm([4.0, 32.0]))


def both():
    return optax.chain(gam_jax.sam(loss_fn, 0.1), gam_jax.gam(loss_fn, 0.2, 0.5), optax.sgd(0.1, 0.9))


WRAPPED = {
    "chain": both,
    "nested": lambda: optax.chain(optax.clip(1e9), optax.chain(optax.chain(both()), optax.identity())),
    "MultiSteps": lambda: optax.MultiSteps(both(), 1),
    "inject_hyperparams": lambda: optax.chain(
        optax.inject_hyperparams(gam_jax.sam)(loss_fn, rho=0.1),
        optax.inject_hyperparams(gam_jax.gam)(loss_fn, rho=0.2, alpha=0.5),
    ),
    "apply_if_finite": lambda: optax.apply_if_finite(both(), 3),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_methods_are_found_by_name(name):
    """grad_norm and first_order_flatness against numpy; the same in jit."""
    tx = WRAPPED[name]()
    _, state = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    for seen in (gam_jax.diagnostics(state), jax.jit(gam_jax.diagnostics)(state)):
        assert {key for key in seen if key.startswith("sam/")} == {f"sam/{f}" for f in gam_jax.SamDiagnostics._fields}
        assert {key for key in seen if key.startswith("gam/")} == {
            f"gam/{f}" for f in (*gam_jax.Diagnostics._fields, "mismatch")
        }
        assert len(seen) == 9
        np.testing.assert_allclose(seen["sam/grad_norm"], NORM, rtol=1e-6)
        f = 12 * PARAMS**2 * GRADS
        there = np.asarray(PARAMS + 0.2 * f / np.linalg.norm(f))
        np.testing.assert_allclose(seen["gam/first_order_flatness"], 0.2 * np.linalg.norm(4 * there**3), rtol=1e-5)


@pytest.mark.parametrize("name", FACTORIES)
def test_every_method_has_its_function_s_name(name):
    tx = FAMILY[name](loss_fn)
    state = tx.init(PARAMS)
    assert {key.split("/")[0] for key in gam_jax.diagnostics(state)} == {FAMILY[name].factory.__name__}
    restored = pickle.loads(pickle.dumps(state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert isinstance(state, gam_jax.State) and state._fields == gam_jax.State._fields


def test_a_state_of_an_older_version_goes_on():
    """There all methods had the same class; such a state keeps it, as a loop needs."""
    tx = FAMILY["gam"](loss_fn)
    old = gam_jax.State(*tx.init(PARAMS))
    _, new = tx.update(GRADS, old, PARAMS)
    assert type(new) is gam_jax.State
    np.testing.assert_allclose(gam_jax.diagnostics(new)["method/grad_norm"], NORM, rtol=1e-6)


def test_a_second_link_of_one_function_has_a_number():
    tx = optax.chain(gam_jax.sam(loss_fn, 0.1), gam_jax.sam(loss_fn, 0.1, gamma=0.1))
    assert {key.split("/")[0] for key in gam_jax.diagnostics(tx.init(PARAMS))} == {"sam", "sam_2"}


def test_what_options_add_and_what_an_ensemble_has():
    tx = gam_jax.gam(loss_fn, 0.1, 0.5, interval=2, between="hold", drop_nonfinite=True)
    seen = gam_jax.diagnostics(jax.vmap(tx.init)(jnp.stack([PARAMS, PARAMS, PARAMS])))
    assert set(seen) == {f"gam/{f}" for f in (*gam_jax.Diagnostics._fields, "held_cosine", "mismatch", "dropped")}
    assert {value.shape for value in seen.values()} == {(3,)}


def test_other_states_have_none():
    assert gam_jax.diagnostics(optax.adam(0.1).init(PARAMS)) == {}
    with pytest.raises(TypeError, match="init and update return"):
        gam_jax.diagnostics(both())
