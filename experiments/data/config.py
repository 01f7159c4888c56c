"""Which data a network is trained on."""

import dataclasses
from pathlib import Path
from typing import Literal

from experiments.common.errors import require, require_at_least, require_fraction, require_seed

DataName = Literal["digits", "fashion_mnist", "cifar10", "cifar100", "pacs", "imagenet", "cars", "pets", "food101"]
"""Data sets that a network can be trained on."""
SPLIT_PER_SEED: tuple[DataName, ...] = ("digits", "pacs")
"""Those of which each seed of a study draws its own split."""
Augmentation = Literal["none", "basic", "cutout", "randaugment", "autoaugment", "randaugment_light"]
"""Of training images: nothing; random crop and flip; and on top of these Cutout, RandAugment, AutoAugment, or a light
RandAugment alone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """A data set, its split, its wrong labels, and its augmentation."""

    name: DataName
    """The data set."""
    folder: Path | None = None
    """Where tfds keeps its data sets; if not given, the environment variable TFDS_DATA_DIR, then tfds' own default."""
    validation: float = 0.1
    """Fraction of the training images that is set aside to choose by; with 0 nothing is, and the test set decides."""
    train_size: int | None = None
    """Train on only this many of the remaining training images."""
    noise: float = 0.0
    """Fraction of the training labels that is replaced by a wrong one, each other class equally likely."""
    augment: Augmentation = "basic"
    """Augmentation of training images."""
    image_size: int | None = None
    """Resize images to this height and width; if not given, the size that the data set has."""
    split_seed: int = 0
    """Which images are set aside, and which are trained on where train_size is given. Of pacs the domain with this
    number modulo 4 is the test set: art painting, cartoon, photo, sketch."""
    workers: int = 0
    """Processes that decode images, for data sets that do not fit into memory; with 0, threads of this one."""

    def __post_init__(self):
        require_fraction("data.noise", self.noise)
        require_fraction("data.validation", self.validation)
        require(self.validation < 1, f"data.validation must leave something to train on, got {self.validation}")
        require_at_least(self, 0, "workers", prefix="data.")
        require_seed("data.split_seed", self.split_seed)
        for name in ("train_size", "image_size"):
            if getattr(self, name) is not None:
                require_at_least(self, 1, name, prefix="data.")
