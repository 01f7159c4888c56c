"""What a user types, and what they are told when it is wrong."""

import dataclasses
import re

import pytest

from experiments.common.errors import Stopped, UserError
from experiments.configs import TRAIN_NAMES, load, load_train
from experiments.main import main
from experiments.optim.config import OptimConfig
from tests.experiments.train.runs import refused

DIGITS = ["compare", "--config", "digits"]


def help_of(capsys, *arguments):
    with pytest.raises(SystemExit) as exit:
        main([*arguments, "--help"])
    assert exit.value.code == 0
    return capsys.readouterr().out


def options(config, prefix=""):
    """The names of all options of a config, those of nested ones after a dot; those of the optimizer have no prefix."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from options(value, prefix if isinstance(value, OptimConfig) else f"{field.name}.")
        else:
            yield f"--{prefix}{field.name}".replace("_", "-")


def test_help_names_every_option_of_compare(capsys):
    text = help_of(capsys, *DIGITS)
    assert all(name in text for name in options(load("digits")))
    assert "25" in text  # the trials of configs/digits.py, not the default of the class


def test_help_names_every_option_of_train_with_the_values_of_the_config_and_the_method(capsys):
    text = help_of(capsys, "train", "--config", "cifar10_pyramidnet110", "--method", "accelerated_gam")
    config = load_train("cifar10_pyramidnet110", "accelerated_gam")
    names = list(options(config))
    assert {"--data.noise", "--model.drop-path", "--gam-rho", "--devices.fsdp", "--checkpoints.every"} <= {*names}
    for name in names:
        assert re.search(rf"{name}[ ,]", text), name
    shown = re.sub(r"[\s│]+", " ", text)
    assert f"(default: {config.optim.sam_rho})" in shown and "(default: pyramidnet110)" in shown
    assert "(default: 200)" in shown  # epochs


def test_help_lists_the_commands(capsys):
    text = help_of(capsys)
    assert all(name in text for name in ("compare", "train", "prepare", "flatness", "landscape"))


def test_help_names_every_config(capsys):
    """In the form of patterns such as cifar10_{a,b}."""
    text = re.sub(r"[\s│]+", "", help_of(capsys, "train", "--config", "digits"))
    for name in TRAIN_NAMES:
        family, *rest = name.split("_", 1 + name.startswith("transfer"))
        assert family in text and all(part in text for part in rest)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["compare"], "--config"),
        (["compare", "--config"], "--config"),
        (["compare", "--config", "digit"], "'digit'.*digits"),
        (["compair"], "compare"),
        ([*DIGITS, "--sedes", "3"], "--sedes.*Perhaps you meant.*--seeds"),
        ([*DIGITS, "--seeds", "three"], "--seeds.*'three'"),
        ([*DIGITS, "--seeds", "1"], "seeds .* got 1"),
        ([*DIGITS, "--methods", "plain", "gamm"], "'gamm'"),
        ([*DIGITS, "--methods", "plain", "plain"], r"methods must name distinct .* got \('plain', 'plain'\)"),
        ([*DIGITS, "--noise", "30"], r"noise must be a fraction in \[0, 1\], got 30.0"),
        ([*DIGITS, "--noise"], "noise must name distinct"),
        ([*DIGITS, "--epochs", "0"], "epochs must be at least 1, got 0"),
        ([*DIGITS, "--batch-size", "500"], "batch_size=500 is more than the 400 training images of digits"),
        ([*DIGITS, "--momentum", "1"], "momentum .* got 1.0"),
        ([*DIGITS, "--model.hidden", "0"], r"model.hidden .* got \(0,\)"),
        ([*DIGITS, "--model.width", "0.5"], "'mlp' has no model.width"),
        ([*DIGITS, "--model.pretrained", "weights"], "model.pretrained must not be given, got weights"),
        ([*DIGITS, "--data.noise", "0.3"], "data.noise must be 0, got 0.3"),
        ([*DIGITS, "--data.validation", "0"], "data.validation must be > 0, .* got 0"),
        ([*DIGITS, "--data.split-seed", "1"], "data.split_seed must be 0, got 1"),
        ([*DIGITS, "--data.name", "imagenet"], "imagenet does not fit into memory"),
        ([*DIGITS, "--workers", "0"], "workers must be at least 1, got 0"),
        ([*DIGITS, "--measure", "sharpness"], "'sharpness'"),
        ([*DIGITS, "--rho", "-1"], r"rho must hold finite numbers > 0, got \(-1.0,\)"),
        ([*DIGITS, "--probes", "1"], "probes must be at least 2, got 1"),
        ([*DIGITS, "--grid.strength", "--methods", "c_flat"], "grid.strength has no values, and 'c_flat' needs some"),
        ([*DIGITS, "--grid.sam-rho", "-0.1"], r"grid.sam_rho .* got \(-0.1,\)"),
        ([*DIGITS, "--grid.learning-rate", "nan"], "grid.learning_rate .* finite"),
        ([*DIGITS, "--trials", "30"], "'plain' has 25 points for trials=30"),
        ([*DIGITS, "--data.train-size", "1200"], "train_size=1200 is not possible: of the 1000"),
    ],
)
def test_mistakes_are_explained(capsys, tmp_path, arguments, message):
    workdir = ["--workdir", str(tmp_path)] if arguments[:3] == DIGITS else []
    assert re.search(message, refused(capsys, *arguments, *workdir))
    assert not list(tmp_path.iterdir())  # a folder left behind would refuse the corrected command


def test_unwritable_workdir_is_found_before_training(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write results to --workdir" in refused(capsys, *DIGITS, "--workdir", str(tmp_path / "file"))


@pytest.mark.parametrize(
    "raised, status, said",
    [
        (UserError("the offending value"), 2, "error: the offending value\n"),
        (Stopped("stopped at step 3"), 75, "stopped at step 3\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted: what is finished is kept, the same command goes on from there\n"),
    ],
)
def test_status_says_what_happened(monkeypatch, capsys, tmp_path, raised, status, said):
    def run(config, command, peak_flops):
        raise raised

    monkeypatch.setattr("experiments.train.run.run", run)
    assert main(["train", "--config", "digits", "--workdir", str(tmp_path)]) == status
    printed = capsys.readouterr()
    first = printed.err[: len(printed.err) - len(said)]
    assert printed.out == "" and printed.err == first + said
    what = "Training GAM, mlp, digits, 30% of the training labels wrong. How long it takes, "
    assert first.startswith(what) and first.endswith(f"; results in {tmp_path}\n") and first.count("\n") == 1


def test_a_bug_is_not_hidden(monkeypatch, tmp_path):
    monkeypatch.setattr("experiments.train.run.run", lambda config, command, peak_flops: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["train", "--config", "digits", "--workdir", str(tmp_path)])


def test_a_run_is_told_how_it_was_started(monkeypatch, tmp_path):
    told = []
    monkeypatch.setattr("experiments.train.run.run", lambda *given: told.append(given[:2]) or {})
    workdir = str(tmp_path / "a b")
    assert main(["train", "--config", "digits", "--method", "sam", "--sam-rho", "0.25", "--workdir", workdir]) == 0
    ((config, command),) = told
    assert (
        command == f"python -m experiments.main train --config digits --method sam --sam-rho 0.25 --workdir '{workdir}'"
    )
    assert (config.optim.method, config.optim.sam_rho, config.workdir) == ("sam", 0.25, tmp_path / "a b")
