"""Data of strangers: no code runs, whatever a folder holds, and what is not as it should be is refused in words."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.common.errors import UserError
from experiments.data import open_data
from experiments.data.config import DataConfig
from experiments.data.memory import read
from experiments.data.prepare import prepare
from tests.experiments.data import hostile, tiny_data
from tests.experiments.data.hostile import byte_strings, example, good, image_file, integers

ROOT = Path(__file__).parents[3]


def opened(folder, name="cifar10", **changes):
    config = DataConfig(name=name, folder=folder, validation=0.0, augment="none", **changes)
    return open_data(config, seed=0, batch_size=2, process_index=0, process_count=1)


def refused(match, folder, name="cifar10"):
    with pytest.raises(UserError, match=match) as error:
        next(opened(folder, name).train(0))
    assert "\n" not in str(error.value)


def test_classes_that_a_folder_names_are_not_imported(tmp_path):
    """Neither for data in memory nor for streamed ones, though the module is there to be imported; nor is tfds."""
    for name in ("cifar10", "pets"):
        hostile.write(tmp_path / "data", [[good(i) for i in range(4)]], name, class_of="data.evil.Feature")
    (tmp_path / "data" / "evil.py").write_text(hostile.TRAP)
    program = """
import sys
from pathlib import Path
from experiments.data import open_data
from experiments.data.config import DataConfig
for name in ("cifar10", "pets"):
    config = DataConfig(name=name, folder=Path("data"), image_size=16, validation=0.0)
    batch = next(open_data(config, seed=0, batch_size=4, process_index=0, process_count=1).train(0))
    assert sorted(batch.label) == [0, 1, 2, 3], batch.label
assert not {"data", "data.evil", "tensorflow_datasets"} & {*sys.modules} and not Path("data", "sprung").exists()
import data.evil
assert Path("data", "sprung").exists()
"""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, env=environment)


def test_preparing_imports_no_class_that_a_folder_names(tmp_path, monkeypatch):
    """The builder of tfds would take another config, where it is prepared, for the one that is asked for."""
    place = hostile.write(tmp_path / "data", [[good(0)]], class_of="evil_when_prepared.Feature")
    (place.parent / "other").mkdir()
    place.rename(place.parent / "other" / place.name)
    (place.parent / ".config").mkdir()
    (place.parent / ".config" / "metadata.json").write_text('{"default_config_name": "other"}')
    (tmp_path / "evil_when_prepared.py").write_text(hostile.TRAP)
    monkeypatch.syspath_prepend(tmp_path)
    tensorflow = types.SimpleNamespace(errors=types.SimpleNamespace(OpError=OSError))
    fake = types.SimpleNamespace(import_module=lambda name: tensorflow)
    monkeypatch.setattr("experiments.data.prepare.importlib", fake)
    with pytest.raises(UserError, match="there is no .*cifar-10-binary"):
        prepare("cifar10", tmp_path / "data", tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_a_picture_that_is_a_program_is_not_run(tmp_path, monkeypatch):
    """Pillow would have Ghostscript draw it."""
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/sprung\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    drawn = image_file(Image.new("RGB", (32, 32)), "EPS")
    hostile.write(tmp_path, [[example({"image": byte_strings(drawn), "label": integers(0)})] * 2])
    refused("record 0: its image, b'%!PS-Ado'..., cannot be decoded as JPEG, PNG, GIF, BMP", tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_files_of_several_parts_are_read_in_their_order(tmp_path):
    hostile.write(tmp_path, [[good(0), good(1)], [good(2)], [good(3), good(4)]])
    images, labels = opened(tmp_path).parts["train"]
    assert images[:, 0, 0, 0].tolist() == labels.tolist() == [0, 1, 2, 3, 4]
    assert images.shape == (5, 32, 32, 3) and (images == images[:, :1, :1, :1]).all()


PIXELS = byte_strings(image_file(np.zeros((32, 32, 3), np.uint8)))
WIDE = image_file(Image.new("L", (10_000, 10_000)))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (b"\x0a\xff", r"it is not a tf\.train\.Example"),
        (example({"image": PIXELS}), "it has no 'label', only 'image'"),
        (b"", "it has no 'image', only nothing"),
        (example({"image": PIXELS, "label": b""}), "it has 0 integers as its label, expected 1"),
        (example({"image": integers(1), "label": integers(1)}), "it has 0 byte strings as its image, expected 1"),
        (example({"image": PIXELS, "label": integers(1, 2)}), "it has 2 integers as its label, expected 1"),
        (example({"image": PIXELS, "label": integers(10)}), r"its label is 10, expected 0 \.\.\. 9"),
        (example({"image": PIXELS, "label": integers(-1)}), r"its label is -1, expected 0 \.\.\. 9"),
        (
            example({"image": byte_strings(image_file(np.zeros((32, 31), np.uint8))), "label": integers(1)}),
            r"its image has the size \(31, 32\), expected \(32, 32\)",
        ),
        (example({"image": byte_strings(PIXELS[4:-30]), "label": integers(1)}), "cannot be decoded"),
        (example({"image": byte_strings(b"cposix\nsystem\n"), "label": integers(1)}), r"b'cposix.*cannot be decoded"),
    ],
)
def test_records_of_another_kind_are_refused(tmp_path, record, message):
    hostile.write(tmp_path, [[good(0), record]])
    refused(f"split 'train', record 1: .*{message}", tmp_path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("image", "message"),
    [(WIDE, "has 100000000 pixels, more than 89478485"), (image_file(Image.new("1", (14_000, 14_000))), "Bomb")],
)
def test_a_small_file_that_would_fill_the_memory_is_refused(tmp_path, image, message):
    assert len(image) < 200_000
    hostile.write(tmp_path, [[example({"image": byte_strings(image), "label": integers(1)})] * 2], "pets")
    refused(message, tmp_path, "pets")


def put(tree, path, value):
    """Replaces what lies there in JSON; ... removes it."""
    *path, last = path
    for name in path:
        tree = tree[name]
    if value is ...:
        del tree[last]
    else:
        tree[last] = value


FEATURES, SPLIT = ("featuresDict", "features"), ("splits", 0)


@pytest.mark.parametrize(
    ("name", "path", "value", "message"),
    [
        ("dataset_info.json", ("fileFormat",), ["x"], r"is in the format \['x'\], not array_record"),
        ("dataset_info.json", ("fileFormat",), ..., "has no fileFormat in its JSON, but {'name'"),
        ("dataset_info.json", ("splits",), {"train": 1}, "has the splits {'train': 1}, not a list"),
        ("dataset_info.json", ("splits",), [1], "has no name in its JSON, but 1"),
        (
            "dataset_info.json",
            (*SPLIT, "filepathTemplate"),
            "../{SPLIT}",
            "names its files '../{SPLIT}', not ",
        ),
        ("dataset_info.json", (*SPLIT, "filepathTemplate"), "/etc/passwd", "names its files '/etc/passwd'"),
        ("dataset_info.json", (*SPLIT, "shardLengths"), "2", "has '2' for the shardLengths of 'train', not a list"),
        ("dataset_info.json", (*SPLIT, "shardLengths"), [], r"has \[\] for the shardLengths"),
        ("dataset_info.json", (*SPLIT, "shardLengths"), ["-2"], "has '-2' in its JSON for a number"),
        ("dataset_info.json", (*SPLIT, "shardLengths"), [1e300], "has 1e.300 in its JSON for a number"),
        ("dataset_info.json", (*SPLIT, "shardLengths"), ["9" * 15], "has 2 records, and dataset_info.json says 9999"),
        ("dataset_info.json", (*SPLIT, "shardLengths"), [1], "has 2 records, and dataset_info.json says 1"),
        ("dataset_info.json", (*SPLIT, "shardLengths"), [1, 1], "there is no file cifar10-train.*00000-of-00002"),
        ("features.json", ("featuresDict",), ..., "has no featuresDict.features in its JSON"),
        ("features.json", (*FEATURES, "image", "image"), None, "has no image.image.dtype in its JSON, but None"),
        ("features.json", (*FEATURES, "image", "image", "dtype"), "float32", "has images of 'float32', not uint8"),
        ("features.json", (*FEATURES, "label"), {"tensor": {}}, "has no label.classLabel.numClasses"),
        (
            "features.json",
            (*FEATURES, "label", "classLabel", "numClasses"),
            "1e1",
            "has '1e1' in its JSON for a number",
        ),
    ],
)
def test_descriptions_of_another_kind_are_refused(tmp_path, name, path, value, message):
    place = hostile.write(tmp_path, [[good(0), good(1)]])
    tree = json.loads((place / name).read_text())
    put(tree, path, value)
    (place / name).write_text(json.dumps(tree))
    refused(message, tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 200 + "1" + "}" * 200, "null", "[1]", "{", '{"a": NaN}'])
@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_damaged_descriptions_are_refused(tmp_path, name, text):
    (hostile.write(tmp_path, [[good(0), good(1)]]) / name).write_text(text)
    refused(f"cifar10/3.0.2 is damaged .*{name}.*: prepare it with: .*, when that folder is removed", tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "pets"])
def test_a_part_that_is_missing_or_cut_off_is_refused_before_training(tmp_path, name):
    place = hostile.write(tmp_path, [[good(0), good(1)], [good(2)]], name)
    part = next(place.glob("*-00001-of-00002"))
    whole = part.read_bytes()
    for damaged in (whole[:-100], whole[: len(whole) // 2], b"", os.urandom(70_000)):
        part.write_bytes(damaged)
        with pytest.raises(UserError, match="split 'train', cannot be read"):
            opened(tmp_path, name)
    part.unlink()
    with pytest.raises(UserError, match="there is no file .*-00001-of-00002"):
        opened(tmp_path, name)


class _Spring:
    """Unpickling it calls ``os.mkdir``."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_an_archive_with_a_pickle_is_refused_unopened(tmp_path):
    trap = np.array([_Spring(tmp_path / "sprung")] * 140, object)
    path = tiny_data.write_pacs(tmp_path, y=trap)
    with pytest.raises(UserError, match="pacs_64.npz cannot be read .*allow_pickle=False"):
        read(DataConfig(name="pacs", folder=tmp_path))
    np.save(path.with_suffix(".npy"), trap, allow_pickle=True)
    for content in (path.with_suffix(".npy").read_bytes(), trap.dumps(), b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match="pacs_64.npz cannot be read"):
            read(DataConfig(name="pacs", folder=tmp_path))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "labels", [np.zeros(140, np.int8), np.array(3, np.uint8), np.full(140, "7"), np.zeros((140, 1))]
)
def test_labels_of_another_type_are_refused(tmp_path, labels):
    tiny_data.write_pacs(tmp_path, y=labels)
    with pytest.raises(UserError, match="pacs_64.npz: [xy] is "):
        read(DataConfig(name="pacs", folder=tmp_path))
