"""The published numbers of the data sets."""

import numpy as np
import pytest

from experiments.data.catalogue import DATA_SETS

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Of torchvision, whose networks others were pretrained after."""
NORMALISATION = {
    # mean and deviation of all pixels of the training images, here to eight digits
    "cifar10": ((0.49139968, 0.48215841, 0.44653091), (0.24703223, 0.24348513, 0.26158784)),
    "fashion_mnist": ((0.28604060,), (0.35302424,)),
    # as published, to four digits
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "digits": ((0.0,), (16 / 255,)),
    **dict.fromkeys(("imagenet", "cars", "pets", "food101", "pacs"), IMAGENET),
}
SIZES = {  # classes, and the image
    "digits": (10, (8, 8, 1)),
    "fashion_mnist": (10, (28, 28, 1)),
    "cifar10": (10, (32, 32, 3)),
    "cifar100": (100, (32, 32, 3)),
    "pacs": (7, (64, 64, 3)),
    "imagenet": (1000, (224, 224, 3)),
    "cars": (196, (224, 224, 3)),
    "pets": (37, (224, 224, 3)),
    "food101": (101, (224, 224, 3)),
}


@pytest.mark.parametrize("name", DATA_SETS)
def test_normalisation_is_the_published_one(name):
    data_set, (mean, std) = DATA_SETS[name], NORMALISATION[name]
    np.testing.assert_allclose(data_set.mean, mean, rtol=0, atol=5e-5)
    np.testing.assert_allclose(data_set.std, std, rtol=0, atol=5e-5)


def test_classes_and_sizes_are_the_published_ones():
    assert {name: (found.num_classes, found.image_shape) for name, found in DATA_SETS.items()} == SIZES
