"""One run of a study: it is the run that ``train`` makes, and what is recorded is what was measured."""

import dataclasses
import itertools
from pathlib import Path

import jax
import jax.flatten_util
import numpy as np
import pytest

from experiments.data.config import DataConfig
from experiments.data.memory import whole
from experiments.models.config import ModelConfig
from experiments.optim.config import OptimConfig
from experiments.study import fit, job
from experiments.train.config import DevicesConfig, TrainConfig
from experiments.train.mesh import make_mesh
from experiments.train.programs import Programs
from experiments.train.setup import set_up
from experiments.train.state import AVERAGING
from gam_jax.averaging import swad
from tests.experiments.train.runs import use_convnet

PLAIN = OptimConfig(method="plain", learning_rate=0.1, weight_decay=0.01, momentum=0.9)
SAM = dataclasses.replace(PLAIN, method="sam", sam_rho=0.1)
CONFIG = TrainConfig(
    workdir=Path("unused"),
    data=DataConfig(name="digits", validation=0.85, train_size=100, noise=0.3, augment="none", split_seed=4),
    model=ModelConfig(name="mlp", hidden=(8,)),
    optim=PLAIN,
    epochs=20,
    batch_size=30,
    seed=4,
)
WANTED = job.Wanted(measure=(), measure_examples=50, k=2, probes=2, rho=(0.1,), ascent_steps=2, restarts=1)


@pytest.fixture(scope="module")
def trainer():
    return fit.Trainer(CONFIG)


@pytest.fixture(scope="module")
def run(trainer):
    return trainer.fit(CONFIG)


def trained(config):
    """The state that ``train`` ends in."""
    setup = set_up(config)
    programs = Programs(setup, make_mesh(DevicesConfig(), config.batch_size))
    programs.compile()
    state = programs.create()
    for step, batch in enumerate(itertools.islice(setup.pipeline.train(0), setup.steps)):
        state = programs.step(state, batch, step)
        if setup.is_evaluated(step + 1):
            scores = programs.evaluate(state.params, state.model_state, "validation")
            state = programs.validated(state, scores["validation_loss"])
    last = jax.tree.map(np.array, state.params)
    params, model_state = programs.result(state)
    scores = programs.evaluate(params, model_state, "train", "validation", "test")
    return setup, state._replace(params=params, model_state=model_state), scores, last


@pytest.mark.parametrize("network, method, averaging", [("mlp", SAM, "none"), ("convnet", PLAIN, "swad")])
def test_it_is_the_run_of_train(monkeypatch, network, method, averaging):
    """The MLP takes an epoch at once, the network with a convolution single steps; of that the average is taken."""
    if network == "convnet":
        use_convnet(monkeypatch)
    at_once = swad(start_patience=1)  # while the loss still falls
    monkeypatch.setitem(AVERAGING, "swad", at_once)
    model = ModelConfig(
        name="resnet20" if network == "convnet" else "mlp", hidden=(8,) if network == "mlp" else (128, 128)
    )
    data = dataclasses.replace(CONFIG.data, augment="basic")
    config = dataclasses.replace(
        CONFIG, data=data, model=model, optim=method, epochs=3, batch_size=24, label_smoothing=0.1
    )
    config = dataclasses.replace(config, averaging=averaging)
    setup, state, scores, last = trained(config)
    found = fit.Trainer(config).fit(config)
    assert setup.steps == int(found.end.step) == int(state.step) == 12 and int(found.half.step) == setup.half_time == 4
    for name in ("params", "model_state"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            getattr(found.end, name),
            getattr(state, name),
        )
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), state.params, last)
    assert (max(jax.tree.leaves(moved)) > 1e-3) == (averaging == "swad")
    measured = found.evaluate("train", "validation", "test")
    assert measured.keys() == scores.keys() and len(scores) == 6
    for name, value in scores.items():
        tolerance = {"rel": 1e-4} if name.endswith("loss") else {"abs": 0.011}
        assert measured[name] == pytest.approx(value, **tolerance)


def one_device(config):
    """The trainer's programs on one device, and what it says of its step."""
    programs = Programs(set_up(config), make_mesh(DevicesConfig(), config.batch_size, jax.devices()[:1]))
    return programs, programs.compile()


def test_flops_are_those_of_train_and_of_pencil_and_paper(trainer, run):
    """The epoch of a study is a loop. The gradient takes three products a layer, but none for the pixels."""
    products = CONFIG.batch_size * (2 * 64 * 8 + 3 * 8 * 10)
    assert trainer.flops_per_step(CONFIG) == one_device(CONFIG)[1]["flops_per_step"] == 2 * products


def test_layers_in_a_loop_count_as_often_as_they_run():
    config = dataclasses.replace(CONFIG, model=ModelConfig(name="vit", width=0.125, depth=3))
    programs, record = one_device(config)
    weights = sum(leaf.size for leaf in jax.tree.leaves(programs.abstract.params) if leaf.shape[0] == 3)
    patches = config.batch_size * (2 * 2 + 1)
    assert record["flops_per_step"] > 0.99 * 3 * 2 * patches * weights


def by_hand(state, images):
    """Loss and accuracy in NumPy."""
    first, last = jax.tree.map(np.asarray, state.params)
    x = images.image.reshape(len(images.label), -1) / np.float32(16)
    logits = np.maximum(x @ first["weight"] + first["bias"][None], 0) @ last["weight"] + last["bias"][None]
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    loss = -log_probabilities[np.arange(len(x)), images.label].mean()
    return loss, np.mean(logits.argmax(axis=1) == images.label)


def test_tuning_records_the_validation_scores_and_does_not_touch_the_test_set(monkeypatch, trainer, run):
    seen = set()

    class Watched(dict):
        def __getitem__(self, part):
            seen.add(part)
            return super().__getitem__(part)

    parts = Watched(run.pipeline.parts | {"test": None})  # whoever looks at it fails
    monkeypatch.setattr(trainer, "_pipeline", lambda config: dataclasses.replace(run.pipeline, parts=parts))
    recorded = job.tune(trainer, CONFIG)
    loss, accuracy = by_hand(run.end, run.pipeline.parts["validation"])
    assert recorded.pop("seconds") > 0 and seen == {"train", "validation"}
    assert recorded == {
        "diverged": False,
        "validation_accuracy": pytest.approx(accuracy, rel=1e-6),
        "validation_loss": pytest.approx(loss, rel=1e-5),
    }
    with pytest.raises(AttributeError, match="None"):
        job.test(trainer, CONFIG, WANTED)


def test_a_final_run_records_scores_and_the_flatness_of_the_training_loss(trainer, run):
    measure = ("eigenvalues", "trace", "flatness")
    recorded = job.test(trainer, CONFIG, WANTED._replace(measure=measure))
    test, train = (by_hand(run.end, run.pipeline.parts[part]) for part in ("test", "train"))
    found = [recorded[f"{part}_{name}"] for part in ("test", "train") for name in ("loss", "accuracy")]
    np.testing.assert_allclose(found, [*test, *train], rtol=1e-5)
    assert recorded["generalization_gap"] == recorded["test_loss"] - recorded["train_loss"]
    images = jax.tree.map(lambda rows: rows[:50], whole(run.pipeline, "train"))
    _, unravel = jax.flatten_util.ravel_pytree(run.end.params)
    gradient_of, hessian_of = (
        jax.jit(derive(lambda vector: trainer.loss_fn(unravel(vector), (images, {}))))
        for derive in (jax.grad, jax.hessian)
    )
    for stage, state in (("half", run.half), ("end", run.end)):
        flat, _ = jax.flatten_util.ravel_pytree(state.params)
        eigenvalues = np.linalg.eigvalsh(hessian_of(flat))
        np.testing.assert_allclose(recorded[stage]["eigenvalues"], eigenvalues[:-3:-1], rtol=1e-3)
        assert abs(recorded[stage]["trace"] - eigenvalues.sum()) < 10 * recorded[stage]["trace_standard_error"]
        gradient = np.linalg.norm(gradient_of(flat))
        assert 0 < recorded[stage]["R0"][0] and 0.1 * gradient <= recorded[stage]["R1"][0] * (1 + 1e-6)
    assert recorded["half"] != recorded["end"]


def test_a_run_that_diverges_is_a_result(trainer):
    config = dataclasses.replace(CONFIG, optim=dataclasses.replace(PLAIN, learning_rate=1e30))
    recorded = job.test(trainer, config, WANTED._replace(measure=("eigenvalues",)))
    assert recorded.pop("diverged") and recorded.pop("seconds") > 0
    assert set(recorded.values()) == {None} and {"half", "end", "test_accuracy"} < {*recorded}
    assert job.tune(trainer, config)["validation_accuracy"] is None


def test_a_loss_that_is_not_finite_within_a_ball_is_no_fault():
    def measure():
        raise ValueError("the maximum over the ball must be finite, got inf within rho=1.0")

    assert job._value(measure) is None
    with pytest.raises(ZeroDivisionError):
        job._value(lambda: 1 / 0)


def test_one_program_serves_all_numbers_and_seeds_and_the_same_seed_gives_the_same_bits(monkeypatch, trainer, run):
    monkeypatch.setattr(fit, "assemble", lambda *_: pytest.fail("made another program"))
    other = dataclasses.replace(
        CONFIG,
        seed=5,
        data=dataclasses.replace(CONFIG.data, noise=0.1, split_seed=5),
        optim=dataclasses.replace(PLAIN, learning_rate=0.02, momentum=0.5),
    )
    again, changed = trainer.fit(CONFIG), trainer.fit(other)
    for a, b, c in zip(*(jax.tree.leaves(r.end.params) for r in (run, again, changed)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert (np.asarray(a) != np.asarray(c)).any()


def test_no_method_changes_what_the_seed_decides(trainer):
    standing = [dataclasses.replace(optim, learning_rate=0.0) for optim in (PLAIN, SAM)]
    starts = [trainer.fit(dataclasses.replace(CONFIG, optim=optim)) for optim in standing]
    jax.tree.map(np.testing.assert_array_equal, *(start.end.params for start in starts))
    for a, b in zip(*(start.pipeline.parts["train"] for start in starts), strict=True):
        np.testing.assert_array_equal(a, b)
