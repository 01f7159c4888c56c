"""PACS (Li et al. 2017): seven kinds of things as art paintings, cartoons, photographs and sketches.

It is for domain generalization: a network is trained on three of these domains and measured on the fourth. Read from
``pacs/pacs_64.npz`` in the folder of the data sets, with the arrays x (n, 64, 64, 3), y (n,) and domain (n,), uint8.
"""

import math
import zipfile
from pathlib import Path

import numpy as np

from experiments.common.errors import UserError, require
from experiments.data.catalogue import DataSet
from experiments.data.digits import Labelled

_MOST = 20_000
"""Images that an archive may hold; PACS has 9,991."""
_HEADER = 10_000
"""Bytes before an array that NumPy reads at most."""


def pacs(folder: Path, data_set: DataSet) -> list[Labelled]:
    """The images of each domain.

    Raises:
      UserError: if they are not there, or something else is.
    """
    path = folder / "pacs" / "pacs_64.npz"
    require(
        path.exists(), f"there is no {path}: put an archive there with x (n, 64, 64, 3), y (n,), domain (n,), uint8"
    )
    try:
        with zipfile.ZipFile(path) as members:
            _check_sizes(members, _MOST * math.prod(data_set.image_shape) + _HEADER)
        with np.load(path, allow_pickle=False) as archive:
            images, labels, domain = (archive[name] for name in ("x", "y", "domain"))
    except Exception as error:  # NumPy and zipfile raise whatever they stumble over
        raise UserError(f"{path} cannot be read ({error})") from error
    count = (labels.size,)
    shapes = {"x": (images, count + data_set.image_shape), "y": (labels, count), "domain": (domain, count)}
    for name, (array, shape) in shapes.items():
        require(
            array.dtype == np.uint8 and array.shape == shape,
            f"{path}: {name} is {array.shape} {array.dtype}, not {shape} uint8",
        )
    found, wanted = np.unique(domain), np.arange(len(data_set.domains))
    require(np.array_equal(found, wanted), f"{path} has the domains {found}, expected {wanted}")
    require(int(labels.max()) < data_set.num_classes, f"{path} has the label {labels.max()}, expected 0 ... 6")
    return [(images[domain == one], labels[domain == one].astype(np.int32)) for one in wanted]


def _check_sizes(members: zipfile.ZipFile, most: int) -> None:
    """Refuses what would unpack to more bytes, before memory is spent on it.

    Every member counts, as NumPy looks for an array under two names; both the size that the archive says and that of
    the array, which NumPy makes room for at once.
    """
    for member in members.infolist():
        name, kinds = member.filename, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        require(member.compress_type in kinds, f"{name} is compressed by method {member.compress_type}, not deflated")
        with members.open(member) as file:
            version = np.lib.format.read_magic(file)
            header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            require(version in header, f"{name} has the NumPy format {version}, expected 1.0 or 2.0")
            shape, _, dtype = header[version](file)
        size = max(member.file_size, math.prod(shape) * dtype.itemsize)
        require(size <= most, f"{name} would unpack to {size} bytes, expected at most {most}")
