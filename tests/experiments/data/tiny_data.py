"""Data sets of a few small images, prepared by a tfds builder of our own under the names of real ones."""

import io
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from experiments.data.catalogue import DATA_SETS


def write_pacs(folder: Path, **changes: np.ndarray) -> Path:
    """Five images of each kind in each domain, constant, of value 10 * domain + kind."""
    domain, label = (axis.ravel() for axis in np.mgrid[:4, :7, :5][:2].astype(np.uint8))
    image = np.broadcast_to((10 * domain + label)[:, None, None, None], (len(label), 64, 64, 3))
    path = folder / "pacs" / "pacs_64.npz"
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **{"x": image, "y": label, "domain": domain, **changes})
    return path


def photograph(i: int) -> bytes:
    """A JPEG of random pixels and shape; the first one is grey."""
    rng = np.random.default_rng(i)
    shape = (int(rng.integers(40, 90)), int(rng.integers(40, 90)), 3)
    image = Image.fromarray(rng.integers(256, size=shape, dtype=np.uint8))
    return _encoded(image.convert("L") if i == 0 else image, "JPEG")


def _encoded(image: Image.Image, image_format: str) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format)
    return file.getvalue()


def prepare(folder: Path, name: str, sizes: dict[str, int], image_format: str, changed_classes: int = 0) -> None:
    """Writes ArrayRecord files as ``tfds`` does for the real data set; needs no TensorFlow.

    The label of the i-th image of a split is i modulo the number of classes. PNG images have the data set's own shape
    and are constant, of value i; JPEG images have many shapes and random pixels, and the first one is grey.
    """
    data_set = DATA_SETS[name]
    tfds_name, version = data_set.tfds_name.split(":")
    classes = data_set.num_classes + changed_classes
    height, width, channels = data_set.image_shape

    def encode(i: int) -> bytes:
        if image_format == "JPEG":
            return photograph(i)
        return _encoded(Image.fromarray(np.full((height, width, channels), i, np.uint8).squeeze()), image_format)

    with tfds.core.registered.skip_registration():

        class Builder(tfds.core.GeneratorBasedBuilder):
            name = tfds_name
            VERSION = tfds.core.Version(version)

            def _info(self):
                shape = None if image_format == "JPEG" else data_set.image_shape
                features = {
                    "image": tfds.features.Image(shape=shape, encoding_format=image_format.lower()),
                    "label": tfds.features.ClassLabel(num_classes=classes),
                }
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

            def _split_generators(self, dl_manager):
                return {split: self._generate_examples(size) for split, size in sizes.items()}

            def _generate_examples(self, size):
                for i in range(size):
                    yield i, {"image": io.BytesIO(encode(i)), "label": i % classes}

    Builder(data_dir=folder, file_format="array_record").download_and_prepare()
