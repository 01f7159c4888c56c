"""Clipping bounds what the base optimizer gets: after the method, before weight decay and momentum."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.common.errors import UserError
from experiments.optim.chain import build
from experiments.optim.config import OptimConfig, check_optim

GAM = OptimConfig(method="gam", learning_rate=1.0, weight_decay=0.5, momentum=0.0, gam_rho=0.1, gam_alpha=0.5, clip=2.0)
PARAMS = {"a": jnp.array([0.5, -1.0]), "b": jnp.array([[2.0]])}


def loss_fn(params, batch):
    return batch * sum(jnp.sum(leaf**4) for leaf in jax.tree.leaves(params))


def first_update(optim, batch):
    """Of the first step, in which the learning rate is the peak."""
    tx = build(optim, loss_fn, steps=10).tx
    gradient = jax.grad(loss_fn)(PARAMS, batch)
    return tx.update(gradient, tx.init(PARAMS), PARAMS, batch=batch)[0]


@pytest.mark.parametrize(("batch", "clipped"), [(1.0, True), (0.01, False)])
def test_the_method_is_clipped_and_the_decay_is_not(x64, batch, clipped):
    decay = jax.tree.map(lambda leaf: -0.5 * leaf, PARAMS)
    whole = optax.tree.sub(first_update(dataclasses.replace(GAM, clip=None), batch), decay)
    found = optax.tree.sub(first_update(GAM, batch), decay)
    norm = float(optax.tree.norm(whole))
    assert (norm > 2) == clipped and float(optax.tree.norm(jax.grad(loss_fn)(PARAMS, batch))) != pytest.approx(norm)
    scale = 2 / norm if clipped else 1.0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, scale * b, rtol=1e-6), found, whole)


def test_the_bound_is_a_number_of_the_program_and_its_absence_is_not():
    bounds = [jax.tree.structure(dataclasses.replace(GAM, clip=clip)) for clip in (1.0, 2.0, None)]
    assert bounds[0] == bounds[1] != bounds[2]


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan"), float("inf")])
def test_a_bound_that_is_none_is_refused(clip):
    with pytest.raises(UserError, match=f"clip must be a finite number > 0, got {clip}"):
        check_optim(dataclasses.replace(GAM, clip=clip))
