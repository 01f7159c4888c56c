"""What a study says at its end, and above its picture: numbers that differ clearly, and numbers that do not."""

import dataclasses
from pathlib import Path

import pytest

from experiments.configs import load
from experiments.study.report.conclusion import conclusion, headline
from experiments.study.report.report import publish
from experiments.study.report.study import study_of

ACCURACY = {"plain": (0.90, 0.91, 0.92, 0.91), "sam": (0.91, 0.90, 0.93, 0.90), "gam": (0.93, 0.94, 0.95, 0.95)}


def study(folder=Path("none"), methods=("plain", "sam", "gam"), noise=(0.0, 0.3), accuracy=ACCURACY):
    """A study with made-up accuracies; with wrong labels GAM loses what it gains without."""
    digits = load("digits")
    config = dataclasses.replace(digits, workdir=folder, methods=methods, noise=noise, seeds=4, measure=())
    numbers = {"diverged": False, "test_loss": 1.0, "train_loss": 1.0, "train_accuracy": 0.9, "generalization_gap": 0.0}
    runs = [
        {"kind": "test", "noise": level, "method": method, "seed": seed, "seconds": 1.0, "hyperparameters": {}}
        | numbers
        | {"test_accuracy": 2 * accuracy["plain"][seed] - value if level else value}
        for level in noise
        for method in methods
        for seed, value in enumerate(accuracy[method])
    ]
    costs = [{"kind": "cost", "method": method, "flops_per_step": 1.0} for method in methods]
    return study_of(config, [*costs, *runs], {})


def test_conclusion_names_what_is_clear_and_what_is_noise():
    clean, wrong = conclusion(study()).split("\n")
    assert clean == (
        "clean labels: GAM 94.25 ± 0.48 % test accuracy against SGD's 91.00 ± 0.41 %, better on 4 of 4 seeds; "
        "over SGD clearly better: GAM; no clear difference: SAM"
    )
    assert wrong.startswith("30% wrong labels: GAM 87.75 ± ") and "better on 0 of 4 seeds" in wrong
    assert wrong.endswith("; over SGD clearly worse: GAM; no clear difference: SAM")


def test_headline_says_what_is_within_the_noise():
    said = headline(study())
    assert (
        said == "GAM over SGD, points of test accuracy: +3.2 ± 0.2 with clean labels, -3.2 ± 0.2 with 30% wrong labels"
    )
    assert headline(study(methods=("plain", "sam"), noise=(0.0,))) == (
        "SAM over SGD, points of test accuracy: +0.0 ± 0.6 with clean labels (within the noise)"
    )


def test_one_method_alone_is_compared_with_nothing():
    alone = study(methods=("plain",), noise=(0.0,))
    assert conclusion(alone) == "clean labels: SGD 91.00 ± 0.41 % test accuracy"
    assert headline(alone) == "Test accuracy of SGD"


@pytest.mark.parametrize(("noise", "there"), [((0.0, 0.3), False), ((0.0, 0.2, 0.3), True)])
def test_two_levels_of_noise_are_no_curve(tmp_path, monkeypatch, noise, there):
    monkeypatch.setattr(
        "experiments.study.report.report.write_markdown", lambda study, pictures: tmp_path / "report.md"
    )
    assert (tmp_path / "noise.png" in publish(study(tmp_path, noise=noise))) == there
    assert (tmp_path / "noise.png").exists() == there and (tmp_path / "comparison.png").exists()
