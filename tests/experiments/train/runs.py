"""Small training runs, and what they leave behind."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from experiments.main import main
from experiments.models import registry as models
from experiments.models.functional import functional
from experiments.models.layers import BatchNorm, classifier, conv, dropout, global_mean
from experiments.train.checkpoint import read_checkpoints
from experiments.train.config import DevicesConfig, TrainConfig
from experiments.train.mesh import make_mesh
from experiments.train.programs import Programs
from experiments.train.setup import set_up

ROOT = Path(__file__).parents[3]
SMALL = [
    *("train", "--config", "digits", "--method", "gam", "--averaging", "swad", "--seed", "3"),
    *("--model.hidden", "8", "--data.train-size", "70", "--batch-size", "16", "--epochs", "4", "--log-every", "3"),
]
"""Sixteen steps in four epochs, with state in the optimizer and in the averaging."""
_TIMES = {"seconds", "input_seconds", "step_seconds", "images_per_second"}


def train(workdir, *arguments, command=SMALL):
    """Runs the command here; returns its status."""
    return main([*command, *arguments, "--workdir", str(workdir)])


def refused(capsys, *arguments):
    """What is printed when a command line is refused with status 2, without line breaks and frames."""
    try:
        status = main(arguments)
    except SystemExit as exit:
        status = exit.code
    assert status == 2
    printed = capsys.readouterr()
    return re.sub(r"[\s│]+", " ", printed.out + printed.err)


def train_elsewhere(program, workdir, *arguments, before=(), command=SMALL):
    """Runs a program in a process of its own, with the command as its arguments after those ``before``."""
    line = [sys.executable, "-c", program, *before, *command, *arguments, "--workdir", str(workdir)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True)


def _lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def sessions(workdir):
    """What was recorded of each start."""
    return [record for record in _lines(workdir) if record["kind"] == "session"]


def records(workdir, *kinds):
    """The metrics without sessions and times; of these kinds only, if some are given."""
    return [
        {name: value for name, value in record.items() if name not in _TIMES}
        for record in _lines(workdir)
        if record["kind"] in (kinds or ("train", "evaluation"))
    ]


def state(workdir, step=None):
    """The state in a checkpoint, the last one if no step is given, as NumPy arrays, and its scores."""
    stored = json.loads((workdir / "config.json").read_text())["config"]
    config = TrainConfig.of(workdir, stored)
    programs = Programs(set_up(config), make_mesh(DevicesConfig(), config.batch_size))
    with read_checkpoints(workdir) as checkpoints:
        found, scores = checkpoints.restore(step or checkpoints.steps()[-1], programs.abstract)
    return jax.tree.map(np.asarray, found), scores


def steps(workdir):
    """The steps that there are whole checkpoints of."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def assert_same(one, other):
    """Two runs have left the same metrics and the same state, to the last bit."""
    assert records(one) == records(other)
    assert steps(one) == steps(other)
    (a, scores_a), (b, scores_b) = state(one), state(other)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert scores_a == scores_b


class _ConvNet(nnx.Module):
    """The smallest network with a convolution, batch normalisation and dropout."""

    def __init__(self, config, channels, num_classes, rngs):
        features = round(8 * config.width)
        self.conv = conv(channels, features, 3, dtype="float32", rngs=rngs)
        self.norm = BatchNorm(features)
        self.head = classifier(features, num_classes, rngs, stddev=1.0)
        self.rate = config.dropout

    def __call__(self, x, train, key):
        x = jax.nn.relu(self.norm(self.conv(x), train))
        return self.head(dropout(global_mean(x), self.rate, key))


def use_convnet(monkeypatch):
    """Puts a network that compiles in a second in the place of every network."""

    def build(config, image_shape, num_classes):
        return functional(lambda rngs: _ConvNet(config, image_shape[-1], num_classes, rngs), config)

    monkeypatch.setattr(models, "build", build)
