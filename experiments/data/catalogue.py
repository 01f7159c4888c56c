"""The data sets: what they are called, how large their images are, and how these are normalised."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSet:
    """One data set.

    Attributes:
      name: here.
      tfds_name: in TensorFlow Datasets, with its version; None where it has other ways.
      num_classes: labels are 0 ... num_classes - 1.
      image_shape: height, width, channels of what training sees.
      mean: of each channel, with pixels in [0, 1].
      std: standard deviation of each channel, with pixels in [0, 1].
      in_memory: decoded once and kept; if not, decoded from disk again in every epoch.
      test_split: what tfds calls the images that are measured on.
      domains: where they come from, if one of them is held out to be measured on.
    """

    name: str
    tfds_name: str | None
    num_classes: int
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    in_memory: bool
    test_split: str = "test"
    domains: tuple[str, ...] = ()

    def resized(self, size: int | None) -> "DataSet":
        """The data set with images of this height and width, or as it is."""
        shape = self.image_shape if size is None else (size, size, self.image_shape[-1])
        return dataclasses.replace(self, image_shape=shape)


def _photographs(name: str, tfds_name: str, num_classes: int, test_split: str = "test") -> DataSet:
    """A large set of photographs of any size, normalised as ImageNet is, which networks were pretrained on."""
    return DataSet(
        name=name,
        tfds_name=tfds_name,
        num_classes=num_classes,
        image_shape=(224, 224, 3),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        in_memory=False,
        test_split=test_split,
    )


_ALL = (
    DataSet(
        name="digits",  # pixels 0 ... 16: (pixel / 255 - mean) / std is pixel / 16
        tfds_name=None,
        num_classes=10,
        image_shape=(8, 8, 1),
        mean=(0.0,),
        std=(16 / 255,),
        in_memory=True,
    ),
    DataSet(
        name="fashion_mnist",
        tfds_name="fashion_mnist:3.0.1",
        num_classes=10,
        image_shape=(28, 28, 1),
        mean=(0.2860,),
        std=(0.3530,),
        in_memory=True,
    ),
    DataSet(
        name="cifar10",
        tfds_name="cifar10:3.0.2",
        num_classes=10,
        image_shape=(32, 32, 3),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        in_memory=True,
    ),
    DataSet(
        name="cifar100",
        tfds_name="cifar100:3.0.2",
        num_classes=100,
        image_shape=(32, 32, 3),
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        in_memory=True,
    ),
    DataSet(
        name="pacs",
        tfds_name=None,
        num_classes=7,
        image_shape=(64, 64, 3),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        in_memory=True,
        domains=("art painting", "cartoon", "photo", "sketch"),
    ),
    _photographs("imagenet", "imagenet2012:5.1.0", 1000, "validation"),  # the labels of its test split are secret
    _photographs("cars", "cars196:2.1.0", 196),
    _photographs("pets", "oxford_iiit_pet:4.0.0", 37),
    _photographs("food101", "food101:2.0.0", 101, "validation"),  # has no other
)

DATA_SETS = {data_set.name: data_set for data_set in _ALL}
"""All data sets by name."""
