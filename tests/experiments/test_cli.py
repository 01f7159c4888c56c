"""What a user types, and what they are told when it is wrong."""

import dataclasses
import re

import pytest

from experiments.config import CompareConfig
from experiments.main import main

DIGITS = ["compare", "--config", "digits"]


def refused(capsys, *arguments):
    """What is printed when the command line is refused with status 2."""
    try:
        status = main(arguments)
    except SystemExit as exit:
        status = exit.code
    assert status == 2
    printed = capsys.readouterr()
    return re.sub(r"[\s│]+", " ", printed.out + printed.err)


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as exit:
        main([*DIGITS, "--help"])
    assert exit.value.code == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(CompareConfig):
        assert f"--{field.name.replace('_', '-')}" in text
    assert "25" in text  # the trials of configs/digits.py, not the default of the class


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["compare"], "--config"),
        (["compare", "--config"], "--config"),
        (["compare", "--config", "digit"], "'digit' .*'digits'"),
        (["compair"], "compare"),
        ([*DIGITS, "--sedes", "3"], "--sedes.*Perhaps you meant.*--seeds"),
        ([*DIGITS, "--seeds", "three"], "--seeds.*'three'"),
        ([*DIGITS, "--seeds", "1"], "seeds .* got 1"),
        ([*DIGITS, "--methods", "sgd", "gamm"], "'gamm'"),
        ([*DIGITS, "--methods", "sgd", "sgd"], r"methods must name distinct .* got \('sgd', 'sgd'\)"),
        ([*DIGITS, "--noise", "30"], r"noise must be a fraction in \[0, 1\], got 30.0"),
        ([*DIGITS, "--noise"], "noise must name distinct"),
        ([*DIGITS, "--epochs", "0"], "epochs must be at least 1, got 0"),
        ([*DIGITS, "--batch-size", "30"], "batch_size=30 and train_size=400"),
        ([*DIGITS, "--momentum", "1"], "momentum .* got 1.0"),
        ([*DIGITS, "--hidden", "0"], r"hidden .* got \(0,\)"),
        ([*DIGITS, "--grid.sam-rho", "-0.1"], r"grid.sam_rho .* got \(-0.1,\)"),
        ([*DIGITS, "--grid.learning-rate", "nan"], "grid.learning_rate .* finite"),
        ([*DIGITS, "--trials", "30"], "'sgd' has 25 points for trials=30"),
        ([*DIGITS, "--data.train-size", "1200"], "leave no validation set .*1200"),
    ],
)
def test_mistakes_are_explained(capsys, tmp_path, arguments, message):
    workdir = ["--workdir", str(tmp_path)] if arguments[:3] == DIGITS else []
    assert re.search(message, refused(capsys, *arguments, *workdir))
    assert not list(tmp_path.iterdir())  # a folder left behind would refuse the corrected command


def test_unwritable_workdir_is_found_before_training(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write results to --workdir" in refused(capsys, *DIGITS, "--workdir", str(tmp_path / "file"))
