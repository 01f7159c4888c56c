"""Measurements of checkpoints: the numbers are those of gam_jax.flatness, no kill loses one, mistakes are explained."""

import copy
import functools
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.common.store import plain
from experiments.main import main
from experiments.measure.flatness import figures, landscape_figures
from experiments.measure.flatness.looks import looks as looks_of
from experiments.measure.flatness.restore import restore
from gam_jax import flatness
from tests.experiments.train.runs import ROOT, refused, state, use_convnet

TRAIN = [
    *("train", "--config", "digits", "--model.hidden", "8", "--batch-size", "40", "--epochs", "8"),
    *("--data.train-size", "40", "--seed", "3", "--eval-epochs", "8"),
]
FEW = [
    *("--rho", "0.1", "0.5", "--ascent-steps", "5", "--restarts", "1", "--k", "3", "--trace-probes", "4"),
    *("--density-probes", "2", "--density-steps", "6", "--directions", "3", "--seed", "7"),
]
POINTS = ["--points", "5", "--directions", "3", "--radius", "0.5"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two runs of different methods."""
    folder = tmp_path_factory.mktemp("trained")
    for method in ("plain", "sam"):
        assert main([*TRAIN, "--method", method, "--workdir", str(folder / method)]) == 0
    return [str(folder / "plain"), str(folder / "sam")]


@functools.cache
def restored(place):
    """The run, always the same object with the same loss, which has no batch statistics: all is compiled once."""
    run = restore(place)
    return run if place.name == "plain" else run._replace(loss_fn=restored(place.with_name("plain")).loss_fn)


@pytest.fixture(scope="module")
def measured(trained, tmp_path_factory):
    output = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("experiments.measure.flatness.restore.restore", restored)
        assert main(["flatness", "--checkpoint", *trained, "--output", str(output), *FEW]) == 0
        assert main(["landscape", "--checkpoint", *trained, "--output", str(output), *POINTS]) == 0
    return output


def read(output, name):
    return json.loads((output / f"{name}.json").read_text())


def results(measured, kind):
    return [read(measured, f"{method}-8-{kind}") for method in ("plain", "sam")]


def test_flatness_is_what_the_library_measures(trained, measured):
    run = restored(Path(trained[1]))
    of, key = (run.loss_fn, run.params, run.batches), jax.random.key(7)
    found = read(measured, "sam-8-flatness")["measured"]
    gradient = jax.grad(run.loss_fn)(run.params, *run.batches)
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(gradient)))
    assert found["point"]["loss"] == run.scores["train_loss"]
    assert found["point"]["accuracy"] == run.scores["train_accuracy"]
    assert found["point"]["test_accuracy"] == run.scores["test_accuracy"]
    np.testing.assert_allclose(found["point"]["gradient_norm"], norm, rtol=1e-5)
    for measure in (flatness.zeroth_order_flatness, flatness.first_order_flatness):
        for rho in (0.1, 0.5):
            expected = measure(*of, rho=rho, key=key, num_steps=5, num_restarts=1)
            recorded = found[f"{measure.__name__} rho={rho}"]
            assert recorded["rho"] == rho and recorded["ends"] == expected.history[:, -1].tolist()
            for name in ("value", "distance", "stationarity"):
                assert recorded[name] == getattr(expected, name)
    top = flatness.hessian_top_eigenvalues(*of, k=3, key=key)
    assert found["top_eigenvalues"]["values"] == top.values.tolist()
    trace = flatness.hessian_trace(*of, key=key, num_probes=4)
    assert (found["trace"]["value"], found["trace"]["standard_error"]) == (trace.value, trace.standard_error)
    density = flatness.hessian_density(*of, key=key, num_probes=2, num_steps=6)
    for name in ("nodes", "weights", "moments"):
        np.testing.assert_array_equal(found["density"][name], getattr(density, name))
    extrema = flatness.count_local_minima(*of, key=key, num_directions=3)
    for name in ("minima", "maxima"):
        assert found["local_minima"][name] == getattr(extrema, name).tolist()
        assert found["local_minima"][f"mean_{name}"] == getattr(extrema, f"mean_{name}")


def test_batches_only_divide_the_mean_over_all_training_images(trained):
    run = restored(Path(trained[0]))
    parts = [jax.tree.map(lambda rows, part=part: rows[part], *run.batches) for part in (slice(16), slice(16, 40))]
    many, one = (
        flatness.hessian_top_eigenvalues(run.loss_fn, run.params, batches, k=3, key=jax.random.key(0)).values
        for batches in (parts, run.batches)
    )
    np.testing.assert_allclose(many, one, rtol=1e-4)


def test_the_loss_is_that_of_evaluation_with_the_batch_statistics_of_the_checkpoint(tmp_path, monkeypatch):
    use_convnet(monkeypatch)
    network = ("--model.name", "resnet20", "--label-smoothing", "0.2", "--data.augment", "basic")
    command = [*TRAIN, "--method", "plain", *network, "--batch-size", "16", "--workdir", str(tmp_path)]
    assert main([*command, "--epochs", "2"]) == 0
    run, (last, scores) = restore(tmp_path), state(tmp_path)
    assert [len(batch.label) for batch in run.batches] == [16, 16, 8]
    batch = jax.tree.map(lambda *rows: np.concatenate(rows), *run.batches)
    assert sorted(batch.index.tolist()) == list(range(40)) and batch.weight.all()

    def loss(norm):
        params = jax.device_get(run.params)
        numbers = jax.lax.conv_dimension_numbers(batch.image.shape, (3, 3, 1, 8), ("NHWC", "HWIO", "NHWC"))
        images, kernel = batch.image / np.float32(16), params["conv"]["kernel"]
        x = np.asarray(jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=numbers))
        x = (x - norm["mean"]) / np.sqrt(norm["var"] + 1e-5) * params["norm"]["scale"] + params["norm"]["bias"]
        logits = np.maximum(x, 0).mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]
        return np.mean(np.log(np.exp(logits).sum(1)) - logits[range(40), batch.label])

    expected = loss(last.model_state["norm"])
    assert abs(expected - loss({"mean": 0, "var": 1})) > 1e-3
    assert float(run.loss_fn(run.params, batch)) == pytest.approx(expected, rel=1e-5)
    assert scores["train_loss"] == pytest.approx(expected, rel=1e-5)


def test_landscape_is_what_the_library_measures_along_one_set_of_directions(trained, measured):
    x = np.linspace(-0.5, 0.5, 5)
    for place, result in zip(trained, results(measured, "landscape"), strict=True):
        run = restored(Path(place))
        directions = flatness.filter_normalized_directions(run.params, key=jax.random.key(0), num=3)
        assert list(result["measured"]) == ["line 0", "line 1", "line 2", "plane", "point"]
        for i, direction in enumerate(directions):
            expected = flatness.loss_slice(run.loss_fn, run.params, run.batches, direction, x=x)
            assert result["measured"][f"line {i}"] == {"x": x.tolist(), "y": None, "values": expected.values.tolist()}
        plane = flatness.loss_slice(run.loss_fn, run.params, run.batches, *directions[:2], x=x)
        assert result["measured"]["plane"]["values"] == plane.values.tolist()


def test_a_file_says_what_was_measured_and_how(trained, measured):
    result = read(measured, "sam-8-flatness")
    assert result["checkpoint"]["config"] == json.loads((Path(trained[1]) / "config.json").read_text())["config"]
    assert (result["checkpoint"]["name"], result["checkpoint"]["step"]) == ("sam-8", 8)
    assert result["settings"]["k"] == 3 and result["settings"]["seed"] == 7
    assert {"jax", "source"} <= result["made_with"].keys()
    assert result["checkpoint"]["parameters"] != read(measured, "plain-8-flatness")["checkpoint"]["parameters"]


DIE = """
import os, signal, sys
from experiments import main
from tests.experiments.measure.test_measure import cut_short
cut_short(int(sys.argv[1]), lambda: os.kill(os.getpid(), signal.SIGKILL))
sys.exit(main.main(sys.argv[2:]))
"""


def interrupt():
    raise KeyboardInterrupt


def cut_short(files, end, set_attribute=setattr):
    """Ends the process in the middle of the so many-th JSON file that it writes."""
    write, left = Path.write_text, [files]

    def written(path, text, **options):
        left[0] -= ".json" in path.name
        write(path, text if left[0] else text[: len(text) // 2], **options)
        if not left[0]:
            end()

    set_attribute(Path, "write_text", written)


def counted(function, calls):
    return lambda *args, **options: calls.append(args) or function(*args, **options)


def assert_goes_on(measured, workdir, command):
    """A measurement that ended behind its second slice measures the others, and ends in the same file."""
    name, slices = "plain-8-landscape.json", []
    assert list(read(workdir, "plain-8-landscape")["measured"]) == ["line 0", "line 1"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("experiments.measure.flatness.restore.restore", restored)
        patched.setattr("gam_jax.flatness.loss_slice", counted(flatness.loss_slice, slices))
        assert main(command) == 0
    assert len(slices) == 2
    assert (workdir / name).read_bytes() == (measured / name).read_bytes()


def test_an_interrupted_measurement_ends_in_the_same_file(trained, measured, tmp_path):
    command = ["landscape", "--checkpoint", trained[0], "--output", str(tmp_path), *POINTS]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("experiments.measure.flatness.restore.restore", restored)
        cut_short(3, interrupt, patched.setattr)
        assert main(command) == 130
    assert_goes_on(measured, tmp_path, command)


@pytest.mark.slow
def test_a_killed_measurement_ends_in_the_same_file(trained, measured, tmp_path):
    command = ["landscape", "--checkpoint", trained[0], "--output", str(tmp_path), *POINTS]
    died = subprocess.run([sys.executable, "-c", DIE, "3", *command], cwd=ROOT, capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL and "Traceback" not in died.stderr
    assert_goes_on(measured, tmp_path, command)


def test_a_finished_measurement_only_draws(trained, measured, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("gam_jax.flatness.loss_slice", lambda *_, **__: pytest.fail("measured again"))
    shutil.copytree(measured, tmp_path / "copy")
    (tmp_path / "copy" / "planes.png").unlink()
    assert main(["landscape", "--checkpoint", *trained, "--output", str(tmp_path / "copy"), *POINTS]) == 0
    assert (tmp_path / "copy" / "planes.png").exists()
    said = capfd.readouterr().err
    assert said.startswith("Measuring the landscape of 2 networks. ") and said.count("\n") == 1  # no bar, no terminal


def test_pictures_and_tables(measured, capsys):
    for name in ("flatness", "top_eigenvalues", "spectral_density", "local_minima", "lines", "planes"):
        assert (measured / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    found = results(measured, "flatness")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in figures.flatness_tables(found).splitlines()]
    sam = found[1]["measured"]
    assert cells[3][0] == "SAM" and cells[3][1] == f"{sam['point']['loss']:.3f}"
    assert cells[3][6] == f"{sam['top_eigenvalues']['values'][0]:.2f}"
    assert cells[5] == ["ρ", "R0 SGD", "R0 SAM", "R1 SGD", "R1 SAM"]
    assert cells[8] == ["0.5"] + [
        f"{result['measured'][f'{kind}_order_flatness rho=0.5']['value']:.4f}"
        for kind in ("zeroth", "first")
        for result in found
    ]


def test_the_rise_of_the_loss_is_that_of_the_slices(measured):
    found = results(measured, "landscape")
    row = [cell.strip() for cell in landscape_figures.landscape_table(found).splitlines()[3].split("|")[1:-1]]
    lines = [found[1]["measured"][f"line {i}"]["values"] for i in range(3)]
    rises = [(line[0] + line[4]) / 2 - line[2] for line in lines]
    assert row == ["SAM", f"{lines[0][2]:.3f}", f"{np.mean(rises):.3f} ± {np.std(rises, ddof=1) / 3**0.5:.3f}"]


def test_one_colour_per_run_and_labels_that_tell_them_apart(measured):
    sgd, sam = results(measured, "flatness")
    assert [look.label for look in looks_of([sgd, sam])] == ["SGD", "SAM"]
    half = copy.deepcopy(sam)
    half["checkpoint"] |= {"name": "sam-4", "step": 4}
    looks = looks_of([sgd, half, sam])
    assert [look.label for look in looks] == ["SGD", "SAM, step 4", "SAM, step 8"]
    assert looks[1].color == looks[2].color != looks[0].color and looks[1].line != looks[2].line
    averaged = copy.deepcopy(sam)
    averaged["checkpoint"]["name"] = "other-8"
    averaged["checkpoint"]["config"]["averaging"] = "swad"
    looks = looks_of([sam, averaged])
    assert [look.label for look in looks] == ["SAM (sam)", "SAM + SWAD (other)"]
    assert looks[0].color != looks[1].color


def test_what_is_not_finite_is_null_and_is_drawn_as_a_gap(measured, tmp_path):
    assert plain({"a": np.array([1.0, np.inf]), "b": [np.nan], "c": 2}) == {"a": [1.0, None], "b": [None], "c": 2}
    sgd, sam = results(measured, "landscape")
    sgd["measured"]["plane"]["values"][0][0] = None
    sgd["measured"]["line 0"]["values"][0] = None
    for path in landscape_figures.draw_landscape([sgd, sam], tmp_path):
        assert path.exists()


def test_other_settings_in_the_same_folder_are_refused(trained, measured, capsys):
    before = (measured / "plain-8-flatness.json").read_bytes()
    assert main(["flatness", "--checkpoint", *trained, "--output", str(measured), *FEW, "--k", "2"]) == 2
    assert "settings.k: 3 there, 2 now" in capsys.readouterr().err
    assert (measured / "plain-8-flatness.json").read_bytes() == before


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--k", "700"], "k must be at most the number of parameters, 610 in plain-8, got k=700"),
        (["--k", "0"], "k must be at least 1, got 0"),
        (["--rho", "0"], r"rho must hold finite numbers > 0, got \(0.0,\)"),
        (["--rho"], "rho must name distinct values"),
        (["--trace-probes", "1"], "trace_probes must be at least 2, got 1"),
        (["--checkpoint", "absent"], "there is no folder .*absent"),
        (["--checkpoint"], "checkpoint must name distinct"),
        (["--rhoo", "1"], "--rhoo"),
    ],
)
def test_mistakes_are_explained_before_anything_is_measured(trained, capsys, tmp_path, arguments, message):
    output = tmp_path / "out"
    command = ["flatness", "--checkpoint", *trained, "--output", str(output), *FEW]
    assert re.search(message, refused(capsys, *command, *arguments))
    assert not output.exists()


def test_an_unwritable_output_and_one_name_twice_are_refused(trained, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert main(["landscape", "--checkpoint", trained[0], "--output", str(tmp_path / "file" / "out")]) == 2
    assert "cannot write results to --output" in capsys.readouterr().err
    shutil.copytree(trained[0], tmp_path / "plain")
    both = [trained[0], str(tmp_path / "plain")]
    assert main(["landscape", "--checkpoint", *both, "--output", str(tmp_path / "out")]) == 2
    assert "two of the checkpoints are called 'plain-8'" in capsys.readouterr().err
