"""One training run: what it leaves behind is what was trained, and whatever goes wrong is explained."""

import contextlib
import dataclasses
import itertools
import json
import re
import resource
import shutil

import jax
import numpy as np
import pytest

from experiments.common.errors import UserError
from experiments.main import main
from experiments.measure.flatness.restore import restore
from experiments.train import programs
from experiments.train.checkpoint import open_checkpoints
from experiments.train.config import CheckpointsConfig, DevicesConfig, TrainConfig
from experiments.train.mesh import make_mesh
from experiments.train.metrics import open_metrics
from experiments.train.setup import set_up
from tests.experiments.train.runs import SMALL, records, refused, sessions, state, steps, train, use_convnet

AVERAGED = ("--learning-rate", "0.3", "--method", "plain")
"""With these the average starts with the third epoch of four."""


@contextlib.contextmanager
def watched_iterates():
    """The parameters after each step of the runs inside."""
    seen, original = [], programs.Programs.step

    def watched(self, state, *arguments):
        state = original(self, state, *arguments)
        seen.append(jax.tree.map(np.asarray, state.params))
        return state

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(programs.Programs, "step", watched)
        yield seen


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """A run with SWAD, and its iterates."""
    workdir = tmp_path_factory.mktemp("averaged") / "run"
    with watched_iterates() as iterates:
        assert train(workdir, *AVERAGED, "--epochs", "6") == 0
    return workdir, iterates


@pytest.fixture(scope="module")
def finished(averaged):
    return averaged[0]


@pytest.fixture
def copied(finished, tmp_path):
    """A finished run, to spoil."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def config_of(workdir):
    return json.loads((workdir / "config.json").read_text())["config"]


def edit_config(workdir, **changes):
    (workdir / "config.json").write_text(json.dumps({"config": config_of(workdir) | changes}))


def test_the_exact_config_and_the_versions_lie_beside(finished):
    stored = config_of(finished)
    assert stored["seed"] == 3 and stored["optim"]["learning_rate"] == 0.3 and stored["model"]["hidden"] == [8]
    config = TrainConfig.of(finished, stored)
    assert config.identity() == stored
    (session,) = sessions(finished)
    assert {"jax", "optax", "flax", "source"} <= session["made_with"].keys()
    assert session["command"].startswith("python -m experiments.main train --config digits")
    assert session["step"] == 0 and session["flops_per_step"] > 0 and "cores" in session["hardware"]


def test_losses_of_every_third_step_and_scores_of_every_epoch(finished):
    logged = records(finished, "train")
    assert [record["step"] for record in logged] == [3, 4, 6, 8, 9, 12, 15, 16, 18, 20, 21, 24]
    assert [record["epoch"] for record in logged][:3] == [0.75, 1, 1.5]
    rates = [0.3 * 0.5 * (1 + np.cos(np.pi * (record["step"] - 1) / 24)) for record in logged]
    np.testing.assert_allclose([record["learning_rate"] for record in logged], rates, rtol=1e-5)
    evaluated = records(finished, "evaluation")
    assert [(record["step"], record["epoch"]) for record in evaluated] == [(4 * e, e) for e in range(1, 7)]
    names = {f"{part}_{score}" for part in ("validation", "test") for score in ("loss", "accuracy")}
    assert all(record.keys() == {"kind", "step", "epoch"} | names for record in evaluated)


def test_last_and_best_epoch_are_both_named(finished):
    _, scores = state(finished)
    evaluated = records(finished, "evaluation")
    best = max(evaluated, key=lambda record: record["validation_accuracy"])
    assert (scores["step"], scores["epoch"], scores["best_epoch"]) == (24, 6, best["epoch"])
    for part in ("validation", "test"):
        assert scores[f"best_epoch_{part}_accuracy"] == best[f"{part}_accuracy"]
    run = restore(finished)
    for part in ("train", "validation", "test"):
        assert run.evaluate(part).items() <= scores.items()


def test_swad_saves_the_average_of_the_iterates(averaged):
    workdir, iterates = averaged
    losses = [record["validation_loss"] for record in records(workdir, "evaluation")]
    start = next(i for i in range(3, 7) if losses[i - 3] == min(losses[i - 3 : i])) - 3
    assert len(iterates) == 24 and 0 < start < 6  # the average starts with a later epoch, and none ends it
    assert max(losses) < 1.3 * np.mean(losses[start : start + 3])
    expected = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *iterates[4 * start :])
    run = restore(workdir)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), run.params, expected)
    assert not np.allclose(run.params[0]["weight"], iterates[-1][0]["weight"], rtol=1e-3)


@pytest.mark.slow
def test_averaged_parameters_get_batch_statistics_of_their_own(tmp_path, monkeypatch):
    use_convnet(monkeypatch)
    monkeypatch.setattr(programs, "REFRESHING_STEPS", 6)
    assert train(tmp_path, *AVERAGED, "--epochs", "6", "--model.name", "resnet20") == 0
    last, scores = state(tmp_path)
    assert last.averaging.started
    setup = set_up(TrainConfig.of(tmp_path, config_of(tmp_path)))
    compiled = programs.Programs(setup, make_mesh(DevicesConfig(), 16))
    params, found = compiled.result(last)
    mean, var = (last.model_state["norm"][name] for name in ("mean", "var"))
    for batch in itertools.islice(setup.pipeline.train(0), 6):
        kernel = params["conv"]["kernel"]
        numbers = jax.lax.conv_dimension_numbers(batch.image.shape, kernel.shape, ("NHWC", "HWIO", "NHWC"))
        images = batch.image / np.float32(16)
        x = jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=numbers)
        mean, var = 0.9 * mean + 0.1 * x.mean((0, 1, 2)), 0.9 * var + 0.1 * x.var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(found["norm"]["mean"], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["norm"]["var"], var, rtol=1e-4)
    assert not np.allclose(mean, last.model_state["norm"]["mean"], rtol=1e-2)
    assert compiled.evaluate(params, found, "test").items() <= scores.items()


def test_curves_are_a_picture(finished):
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_another_run_in_the_same_folder_is_refused(finished, capsys):
    before = (finished / "metrics.jsonl").read_bytes()
    assert train(finished, "--method", "gam", "--epochs", "6") == 2
    printed = capsys.readouterr().err
    assert "config.optim.method: plain there, gam now" in printed and "config.optim.gam_rho" in printed
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_a_folder_in_use_is_refused(tmp_path, capsys):
    with open_metrics(tmp_path, {}):
        assert train(tmp_path) == 2
    assert f"{tmp_path} is in use by another process" in capsys.readouterr().err


def test_a_run_goes_on_in_another_folder_with_other_devices(finished, copied, tmp_path):
    shutil.rmtree(copied / "checkpoints" / "24")
    elsewhere = ("--devices.fsdp", "4", "--checkpoints.keep", "5", "--data.folder", str(tmp_path / "other"))
    assert train(copied, *AVERAGED, "--epochs", "6", *elsewhere) == 0
    assert [record["step"] for record in sessions(copied)] == [0, 20]
    for kind, score in (("train", "loss"), ("evaluation", "test_loss")):
        one, other = ([record[score] for record in records(workdir, kind)] for workdir in (copied, finished))
        np.testing.assert_allclose(one, other, rtol=1e-4)


def test_where_a_run_computes_is_not_part_of_it(finished):
    config = TrainConfig.of(finished, config_of(finished))
    moved = dataclasses.replace(
        config,
        workdir=finished / "other",
        data=dataclasses.replace(config.data, folder=finished, workers=3),
        devices=DevicesConfig(fsdp=2, multihost=True),
        checkpoints=CheckpointsConfig(every=1, keep=7),
    )
    assert moved.identity() == config.identity()
    assert dataclasses.replace(config, seed=4).identity() != config.identity()


MISTAKES = [
    (["--config", "digit"], "there is no config 'digit': did you mean 'digits'"),
    (["--config", "cifar10_resnet81"], "did you mean 'cifar10_resnet18'"),
    (["--hidden", "8"], "--hidden"),
    (["--modle.hidden", "8"], "--modle.hidden.*Perhaps you meant.*--model.hidden"),
    (["--model.name", "resnet_18"], "'resnet_18'"),
    (["--method", "gamm"], "'gamm'"),
    (["--averaging", "sawd"], "'sawd'"),
    (["--epochs", "ten"], "'ten'"),
    (["--epochs", "0"], "epochs must be at least 1, got 0"),
    (["--batch-size", "0"], "batch_size must be at least 1, got 0"),
    (["--eval-epochs", "0"], "eval_epochs must be at least 1, got 0"),
    (["--log-every", "0"], "log_every must be at least 1, got 0"),
    (["--steps", "0"], "steps must be at least 1, got 0"),
    (["--seed", "-1"], "seed must be in 0 ... 2147483647, got -1"),
    (["--label-smoothing", "1"], r"label_smoothing must be a probability in \[0, 1\), got 1.0"),
    (["--data.validation", "0"], "averaging='swad' chooses by the validation loss: .* got 0"),
    (["--data.noise", "30"], r"data.noise must be a fraction in \[0, 1\], got 30.0 \(30 % is 0.3\)"),
    (["--data.validation", "-0.1"], r"data.validation must be a fraction in \[0, 1\], got -0.1"),
    (["--data.validation", "1"], "data.validation must leave something to train on, got 1.0"),
    (["--data.train-size", "0"], "data.train_size must be at least 1, got 0"),
    (["--data.train-size", "1200"], "train_size=1200 is not possible: of the 1000 training images of digits"),
    (["--data.train-size", "8"], "batch_size=16 is more than the 8 training images of digits"),
    (["--data.image-size", "0"], "data.image_size must be at least 1, got 0"),
    (["--data.split-seed", "-1"], "data.split_seed must be in 0 ... 2147483647, got -1"),
    (["--data.workers", "-1"], "data.workers must be at least 0, got -1"),
    (["--data.workers", "2"], "digits is kept in memory: data.workers must be 0, got 2"),
    (["--data.name", "cifar10", "--data.folder", "/absent"], "prepare .*--data cifar10 --folder /absent"),
    (["--model.width", "0"], "model.width must be a number > 0, got 0.0"),
    (["--model.width", "nan"], "model.width must be a number > 0, got nan"),
    (["--model.width", "2"], "'mlp' has no model.width, got 2.0; .* resnet18"),
    (["--model.hidden", "0"], r"model.hidden must hold widths >= 1, got \(0,\)"),
    (["--model.dropout", "1"], r"model.dropout must be a probability in \[0, 1\), got 1.0"),
    (["--model.drop-path", "-1"], r"model.drop_path must be a probability in \[0, 1\), got -1.0"),
    (["--model.drop-path", "0.1"], "'mlp' has no model.drop_path, got 0.1; .* vit"),
    (["--model.name", "vit"], r"'vit' has no model.hidden, got \(8,\); it is an option of mlp"),
    (["--momentum", "1"], r"momentum must be in \[0, 1\), got 1.0"),
    (["--warmup", "1"], r"warmup must be a fraction of the steps in \[0, 1\), got 1.0"),
    (["--interval", "0"], "interval must be at least 1, got 0"),
    (["--gam-rho", "-1"], "gam_rho must be a finite number >= 0, got -1.0"),
    (["--learning-rate", "nan"], "learning_rate must be a finite number >= 0, got nan"),
    (["--gam-rho", "None"], "'gam' needs gam_rho"),
    (["--sam-rho", "0.1"], "'gam' has no sam_rho: its .* learning_rate, weight_decay, gam_rho, gam_alpha"),
    (["--method", "plain", "--interval", "2"], "'plain' has no interval, got 2"),
    (["--method", "plain", "--rho-schedule", "proportional"], "'plain' has no rho_schedule, got proportional"),
    (["--method", "plain", "--curvature-share", "2"], "'plain' has no curvature_share, got 2"),
    (["--method", "gam", "--between", "hold"], "between='hold' needs an interval above 1, got 1"),
    (["--method", "gam", "--max-ratio", "0"], "max_ratio must be a finite number > 0, got 0"),
    (["--devices.fsdp", "0"], "devices.fsdp must be at least 1, got 0"),
    (["--devices.fsdp", "3"], "devices.fsdp must divide the number of devices, 8, got fsdp=3"),
    (["--devices.heartbeat-seconds", "0"], "devices.heartbeat_seconds must be at least 1, got 0"),
    (["--devices.multihost"], "--devices.multihost finds no other processes"),
    (["--batch-size", "12"], "batch_size must be divisible by the number of devices, 8, got 12"),
    (["--checkpoints.keep", "0"], "checkpoints.keep must be at least 1, got 0"),
    (["--checkpoints.every", "0"], "checkpoints.every must be at least 1, got 0"),
]


@pytest.mark.parametrize("arguments, message", MISTAKES, ids=lambda value: " ".join(value) if len(value) < 5 else "")
def test_mistakes_are_explained_before_a_folder_is_made(capsys, tmp_path, arguments, message):
    assert re.search(message, refused(capsys, *SMALL, *arguments, "--workdir", str(tmp_path / "run")))
    assert not list(tmp_path.iterdir())


def test_an_unwritable_workdir_is_found_before_training(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write results to --workdir" in refused(capsys, *SMALL, "--workdir", str(tmp_path / "file"))


def finite(workdir):
    """Whether everything in the metrics and in the checkpoints is finite."""
    text = (workdir / "metrics.jsonl").read_text()
    params = [leaf for step in steps(workdir) for leaf in jax.tree.leaves(state(workdir, step)[0].params)]
    return not re.search("NaN|Infinity", text) and all(np.isfinite(leaf).all() for leaf in params)


PLAIN = ("--method", "plain", "--averaging", "none")


def test_a_run_that_diverges_stops_and_says_where(capsys, tmp_path):
    assert train(tmp_path, *PLAIN, "--learning-rate", "1e30") == 2
    message = r"the training loss is not finite at step \d, .* try a smaller --learning-rate. No checkpoint was saved"
    assert re.search(message, capsys.readouterr().err)
    assert finite(tmp_path)


def test_a_run_that_diverges_late_names_the_last_good_checkpoint(capsys, tmp_path, monkeypatch):
    original = programs.Programs.step

    def diverging(self, state, batch, count):
        blown = jax.tree.map(lambda leaf: leaf * np.float32(np.inf), state.params)
        return original(self, state._replace(params=blown) if count == 5 else state, batch, count)

    monkeypatch.setattr(programs.Programs, "step", diverging)
    assert train(tmp_path, *PLAIN) == 2
    message = rf"the training loss is not finite at step 6, .* The last good checkpoint is {tmp_path}/checkpoints/4"
    assert re.search(message, capsys.readouterr().err)
    assert steps(tmp_path) == [4] and finite(tmp_path)
    assert [record["step"] for record in records(tmp_path)] == [3, 4, 4]


@contextlib.contextmanager
def largest_file(size):
    """Inside, the system refuses to write larger files, as a full disk would."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "size, message",
    [
        (100, "cannot write results to --workdir .*: .*File too large"),  # of config.json
        (1300, "cannot write a result: .*File too large; the same command goes on from there"),  # of metrics.jsonl
        (16000, "cannot write checkpoint .*/8: .*No checkpoint was saved"),  # of that of step 4, in the background
    ],
)
def test_a_disk_that_refuses_is_reported(capsys, tmp_path, size, message):
    with largest_file(size):
        status = train(tmp_path / "run", *PLAIN, "--model.hidden", "128")
    printed = capsys.readouterr().err
    assert status == 2 and re.search(message, printed) and "Traceback" not in printed


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_disk_that_refuses_at_the_very_end_is_reported(tmp_path):
    with largest_file(16000), pytest.raises(UserError, match="cannot write a checkpoint to"):
        with open_checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, {"a": jax.random.normal(jax.random.key(0), (10000,))}, {}, None)


def test_what_is_not_a_checkpoint_is_refused(copied, tmp_path):
    (tmp_path / "empty").mkdir()
    for place, message in {
        tmp_path / "absent": "there is no folder .*absent",
        tmp_path / "empty": "not the --workdir of a training run",
        copied / "checkpoints" / "77": "there is no folder",
    }.items():
        with pytest.raises(UserError, match=message):
            restore(place)
    edit_config(copied, model=config_of(copied)["model"] | {"hidden": [9]})
    with pytest.raises(UserError, match=r"current.0.weight: float32\[64, 8\] in the checkpoint, float32\[64, 9\] in"):
        restore(copied)
    edit_config(copied, model=config_of(copied)["model"] | {"hidden": [8, 8]})
    with pytest.raises(UserError, match=r"current.2.bias: absent in the checkpoint, float32\[10\] in the run"):
        restore(copied)
    shutil.rmtree(copied / "checkpoints")
    with pytest.raises(UserError, match="holds no checkpoint"):
        restore(copied)
    (copied / "config.json").write_text('{"config": {"grid": 1}}')
    (copied / "checkpoints" / "24").mkdir(parents=True)
    with pytest.raises(UserError, match="is not a run of this version's `train`"):
        restore(copied)
    (copied / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json is not readable as JSON"):
        restore(copied)


def test_handwritten_digits_are_learnt(tmp_path, capfd):
    command = ["train", "--config", "digits", "--method", "gam", "--data.noise", "0", "--data.validation", "0.1"]
    command += ["--data.train-size", "None", "--batch-size", "48", "--epochs", "8", "--eval-epochs", "8"]
    assert main([*command, "--model.hidden", "64", "--workdir", str(tmp_path)]) == 0
    out, err = capfd.readouterr()
    assert float(re.search(r"test_accuracy ([\d.]+)", out)[1]) > 0.95
    assert re.search(r"best_epoch_test_accuracy 0\.9\d+\nwrote .*: config.json, metrics.jsonl, curves.png", out)
    assert err.startswith("Training GAM, mlp, digits. ") and err.count("\n") == 1  # no bar, as this is no terminal
    seen = records(tmp_path, "train")[-1]
    assert {"gam_grad_norm", "gam_first_order_flatness"} <= seen.keys() and seen["gam_first_order_flatness"] > 0
    assert state(tmp_path)[1]["test_accuracy"] == records(tmp_path, "evaluation")[-1]["test_accuracy"]
