"""Data sets as tfds has prepared them on disk, read without TensorFlow and without the code that prepared them."""

import os
from pathlib import Path
from typing import Any

import google.protobuf.json_format
import tensorflow_datasets as tfds

from experiments.common.errors import UserError, require
from experiments.data.catalogue import DATA_SETS, DataSet
from experiments.data.config import DataConfig


def folder_of(config: DataConfig) -> Path:
    """Where tfds keeps its data sets."""
    chosen = config.folder or os.environ.get("TFDS_DATA_DIR") or Path("~", "tensorflow_datasets")
    return Path(chosen).expanduser()


class Prepared:
    """One data set on disk. Its records are those of its ArrayRecord files, in their order."""

    def __init__(self, data_set: DataSet, folder: Path):
        """Raises UserError if it is not there, or not as :mod:`experiments.data.prepare` makes it."""
        self.place = place(data_set, folder)
        wanted = (
            f"prepare it with: python -m experiments.main prepare --data {data_set.name} --folder {folder} "
            "(if it is elsewhere, give its --data.folder)"
        )
        require((self.place / "dataset_info.json").exists(), f"{data_set.name} is not in {self.place}: {wanted}")
        try:
            self._builder: Any = tfds.builder_from_directory(self.place)
        except (OSError, ValueError, KeyError, google.protobuf.json_format.Error) as error:
            raise UserError(f"{self.place} is damaged ({error}): remove it, then {wanted}") from error
        info = self._builder.info
        found = info.file_format.value
        require(found == "array_record", f"{self.place} is in the format {found}, not array_record: {wanted}")
        for split in ("train", data_set.test_split):
            require(split in info.splits, f"{self.place} has no split {split!r}: remove it, then {wanted}")
        classes = info.features["label"].num_classes
        require(classes == data_set.num_classes, f"{self.place} has {classes} classes, expected {data_set.num_classes}")

    def size(self, split: str) -> int:
        """Number of records."""
        return self._builder.info.splits[split].num_examples

    def records(self, split: str) -> Any:
        """Random access to dicts with ``image``, the bytes of an image file, and ``label``, an integer."""
        return self._builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})


def place(data_set: DataSet, folder: Path) -> Path:
    """The folder of one data set within the folder of all."""
    assert data_set.tfds_name is not None
    return folder.joinpath(*data_set.tfds_name.split(":"))


def known(name: str) -> DataSet:
    """The data set of that name that tfds prepares."""
    names = [each.name for each in DATA_SETS.values() if each.tfds_name is not None]
    require(name in names, f"there is nothing to prepare for {name!r}: it is for {', '.join(names)}")
    return DATA_SETS[name]
