"""Strangers' files beside the data: JSON, configs, records, checkpoints, weights. No code of theirs runs."""

import dataclasses
import json
import shutil
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from experiments.common import store
from experiments.common.errors import UserError
from experiments.configs import load, load_train
from experiments.measure.flatness.restore import _config
from experiments.models import pretrained
from experiments.study.adopt import adopt
from experiments.study.plan import KEY
from experiments.study.report.study import read_study
from experiments.train.checkpoint import open_checkpoints, read_checkpoints
from experiments.train.config import TrainConfig
from tests.experiments.data.hostile import TRAP

DEEP = ["[" * 100_000, '{"a":' * 100_000, "[" * 500 + "]" * 500, '{"a":' * 101 + "1" + "}" * 101]
ODD = ["NaN", "-Infinity", "1e999", "1" * 21, "1" * 5000, "-" + "9" * 20, "", "nul", "\ud800", '"a', b"\xff"]


def refused(match, function, *arguments):
    with pytest.raises(UserError, match=match) as error:
        function(*arguments)
    assert "\n" not in str(error.value)


def write(path: Path, text) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return path


@pytest.mark.parametrize("text", [*DEEP, *ODD])
def test_json_that_is_not_ours_is_refused(tmp_path, text):
    refused("config.json is not readable as JSON", store.read_json, write(tmp_path / "config.json", text))


def test_json_of_ours_is_read_exactly(tmp_path):
    tree = {"a": [1e300, -0.1, 2**63, True, None, "é"], "b": {"c": [[[{}]]]}}
    assert store.read_json(write(tmp_path / "a.json", json.dumps(tree))) == tree


@pytest.mark.parametrize("line", [*DEEP, *ODD, "null", "[1]", '"text"', "7"])
def test_records_that_are_not_ours_are_refused(tmp_path, line):
    whole = line if isinstance(line, bytes) else line.encode("utf-8", "surrogatepass")
    path = write(tmp_path / "results.jsonl", whole + b"\n")
    refused("results.jsonl, line 1, (is damaged|holds .*expected an object)", store.read_records, path)


CONFIGS = [*DEEP[:3], "null", "[]", "7", "{}", '{"config": null}', '{"config": [1]}', '{"config": {"data": [[]]}}']


@pytest.mark.parametrize("text", CONFIGS)
def test_studies_and_runs_with_another_config_are_refused(tmp_path, text):
    """As ``report`` reads a study, ``compare --tuned-in`` another one, and ``flatness`` a run."""
    write(tmp_path / "config.json", text)
    (tmp_path / "results.jsonl").touch()
    refused("config.json|holds no study", read_study, tmp_path)
    refused("config.json|a run of this version", _config, tmp_path, tmp_path)
    tuned_in = dataclasses.replace(load("digits"), workdir=tmp_path / "new", tuned_in=tmp_path)
    with pytest.raises(UserError, match="config.json|tuned something else"):
        adopt(tuned_in, _empty(), [])


def _empty():
    return store.Store(-1, [], KEY, {})


@pytest.mark.parametrize(
    "change",
    [
        {"seed": "0"},
        {"epochs": None},
        {"epochs": 1.5},
        {"label_smoothing": True},
        {"data": None},
        {"data": {"name": ["digits"]}},
        {"data": {"name": "../digits"}},
        {"model": {"name": "mlp", "hidden": 8}},
        {"model": {"name": "mlp", "hidden": [[8]]}},
        {"optim": {"__class__": "evil.X"}},
        {"workdir/../evil": 1},
    ],
)
def test_configs_with_values_of_another_kind_are_refused(tmp_path, change):
    identity = load_train("digits", "gam").identity()
    TrainConfig.of(tmp_path, identity)
    write(tmp_path / "config.json", json.dumps({"config": identity | change}))
    refused("is not a run of this version", _config, tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"kind": "cost"}, "has not finished this run"),
        ({"method": ["plain"]}, "has not finished this run"),
        ({"kind": {"__class__": "evil.X"}}, "has not finished this run"),
        ({"validation_accuracy": "1.0"}, "has no scores of this run"),
        ({"diverged": 1, "validation_loss": None}, "has no scores of this run"),
    ],
)
def test_trials_of_another_kind_are_not_taken_over(tmp_path, record, message):
    config = dataclasses.replace(load("digits"), workdir=tmp_path / "new", tuned_in=tmp_path)
    task = {"kind": "tune", "noise": 0.0, "method": "plain", "trial": 0, "seed": 1000}
    trial = task | {"diverged": False, "validation_accuracy": 0.5, "validation_loss": 1.0}
    write(tmp_path / "config.json", json.dumps({"config": config.identity()}))
    write(tmp_path / "results.jsonl", json.dumps(trial | record) + "\n")
    refused(message, adopt, config, _empty(), [task])


STATE = {"a": jnp.arange(4.0), "b": jnp.ones((2, 2))}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("checkpoints") / "run"
    with open_checkpoints(workdir) as checkpoints:
        checkpoints.save(3, STATE, {"accuracy": 1.0}, 0.5)
        checkpoints.wait()
    return workdir


def named(tree):
    """JSON in which every string, and one more field of every object, is the name of a class."""
    if isinstance(tree, dict):
        return {name: named(value) for name, value in tree.items()} | {"__class__": "evil_in_orbax.X"}
    if isinstance(tree, list):
        return [named(value) for value in tree]
    return "evil_in_orbax.X" if isinstance(tree, str) else tree


@pytest.mark.parametrize(
    "name",
    [
        "_CHECKPOINT_METADATA",
        "record/metadata",
        "state/_METADATA",
        "state/_sharding",
        "state/array_metadatas/process_0",
    ],
)
def test_what_a_checkpoint_says_of_itself_runs_no_code(run, tmp_path, monkeypatch, name):
    """It is read, where it does not matter, or refused."""
    (tmp_path / "evil_in_orbax.py").write_text(TRAP)
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "3" / name
    expected = jax.eval_shape(lambda: STATE)
    for text in (json.dumps(named(json.loads(path.read_text()))), "null", "[]", DEEP[0], "cevil_in_orbax\nX\n."):
        path.write_text(text)
        try:
            with read_checkpoints(tmp_path / "run") as checkpoints:
                state, _ = checkpoints.restore(3, expected)
            jax.tree.map(lambda a, b: jnp.array_equal(a, b) or pytest.fail("another state"), state, STATE)
        except UserError as error:
            assert "damaged" in str(error) or "cannot be opened" in str(error)
    assert not (tmp_path / "sprung").exists()


def header(tensor, length=None):
    text = tensor if isinstance(tensor, bytes) else json.dumps({"x": tensor}).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(8)


def tensor(dtype, shape, *offsets):
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    "content",
    [
        b"abc",
        header(b"{}", length=2**63),
        header(b"{}", length=90_000_000),
        header(json.dumps({"x": tensor("F32", [2], 0, 8), "y": tensor("F32", [2], 0, 8)}).encode()),
        header(tensor("F32", [2], 0, 80)),
        header(tensor("F32", [2**40, 2**40], 0, 8)),
        header(tensor("F32", [1] * 100 + [2], 0, 8)),
        header(tensor("O", [1], 0, 8)),
        header(tensor("F8_E4M3", [8], 0, 8)),
        header(b"[" * 100_000),
        b"\x80\x04cevil\nX\n.",
    ],
)
def test_weights_that_numpy_cannot_hold_are_refused(tmp_path, content):
    path = write(tmp_path / "model.safetensors", content)
    refused("model.safetensors cannot be read as safetensors", pretrained._read, path)
