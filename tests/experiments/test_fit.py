"""One training run: the order of the examples, and that what is recorded is what was measured."""

import dataclasses

import jax
import jax.flatten_util
import numpy as np
import pytest

from experiments import compare
from experiments.config import DigitsConfig
from experiments.data import digits
from experiments.fit import Trainer, batch_order, evaluate, loss_fn
from experiments.models import mlp
from experiments.optim import OptimConfig


def test_every_epoch_shows_every_example_once_in_a_new_order():
    def order(seed):
        return batch_order(jax.random.key(seed), num_examples=12, batch_size=4, epochs=3)

    steps = order(0)
    assert steps.shape == (9, 4)
    epochs = np.asarray(steps).reshape(3, 12)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(12), (3, 1)))
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3
    np.testing.assert_array_equal(steps, order(0))
    assert (np.asarray(order(1)) != np.asarray(steps)).any()


@pytest.fixture(scope="module")
def run():
    """A short SGD run on noisy labels: how it was made, and its parameters."""
    trainer = Trainer(hidden=(8,), batch_size=20, epochs=20)
    optim = OptimConfig(method="plain", learning_rate=0.1, weight_decay=0.0, momentum=0.9)
    split = digits(DigitsConfig(train_size=100), noise=0.3, seed=4)
    return trainer, optim, split, trainer.fit(optim, 4, split.train)[0]


def by_hand(params, examples):
    """Loss and accuracy in NumPy."""
    first, last = jax.tree.map(np.asarray, params)
    hidden = np.maximum(examples.x @ first["weight"] + first["bias"][None], 0)
    logits = hidden @ last["weight"] + last["bias"][None]
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    loss = -log_probabilities[np.arange(len(examples.y)), examples.y].mean()
    return loss, np.mean(logits.argmax(axis=1) == examples.y)


def test_training_learns(run):
    _, _, split, params = run
    start = mlp.init(jax.random.key(0), (64, 8, 10))
    assert evaluate(params, split.train).loss < 0.8 * evaluate(start, split.train).loss
    assert evaluate(params, split.validation).accuracy > 0.4


def test_tuning_records_the_validation_scores(run):
    trainer, optim, split, params = run
    loss, accuracy = by_hand(params, split.validation)
    recorded = compare._tune(trainer, optim, split, 4)
    assert recorded["validation_accuracy"] == accuracy
    np.testing.assert_allclose(recorded["validation_loss"], loss, rtol=1e-5)


def test_final_run_records_test_accuracy_and_the_curvature_of_the_training_loss(run):
    trainer, optim, split, params = run
    recorded = compare._test(trainer, optim, split, 4)
    assert recorded["test_accuracy"] == by_hand(params, split.test)[1]
    loss, accuracy = by_hand(params, split.train)
    assert recorded["train_accuracy"] == accuracy
    np.testing.assert_allclose(recorded["train_loss"], loss, rtol=1e-5)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    hessian = jax.jit(jax.hessian(lambda vector: loss_fn(unravel(vector), split.train)))(flat)
    np.testing.assert_allclose(recorded["top_eigenvalue"], np.linalg.eigvalsh(hessian)[-1], rtol=1e-3)


def test_a_run_that_diverges_is_recorded_as_such(run):
    trainer, optim, split, _ = run
    recorded = compare._test(trainer, dataclasses.replace(optim, learning_rate=1e30), split, 4)
    assert recorded["train_loss"] is None and recorded["top_eigenvalue"] is None


def test_seed_decides_start_and_order_and_no_method_changes_them(run):
    trainer, optim, split, params = run
    again, other = (trainer.fit(optim, seed, split.train)[0] for seed in (4, 5))
    for a, b, c in zip(*map(jax.tree.leaves, (params, again, other)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert (np.asarray(a) != np.asarray(c)).any()
    standing = dataclasses.replace(optim, learning_rate=0.0)
    starts = [
        trainer.fit(config, 4, split.train)[0]
        for config in (standing, dataclasses.replace(standing, method="sam", sam_rho=0.1))
    ]
    jax.tree.map(np.testing.assert_array_equal, *starts)
