"""The records of a data set that tfds has prepared, read from its ArrayRecord files as nothing but bytes.

A record is a serialised ``tf.train.Example``: names, each with a list of byte strings, floats or integers. Its schema,
which has not changed since 2015, stands here, so that neither TensorFlow nor tfds is needed. Taken from a record are
the bytes of an image file and an integer: nothing that it holds is looked up, imported or called.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from array_record.python.array_record_data_source import ArrayRecordDataSource
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory
from PIL import Image

from experiments.common.errors import UserError, require
from experiments.data.catalogue import DataSet
from experiments.data.images import decode

Labelled = tuple[Image.Image, int]
"""An image and its label."""


@dataclasses.dataclass(frozen=True)
class Records:
    """Random access to the images of one split with their labels, each decoded when it is asked for.

    Attributes:
      source: the bytes of each.
      where: they are, in words.
      data_set: what they must fit.
    """

    source: ArrayRecordDataSource
    where: str
    data_set: DataSet

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Labelled:
        """Raises UserError if it cannot be read, or does not fit the data set."""
        with readable(self.where):
            record = self.source[index]
        return self._decoded(index, record)

    def take(self, indices: Sequence[int]) -> list[Labelled]:
        """Several at once, which is faster. Raises as for one."""
        with readable(self.where):
            records = self.source.__getitems__(indices)
        return [self._decoded(index, record) for index, record in zip(indices, records, strict=True)]

    def _decoded(self, index: int, record: bytes) -> Labelled:
        height, width, channels = self.data_set.image_shape
        try:
            encoded, label = _parse(record)
            classes = self.data_set.num_classes
            require(0 <= label < classes, f"its label is {label}, expected 0 ... {classes - 1}")
            return decode(encoded, channels, (width, height) if self.data_set.in_memory else None), label
        except UserError as error:
            raise UserError(f"{self.where}, record {index}: {error}") from error


@contextlib.contextmanager
def readable(where: str) -> Iterator[None]:
    """Turns what ArrayRecord raises for a damaged file into a UserError."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, IndexError) as error:
        raise UserError(f"{where}, cannot be read ({error}): prepare it again") from error


def _parse(record: bytes) -> tuple[bytes, int]:
    """The image file and the label in a record."""
    try:
        features = {entry.name: entry.feature for entry in _EXAMPLE.FromString(record).features.entries}
    except message.DecodeError as error:
        raise UserError(f"it is not a tf.train.Example ({error})") from error
    for name in ("image", "label"):
        require(name in features, f"it has no {name!r}, only {', '.join(map(repr, features)) or 'nothing'}")
    images, labels = features["image"].bytes.values, features["label"].integers.values
    require(len(images) == 1, f"it has {len(images)} byte strings as its image, expected 1")
    require(len(labels) == 1, f"it has {len(labels)} integers as its label, expected 1")
    return images[0], labels[0]


def _schema() -> Any:
    """The class of ``tf.train.Example``. A map is in this format a list of its entries."""
    kinds = descriptor_pb2.FieldDescriptorProto
    messages = {
        "Bytes": [("values", 1, kinds.TYPE_BYTES)],
        "Integers": [("values", 1, kinds.TYPE_INT64)],
        "Feature": [("bytes", 1, "Bytes"), ("integers", 3, "Integers")],  # 2 are floats
        "Entry": [("name", 1, kinds.TYPE_STRING), ("feature", 2, "Feature")],
        "Features": [("entries", 1, "Entry")],
        "Example": [("features", 1, "Features")],
    }
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", syntax="proto3")
    for name, fields in messages.items():
        added = file.message_type.add(name=name)
        for field, number, kind in fields:
            many = kinds.LABEL_REPEATED if field in ("values", "entries") else kinds.LABEL_OPTIONAL
            of = {"type": kinds.TYPE_MESSAGE, "type_name": kind} if isinstance(kind, str) else {"type": kind}
            added.field.add(name=field, number=number, label=many, **of)
    pool = descriptor_pool.DescriptorPool()  # of its own: no other library's messages can clash with these
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("Example"))


_EXAMPLE = _schema()
