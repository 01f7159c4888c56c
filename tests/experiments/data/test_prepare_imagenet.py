"""The real builder of ImageNet on archives laid out as the published ones, of a few photographs."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from experiments.data import open_data
from experiments.data.config import DataConfig
from experiments.data.prepare import prepare
from tests.experiments.data import tiny_data

CLASSES = 24
TRAIN, VALIDATION = 96, 37


def _lines(name: str) -> list[str]:
    return tfds.core.tfds_path(f"datasets/imagenet2012/{name}.txt").read_text().split()


def _tar(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def write_archives(folder: Path) -> None:
    """An archive of archives, one for each class, to train on; and one to evaluate on, in the order of its labels."""
    synsets = _lines("labels")[:CLASSES]
    inner = {
        f"{synset}.tar": _tar({f"{synset}_{i}.JPEG": tiny_data.photograph(i) for i in range(c, TRAIN, CLASSES)})
        for c, synset in enumerate(synsets)
    }
    (folder / "ILSVRC2012_img_train.tar").write_bytes(_tar(inner))
    images = {f"ILSVRC2012_val_{i + 1:08}.JPEG": tiny_data.photograph(TRAIN + i) for i in range(VALIDATION)}
    (folder / "ILSVRC2012_img_val.tar").write_bytes(_tar(images))


@pytest.mark.prepare
def test_the_real_builder_writes_what_training_reads(tmp_path):
    pytest.importorskip("tensorflow", reason="the builders of tfds need it: pip install '.[prepare]'")
    write_archives(tmp_path)
    prepare("imagenet", tmp_path / "tfds", tmp_path, trust_archives=True)
    config = DataConfig(name="imagenet", folder=tmp_path / "tfds", image_size=32, validation=0.0, workers=0)
    pipeline = open_data(config, seed=0, batch_size=8, process_index=0, process_count=1)
    synsets = _lines("labels")
    expected = {
        "train": [i % CLASSES for i in range(TRAIN)],
        "test": [synsets.index(name) for name in _lines("validation_labels")[:VALIDATION]],
    }
    for part, labels in expected.items():
        batches = list(pipeline.evaluation(part))
        found = np.concatenate([batch.label[batch.weight > 0] for batch in batches])
        assert sorted(found) == sorted(labels), part
        assert len({batch.image.tobytes() for batch in batches}) == len(batches)
