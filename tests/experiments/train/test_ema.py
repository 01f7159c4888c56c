"""The moving average of the iterates: a plain mean at first, then weights that fall by the decay."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common.errors import UserError
from experiments.configs import load_train
from experiments.train.ema import ema
from tests.experiments.train.runs import records, state, train


def weights(decay, steps):
    """Of each iterate in the average: their steps are unit vectors, so that the average shows them."""
    averaging = ema(decay)
    found = averaging.init(jnp.zeros(steps))
    update = jax.jit(averaging.update)
    for iterate in jnp.eye(steps):
        found = update(found, iterate)
    return np.asarray(averaging.average(found, jnp.zeros(steps)))


def test_a_mean_first_and_then_a_moving_one():
    np.testing.assert_allclose(weights(0.75, 4), [1 / 4] * 4, rtol=1e-6)
    np.testing.assert_allclose(weights(0.75, 6), [*[1 / 4 * 0.75**2] * 4, 0.25 * 0.75, 0.25], rtol=1e-6)
    np.testing.assert_allclose(weights(0.0, 3), [0, 0, 1])


def test_before_the_first_step_it_is_the_parameters_and_types_stay():
    averaging, params = ema(0.9), jnp.array([1.5, 2.0], jnp.bfloat16)
    found = averaging.init(params)
    assert found.mean.dtype == jnp.float32
    average = averaging.average(found, params)
    assert average.dtype == jnp.bfloat16 and (average == params).all()


@pytest.mark.slow
def test_a_run_is_scored_with_its_average(tmp_path):
    more = ("--averaging", "ema", "--ema-decay", "0.8", "--data.validation", "0")
    assert train(tmp_path / "one", *more) == 0
    found, scores = state(tmp_path / "one")
    assert found.averaging.iterates == 16
    last = records(tmp_path / "one", "evaluation")[-1]
    assert last["step"] == 16 and last["test_loss"] != scores["test_loss"]


def test_a_decay_is_for_ema_alone_and_below_one():
    config = load_train("digits", "plain")
    with pytest.raises(UserError, match="averaging='none' has no ema_decay, got 0.5"):
        dataclasses.replace(config, ema_decay=0.5)
    with pytest.raises(UserError, match=r"ema_decay must be in \[0, 1\), got 1.0"):
        dataclasses.replace(config, averaging="ema", ema_decay=1.0)
    with pytest.raises(UserError, match="mixup must be a finite number >= 0, got -0.1"):
        dataclasses.replace(config, mixup=-0.1)
