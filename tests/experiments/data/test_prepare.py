"""Preparing data sets: what is refused; and the real builder of CIFAR-10 on a small archive."""

import hashlib
import io
import json
import sys
import tarfile
import types
from pathlib import Path

import numpy as np
import pytest

from experiments.common.errors import UserError
from experiments.data import open_data
from experiments.data.config import DataConfig
from experiments.data.prepare import prepare
from tests.experiments.data import tiny_data

ARCHIVE = "cifar-10-binary.tar.gz"


@pytest.fixture
def some_tensorflow(monkeypatch):
    """What is refused here is refused before TensorFlow is used; only its presence is asked for."""
    tensorflow = types.SimpleNamespace(errors=types.SimpleNamespace(OpError=OSError))
    monkeypatch.setattr(
        "experiments.data.prepare.importlib", types.SimpleNamespace(import_module=lambda name: tensorflow)
    )


def test_a_missing_tensorflow_names_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(UserError, match=r"preparing cifar10 needs TensorFlow, .*: pip install '\.\[prepare\]'"):
        prepare("cifar10", tmp_path, None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_only_what_tfds_has_is_prepared(tmp_path, name):
    with pytest.raises(UserError, match=f"nothing to prepare for '{name}': it is for fashion_mnist, cifar10, "):
        prepare(name, tmp_path, None)


def test_what_is_there_is_left_as_it_is(tmp_path, capsys):
    tiny_data.prepare(tmp_path, "cifar10", {"train": 4, "test": 4}, "PNG")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    prepare("cifar10", tmp_path, None)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert "cifar10 is already in" in capsys.readouterr().out


def test_a_missing_archive_is_named_with_where_to_get_it(tmp_path, some_tensorflow):
    with pytest.raises(UserError, match=rf"there is no .*{ARCHIVE}: .* https://www\.cs\.toronto\.edu"):
        prepare("cifar10", tmp_path / "tfds", tmp_path)
    assert list((tmp_path / "tfds").iterdir()) == []


def test_another_archive_is_refused_and_both_checksums_named(tmp_path, some_tensorflow):
    (tmp_path / ARCHIVE).write_bytes(b"something else")
    found = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(UserError, match=rf"sha256 {found}, and c4a38c50a1bc5f\w+ is recorded .* --trust-archives"):
        prepare("cifar10", tmp_path / "tfds", tmp_path)


def test_imagenet_cannot_be_downloaded(tmp_path, some_tensorflow):
    with pytest.raises(UserError, match=r"imagenet cannot be downloaded, give --archives"):
        prepare("imagenet", tmp_path, None)


def write_archive(folder: Path, rows_in_file: int) -> np.ndarray:
    """A small archive laid out as CIFAR-10's; returns its rows: a label and 3 x 32 x 32 pixels each."""
    files = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    rows = np.random.default_rng(0).integers(256, size=(6, rows_in_file, 3073), dtype=np.uint8)
    rows[..., 0] %= 10
    contents = {name: part.tobytes() for name, part in zip(files, rows, strict=True)}
    contents["batches.meta.txt"] = "\n".join(f"class {i}" for i in range(10)).encode()
    with tarfile.open(folder / ARCHIVE, "w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return rows


@pytest.mark.prepare
def test_the_real_builder_writes_what_training_reads(tmp_path, capsys):
    pytest.importorskip("tensorflow", reason="the builders of tfds need it: pip install '.[prepare]'")
    rows = write_archive(tmp_path, 7)
    folder = tmp_path / "tfds"
    with pytest.raises(UserError, match="is recorded for"):
        prepare("cifar10", folder, tmp_path)
    prepare("cifar10", folder, tmp_path, trust_archives=True)
    checksum = hashlib.sha256((tmp_path / ARCHIVE).read_bytes()).hexdigest()
    assert checksum in capsys.readouterr().out
    assert list(json.loads((folder / "cifar10/3.0.2/archives.json").read_text()).values()) == [checksum]
    with pytest.raises(UserError, match="is recorded for"):
        prepare("cifar10", tmp_path / "other", tmp_path)  # trust is for one call

    config = DataConfig(name="cifar10", folder=folder, validation=0.0)
    pipeline = open_data(config, seed=0, batch_size=7, process_index=0, process_count=1)
    for part, expected in (("train", rows[:5]), ("test", rows[5:])):
        found = {
            (int(label), image.transpose(2, 0, 1).tobytes())
            for batch in pipeline.evaluation(part)
            for image, label in zip(batch.image, batch.label, strict=True)
        }
        assert found == {(int(row[0]), row[1:].tobytes()) for row in expected.reshape(-1, 3073)}


@pytest.mark.prepare
def test_a_broken_archive_leaves_nothing_behind(tmp_path):
    pytest.importorskip("tensorflow", reason="the builders of tfds need it: pip install '.[prepare]'")
    (tmp_path / ARCHIVE).write_bytes(b"not an archive")
    with pytest.raises(UserError, match="cannot prepare cifar10"):
        prepare("cifar10", tmp_path / "tfds", tmp_path, trust_archives=True)
    assert not list((tmp_path / "tfds").glob("extracted-*"))
    assert not (tmp_path / "tfds" / "cifar10" / "3.0.2").exists()
