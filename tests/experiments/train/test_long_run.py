"""A run of thousands of steps: after its first epoch nothing compiles again, and nothing is kept."""

import contextlib

import jax
import pytest

from experiments.train.checkpoint import Checkpoints
from experiments.train.programs import Programs
from tests.experiments.train.runs import records, train
from tests.growth import nothing_compiled, nothing_grown

pytestmark = pytest.mark.slow
MANY = ("--epochs", "750", "--eval-epochs", "50", "--log-every", "4", "--interval", "2", "--averaging", "none")
"""Epochs of four steps each, of which every 200th is evaluated and saved."""


def test_training_does_not_grow(tmp_path, monkeypatch):
    """From the first evaluation on, and after a quarter of the steps, up to the last evaluation but one."""
    step, save = Programs.step, Checkpoints.save
    begin = {201: nothing_compiled, 801: lambda: nothing_grown(objects=2_000)}
    with contextlib.ExitStack() as watching:

        def watched(self, state, batch, count):
            if count in begin:
                watching.enter_context(begin[count]())
            if count == 2801:
                jax.block_until_ready(state)
                watching.close()
            return step(self, state, batch, count)

        monkeypatch.setattr(Programs, "step", watched)
        monkeypatch.setattr(Checkpoints, "save", lambda self, *what: (save(self, *what), self.wait()))
        assert train(tmp_path, *MANY) == 0
    assert records(tmp_path, "evaluation")[-1]["step"] == 3000
