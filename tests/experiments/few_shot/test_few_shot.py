"""The few-shot study end to end on digits with a small network, and the rules of its protocol."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.progress import Progress

from experiments.data.config import DataConfig
from experiments.data.memory import read
from experiments.few_shot import report, study
from experiments.few_shot.config import FewShotConfig
from experiments.few_shot.episode import balanced, draw_episode, joined
from experiments.main import main
from experiments.models.config import ModelConfig
from experiments.optim.config import OptimConfig
from tests.experiments.train.runs import refused

CONFIG = FewShotConfig(
    model=ModelConfig(name="mlp", hidden=(24, 16)),
    perturbed=("1", "2"),
    features=8,
    steps=20,
    trials=1,
    tuning_seeds=1,
    seeds=2,
)
COMMAND = [
    *("few-shot", "--model.name", "mlp", "--model.width", "1", "--model.depth", "None", "--model.hidden", "24", "16"),
    *("--perturbed", "1", "2", "--features", "8", "--steps", "20", "--trials", "1", "--tuning-seeds", "1"),
    *(
        "--seeds",
        "2",
        "--learning-rate",
        "0.1",
        "--weight-decay",
        "5e-3",
        "--bound",
        "0.1",
        "--session-learning-rate",
        "0.01",
    ),
]
OPTIM = OptimConfig(method="plain", learning_rate=0.1, weight_decay=5e-4, momentum=0.9)
NUMBERS = {"learning_rate": 0.1, "weight_decay": 5e-4, "bound": 0.02, "session_learning_rate": 1.0}


@pytest.fixture(scope="module")
def runner():
    return study.Runner(CONFIG)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("few_shot")
    assert main([*COMMAND, "--workdir", str(folder)]) == 0
    return folder


def lines(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_the_study_runs_end_to_end(finished):
    config, records = study.read_study(finished)
    tests = [r for r in records if r["kind"] == "test"]
    assert {(r["method"], r["seed"]) for r in tests} == {(m, s) for m in config.methods for s in (0, 1)}
    for record in tests:
        assert len(record["accuracy"]) == 5 and record["new_accuracy"][0] is None
        assert record["accuracy"][0] == record["base_accuracy"][0] > 0.3  # of six classes: it has learned
    text = (finished / "report.md").read_text()
    assert report.result_table(config, records) in text and "few-shot --model.name mlp" in text
    assert (finished / "few_shot.png").stat().st_size > 10_000


def test_methods_of_a_seed_start_alike_and_end_apart(finished):
    found = {r["method"]: r["accuracy"] for r in lines(finished) if (r["kind"], r["seed"]) == ("test", 0)}
    assert found["frozen"][0] == found["fine_tuning"][0] == found["joint"][0]  # the same base session
    assert len({tuple(accuracies) for accuracies in found.values()}) == 4


@pytest.mark.slow
def test_the_same_command_goes_on_and_comes_to_the_same(finished, tmp_path):
    kept = (finished / "results.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "results.jsonl").write_text("".join(kept[:-3]) + kept[-3][:20])  # killed in the middle of a line
    (tmp_path / "config.json").write_text((finished / "config.json").read_text())
    assert main([*COMMAND, "--workdir", str(tmp_path)]) == 0
    again = [r for r in lines(tmp_path) if r["kind"] != "session"]
    assert again == [r for r in lines(finished) if r["kind"] != "session"]


def test_tuning_sees_no_test_images(monkeypatch, tmp_path):
    """And every method has as many trials on as many seeds, which are none of those of the test."""
    asked = []

    def run(self, method, numbers, seed, part, sessions):
        asked.append((method, seed, part, tuple(sessions)))
        return {"accuracy": [0.5], "base_accuracy": [0.5], "new_accuracy": [0.5]}

    monkeypatch.setattr(study.Runner, "run", run)
    config = dataclasses.replace(CONFIG, workdir=tmp_path, trials=3, tuning_seeds=2)
    with study.open_study(config) as store:
        study.run_study(study.Runner(config), store, Progress(disable=True), "command")
    tuned, tested = ([a for a in asked if a[2] == part] for part in ("validation", "test"))
    assert [sum(a[0] == m for a in tuned) for m in config.methods] == [6] * 4 and len(tested) == 8
    assert {a[1] for a in tuned} == {1000, 1001} and {a[1] for a in tested} == {0, 1}
    assert {a[3] for a in tuned} == {(4,)} and {a[3] for a in tested} == {(0, 1, 2, 3, 4)}


def test_the_best_trial_is_chosen_and_its_base_taken_over():
    config = dataclasses.replace(CONFIG, trials=9)
    records = [
        {"kind": "tune", "method": m, "trial": t, "seed": 1000, "accuracy": [float(t == best)]}
        for m, best in {"frozen": 4, "f2m": 7}.items()
        for t in range(9)
    ]
    frozen = study.chosen(config, records, "frozen")
    assert frozen == study.trials(config, "frozen", {})[4]
    assert study.chosen(config, records, "f2m") == study.trials(config, "f2m", frozen)[7]
    assert len({tuple(t.values()) for t in study.trials(config, "f2m", frozen)}) == 9


def test_episode():
    config = dataclasses.replace(CONFIG, data=DataConfig(name="digits", validation=0.2, augment="none"))
    one, other = (draw_episode(config, read(config.data), 8, 10, seed) for seed in (0, 1))
    assert set(one.base.label) == set(range(6)) and [set(few.label) for few in one.shots] == [{6}, {7}, {8}, {9}]
    assert len(one.exemplars.label) == 30 and all(len(few.label) == 5 for few in one.shots)
    rows = lambda images: {image.tobytes() for image in images.image}  # noqa: E731
    assert rows(one.exemplars) <= rows(one.base)
    assert not (rows(one.base) | rows(joined(one.shots))) & rows(one.validation)
    assert rows(one.test) == rows(other.test) and rows(one.validation) != rows(other.validation)
    assert rows(one.shots[0]) != rows(other.shots[0]) and len(one.joint(4).label) == len(one.base.label) + 20


def test_batches_have_every_class_alike():
    labels = np.array([0] * 100 + [1] * 5 + [2] * 7)
    rows = balanced(labels, 4, 30, seed=0)
    assert rows.shape == (4, 30)
    assert all((np.bincount(labels[row]) == 10).all() for row in rows)
    np.testing.assert_array_equal(rows, balanced(labels, 4, 30, seed=0))


def test_a_later_session_of_f2m_moves_the_noisy_weights_within_the_bound(runner):
    """The others stay bitwise; fine-tuning moves them; the box is that of the base, also two sessions later."""
    learner, episode = runner._learner, runner._episode(0)
    base = learner.train(episode.base, 0, OPTIM)
    old = learner.prototypes(base, episode.base)
    net = base
    for number in (1, 2):
        few = joined([episode.exemplars, *episode.shots[:number]])
        net = learner.learn("f2m", net, base, few, old, NUMBERS)
        old = learner.prototypes(net, episode.shots[number - 1], old)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), net.params, base.params)
    for distance, moves in zip(*map(jax.tree.leaves, (moved, learner.mask)), strict=True):
        assert 0.005 < distance < 0.010001 if moves else distance == 0
    assert sum(jax.tree.leaves(learner.mask)) == 2  # the weights of two layers, not their biases
    tuned = learner.learn("fine_tuning", base, base, few, learner.prototypes(base, episode.base), NUMBERS)
    after, before = (jax.tree.leaves(trained.params["embedder"]) for trained in (tuned, base))
    assert all(np.any(a != b) for a, b in zip(after, before, strict=True))


def test_without_noise_the_base_session_is_plain(runner):
    learner, episode = runner._learner, runner._episode(0)
    plain, still, noisy = (learner.train(episode.base, 0, OPTIM, bound) for bound in (None, 0.0, 0.5))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)  # noqa: E731
    jax.tree.map(close, still.params, plain.params)
    with pytest.raises(AssertionError):
        jax.tree.map(close, noisy.params, plain.params)


def test_old_prototypes_stay(runner):
    learner, episode = runner._learner, runner._episode(0)
    net = learner.train(episode.base, 0, OPTIM)
    old = learner.prototypes(net, episode.exemplars)
    both = learner.prototypes(net, joined([episode.base, episode.shots[0]]), old)
    np.testing.assert_array_equal(both.means[:6], old.means[:6])
    mean = learner.features(net, episode.shots[0].image).mean(0)
    np.testing.assert_allclose(both.means[6], mean, rtol=1e-4, atol=1e-5)
    assert (np.asarray(both.counts) > 0).sum() == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "f2m"], r"methods must begin with frozen, got \('f2m',\)"),
        (["--trials", "10"], "frozen has 9 settings for trials=10"),
        (["--perturbed", "blocks.7"], "perturbed names 'blocks.7'"),
        (["--base-classes", "10"], "base_classes=10, and digits has no more"),
        (["--shots", "0"], "shots must be at least 1, got 0"),
        (["--bound", "-1"], r"bound must hold finite numbers >= 0, got \(-1.0,\)"),
        (["--spread", "2", "--draws", "1"], "draws=1"),
        (["--data.validation", "0"], "data.validation must be > 0"),
        (["--data.name", "imagenet"], "imagenet does not fit into memory"),
    ],
)
def test_mistakes_are_explained(capsys, tmp_path, arguments, message):
    assert re.search(message, refused(capsys, "few-shot", *arguments, "--workdir", str(tmp_path / "new")))
    assert not list(tmp_path.iterdir())  # a folder left behind would refuse the corrected command


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit):
        main(["few-shot", "--help"])
    text = capsys.readouterr().out
    assert all(
        f"--{field.name.replace('_', '-')}" in text
        for field in dataclasses.fields(FewShotConfig)
        if field.name not in ("data", "model")
    )


def test_the_config_comes_back_from_json():
    identity = FewShotConfig().identity()
    assert FewShotConfig.of(Path("other"), json.loads(json.dumps(identity))).identity() == identity
