"""What a command cannot do is refused in one line that prints the value, before anything is written."""

import re

import pytest

from experiments.common.errors import UserError
from experiments.data.config import DataConfig
from experiments.main import main
from experiments.optim.chain import build
from experiments.optim.config import OptimConfig

TRAIN = ["train", "--config", "digits", "--batch-size", "80"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian", "--config", "digits"], "there is no command 'trian': did you mean 'train'?"),
        (["zzz"], "there is no command 'zzz': known are 'compare', "),
        ([*TRAIN, "--seed", "2147483648"], "seed must be in 0 ... 2147483647, got 2147483648"),
        ([*TRAIN, "--seed", "4294967296"], "seed must be in 0 ... 2147483647, got 4294967296"),
        ([*TRAIN, "--seed", str(10**30)], f"seed must be in 0 ... 2147483647, got {10**30}"),
        ([*TRAIN, "--interval", "376"], "interval must be at most the number of training steps, 375, got 376"),
        ([*TRAIN, "--curvature-share", "81"], "curvature_share must be at most batch_size, 80, got 81"),
        ([*TRAIN, "--warmup", "0.99999"], "warmup must leave a step after it, got 0.99999 of 375 steps"),
        *(
            ([*TRAIN, "--data.augment", name], f"data.augment={name} is for images of at least 16 x 16 pixels")
            for name in ("cutout", "randaugment", "autoaugment")
        ),
    ],
)
def test_refused(capsys, tmp_path, arguments, message):
    workdir = ["--workdir", str(tmp_path)] if arguments[0] == "train" else []
    assert main([*arguments, *workdir]) == 2
    *before, said = capsys.readouterr().err.splitlines()
    assert said.startswith("error: ") and message in said
    assert len(before) <= 1 and all(line.startswith("Training ") for line in before)  # the first sentence
    assert not list(tmp_path.iterdir())


def test_a_seed_of_the_split():
    with pytest.raises(UserError, match="data.split_seed must be in 0 ... 2147483647, got 4294967296"):
        DataConfig(name="digits", split_seed=2**32)


def test_a_folder_of_studies_that_is_not_there(capsys, tmp_path):
    assert main(["report", "--studies", str(tmp_path / "none"), "--output", str(tmp_path / "out")]) == 2
    assert re.fullmatch(r"error: there is no folder .*/none: give the folders .*\n", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_the_usual_short_name_of_the_learning_rate(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("experiments.train.run.run", lambda config, *_: asked.append(config) or {})
    assert main([*TRAIN, "--lr", "0.25", "--workdir", str(tmp_path)]) == 0
    assert asked[0].optim.learning_rate == 0.25


@pytest.mark.parametrize("warmup", [5e-324, 1e-320, 1e-12, 1 / 3])
def test_any_warmup_that_leaves_a_step_has_a_finite_schedule(warmup):
    optim = OptimConfig(method="plain", learning_rate=0.1, weight_decay=0.0, momentum=0.9, warmup=warmup)
    for steps in (1, 2, 3, 1000):
        rates = [float(build(optim, lambda params: 0.0, steps).learning_rate(step)) for step in range(min(steps, 5))]
        assert all(0 <= rate < 0.1001 for rate in rates)
