"""The seams are optional: imported on first use, with an error that names the extra; and Linen's TrainState."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import optax
import pytest
from flax.training.train_state import TrainState

import gam_jax


@pytest.mark.parametrize(("seam", "library"), [("nnx", "flax"), ("equinox", "equinox")])
def test_seams_are_imported_when_they_are_asked_for(seam, library):
    code = f"""
import sys, gam_jax
assert {library!r} not in sys.modules
sys.modules[{library!r}] = None  # as if it were not installed
for access in (lambda: gam_jax.{seam}, lambda: __import__("gam_jax.{seam}")):
    try:
        access()
    except ImportError as error:
        print(error)
del sys.modules[{library!r}]
print(callable(getattr(gam_jax.{seam}, gam_jax.{seam}.__all__[0])))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    error, again, found = result.stdout.splitlines()
    assert f"pip install 'gam-jax[{seam}]'" in error
    assert (again, found) == (error, "True")


def test_other_names():
    with pytest.raises(AttributeError, match="module 'gam_jax' has no attribute 'linen'"):
        gam_jax.linen  # noqa: B018


def loss_fn(params, batch, scale):
    return scale * jnp.sum((params["w"] - batch) ** 2)


def test_the_error_of_train_state_says_what_works():
    """TrainState.apply_gradients passes no arguments on; the lines of the message do, as they stand there."""
    params, batch, scale = {"w": jnp.ones(2)}, jnp.zeros(2), 2.0
    tx = optax.chain(gam_jax.gam(loss_fn, rho=0.1, alpha=0.5), optax.sgd(0.1))
    state = TrainState.create(apply_fn=loss_fn, params=params, tx=tx)
    grads = jax.grad(loss_fn)(params, batch, scale)
    with pytest.raises(TypeError, match="missing.*'batch', 'scale'.*apply_gradients of Flax's TrainState") as raised:
        state.apply_gradients(grads=grads)
    lines = [line for line in str(raised.value).splitlines() if line.startswith("    ")]
    assert len(lines) == 3
    scope = {"state": state, "grads": grads, "optax": optax, "batch": batch, "scale": scale}
    exec("\n".join(line.strip() for line in lines), scope)

    grads = gam_jax.gam_value_and_grad(loss_fn, rho=0.1, alpha=0.5)(params, batch, scale)[1]
    other = TrainState.create(apply_fn=loss_fn, params=params, tx=optax.sgd(0.1)).apply_gradients(grads=grads)
    assert scope["state"].step == other.step == 1
    assert jnp.allclose(scope["state"].params["w"], other.params["w"], rtol=1e-6)


def test_other_callers_are_not_told_of_train_state():
    tx = gam_jax.gam(loss_fn, rho=0.1, alpha=0.5)
    params = {"w": jnp.ones(2)}
    with pytest.raises(TypeError, match="missing.*scale") as raised:
        tx.update(params, tx.init(params), params, batch=jnp.zeros(2))
    assert "TrainState" not in str(raised.value)
