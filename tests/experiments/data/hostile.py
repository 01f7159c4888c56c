"""Prepared data sets that are written byte by byte, well or badly; and a module that tells when it is imported."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from experiments.data.catalogue import DATA_SETS

TRAP = "import pathlib\npathlib.Path(__file__).with_name('sprung').touch()\n"
"""A module that leaves a file beside itself when it is imported."""


def field(number: int, content: bytes | int) -> bytes:
    """One field of a protocol buffer: a number, or bytes with their length before them."""
    if isinstance(content, int):
        return _varint(number << 3) + _varint(content % 2**64)
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    more = [value >> shift & 127 | 128 for shift in range(0, max(value.bit_length(), 1), 7)]
    more[-1] &= 127
    return bytes(more)


def example(features: Mapping[str, bytes]) -> bytes:
    """A ``tf.train.Example`` of these features."""
    entries = [field(1, field(1, name.encode()) + field(2, feature)) for name, feature in features.items()]
    return field(1, b"".join(entries))


def byte_strings(*values: bytes) -> bytes:
    return field(1, b"".join(field(1, value) for value in values))


def integers(*values: int) -> bytes:
    return field(3, b"".join(field(1, value) for value in values))


def image_file(image: Any, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, format, **options)
    return file.getvalue()


def good(i: int) -> bytes:
    """A record of CIFAR-10: constant, of value i."""
    pixels = image_file(np.full((32, 32, 3), i, np.uint8))
    return example({"image": byte_strings(pixels), "label": integers(i % 10), "id": byte_strings(b"x")})


def write(
    folder: Path, train: Sequence[Sequence[bytes]], name: str = "cifar10", class_of: str = "evil.Feature"
) -> Path:
    """A prepared data set with these records in the files of its training split, and one good record to test on."""
    data_set = DATA_SETS[name]
    place = folder.joinpath(*str(data_set.tfds_name).split(":"))
    place.mkdir(parents=True)
    splits = []
    for split, files in {"train": train, data_set.test_split: [[good(0)]]}.items():
        for number, records in enumerate(files):
            path = place / f"{place.parent.name}-{split}.array_record-{number:05d}-of-{len(files):05d}"
            writer = ArrayRecordWriter(str(path), "group_size:1")
            for record in records:
                writer.write(record)
            writer.close()
        lengths = [str(len(records)) for records in files]
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        splits.append({"name": split, "filepathTemplate": template, "shardLengths": lengths, "numBytes": "1"})
    info = {"name": place.parent.name, "version": place.name, "fileFormat": "array_record", "splits": splits}
    image = {"image": {"dtype": "uint8", "encodingFormat": "png"}, "pythonClassName": class_of}
    label = {"classLabel": {"numClasses": str(data_set.num_classes)}, "pythonClassName": class_of}
    features = {"featuresDict": {"features": {"image": image, "label": label}}, "pythonClassName": class_of}
    (place / "dataset_info.json").write_text(json.dumps(info | {"moduleName": class_of.rpartition(".")[0]}))
    (place / "features.json").write_text(json.dumps(features))
    return place
