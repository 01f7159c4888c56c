"""Data sets as tfds has prepared them on disk, read without TensorFlow, tfds, and the code that prepared them.

tfds would import the Python classes that ``features.json`` names. Here that file and ``dataset_info.json`` are JSON, of
which the few fields that matter are checked, and the files with the records have the names that tfds gives by default:
nothing is imported, and nothing outside of the folder is opened by its contents.
"""

import os
from pathlib import Path
from typing import Any

from array_record.python.array_record_data_source import ArrayRecordDataSource

from experiments.common.errors import UserError, require
from experiments.common.store import read_object
from experiments.data.catalogue import DATA_SETS, DataSet
from experiments.data.config import DataConfig
from experiments.data.records import Records, readable

_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
"""How tfds names its files."""


def folder_of(config: DataConfig) -> Path:
    """Where tfds keeps its data sets."""
    chosen = config.folder or os.environ.get("TFDS_DATA_DIR") or Path("~", "tensorflow_datasets")
    return Path(chosen).expanduser()


class Prepared:
    """One data set on disk. Its records are those of its ArrayRecord files, in their order."""

    def __init__(self, data_set: DataSet, folder: Path):
        """Raises UserError if it is not there, or not as :mod:`experiments.data.prepare` makes it."""
        self._data_set = data_set
        self.place = place(data_set, folder)
        wanted = f"prepare it with: python -m experiments.main prepare --data {data_set.name} --folder {folder}"
        there = (self.place / "dataset_info.json").exists()
        require(there, f"{data_set.name} is not in {self.place}: {wanted} (if it is elsewhere, give its --data.folder)")
        try:
            info, features = (self._read(name) for name in ("dataset_info.json", "features.json"))
            found = _field(info, "fileFormat")
            require(found == "array_record", f"is in the format {str(found)[:20]}, not array_record")
            self._sizes = {split: _sizes(info, split) for split in ("train", data_set.test_split)}
            _check_features(_field(features, "featuresDict", "features"), data_set)
        except UserError as error:
            raise UserError(f"{self.place} {error}: {wanted}, when that folder is removed") from error

    def _read(self, name: str) -> dict[str, Any]:
        try:
            return read_object(self.place / name)
        except UserError as error:
            raise UserError(f"is damaged ({error})") from error

    def records(self, split: str) -> Records:
        """Random access to the records of a split.

        Raises:
          UserError: if a file is missing or damaged, or the files hold another number of records than they should.
        """
        sizes, where = self._sizes[split], f"{self.place}, split {split!r}"
        name = f"{self.place.parent.name}-{split}.array_record"
        paths = [self.place / f"{name}-{i:05d}-of-{len(sizes):05d}" for i in range(len(sizes))]
        for path in paths:
            require(path.is_file(), f"{where}, cannot be read (there is no file {path.name}): prepare it again")
        with readable(where):
            source = ArrayRecordDataSource([str(path) for path in paths])
        require(
            len(source) == sum(sizes),
            f"{where}, has {len(source)} records, and dataset_info.json says {sum(sizes)}: prepare it again",
        )
        return Records(source, where, self._data_set)


def place(data_set: DataSet, folder: Path) -> Path:
    """The folder of one data set within the folder of all."""
    assert data_set.tfds_name is not None
    return folder.joinpath(*data_set.tfds_name.split(":"))


def known(name: str) -> DataSet:
    """The data set of that name that tfds prepares."""
    names = [each.name for each in DATA_SETS.values() if each.tfds_name is not None]
    require(name in names, f"there is nothing to prepare for {name!r}: it is for {', '.join(names)}")
    return DATA_SETS[name]


def _field(tree: Any, *path: str) -> Any:
    """What lies there in JSON."""
    for name in path:
        require(isinstance(tree, dict) and name in tree, f"has no {'.'.join(path)} in its JSON, but {_brief(tree)}")
        tree = tree[name]
    return tree


def _brief(tree: Any) -> str:
    return repr(tree)[:100]


def _number(value: Any) -> int:
    """A count: 12 or "12", as protocol buffers write it in JSON."""
    text = str(value)
    require(text.isascii() and text.isdecimal() and len(text) < 16, f"has {_brief(value)} in its JSON for a number")
    return int(text)


def _check_features(features: Any, data_set: DataSet) -> None:
    """Refuses what has no images and labels like those of the data set. Names of classes are not looked at."""
    dtype = _field(features, "image", "image", "dtype")
    require(dtype == "uint8", f"has images of {_brief(dtype)}, not uint8")
    classes = _number(_field(features, "label", "classLabel", "numClasses"))
    require(classes == data_set.num_classes, f"has {classes} classes, expected {data_set.num_classes}")


def _sizes(info: Any, name: str) -> tuple[int, ...]:
    """How many records the files of a split hold."""
    splits = _field(info, "splits")
    require(isinstance(splits, list), f"has the splits {_brief(splits)}, not a list")
    found = [split for split in splits if _field(split, "name") == name]
    require(len(found) > 0, f"has no split {name!r}")
    template, sizes = _field(found[0], "filepathTemplate"), _field(found[0], "shardLengths")
    require(template == _TEMPLATE, f"names its files {_brief(template)}, not {_TEMPLATE!r}")
    require(
        isinstance(sizes, list) and len(sizes) > 0, f"has {_brief(sizes)} for the shardLengths of {name!r}, not a list"
    )
    return tuple(map(_number, sizes))
