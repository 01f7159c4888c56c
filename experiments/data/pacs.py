"""PACS (Li et al. 2017): seven kinds of things as art paintings, cartoons, photographs and sketches.

It is for domain generalization: a network is trained on three of these domains and measured on the fourth. Read from
``pacs/pacs_64.npz`` in the folder of the data sets, with the arrays x (n, 64, 64, 3), y (n,) and domain (n,), uint8.
"""

import zipfile
from pathlib import Path

import numpy as np

from experiments.common.errors import UserError, require
from experiments.data.catalogue import DataSet
from experiments.data.digits import Labelled


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
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as archive:
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
