"""Studies: comparisons of methods, each tuned with the same budget on validation images, then tested once.

Command: python -m experiments.main compare --config digits
Run time: below for each, estimated from the CPU seconds of single steps of SGD and GAM, except for the demonstration.
Expected: see experiments/README.md for the demonstration; the others have not been run.
"""

import dataclasses
from pathlib import Path

from experiments.config import CompareConfig, DataConfig, GridConfig, ModelConfig
from experiments.optim import METHODS, Method
from experiments.recipes import RECIPES

_PAPER: tuple[Method, ...] = ("plain", "sam", "gam", "sam+gam", "accelerated_gam")
"""The base optimizer, and what the paper compares with it."""
_FLATNESS = ("eigenvalues", "trace", "flatness")

_RADII = GridConfig(
    learning_rate=(0.01, 0.02, 0.05, 0.1, 0.2),
    weight_decay=(0.0, 3e-3, 1e-2, 2e-2, 3e-2),
    sam_rho=(0.05, 0.1, 0.2, 0.5),
    gam_rho=(0.1, 0.2, 0.5),
    gam_alpha=(0.2, 0.5, 1.0, 2.0),
    beta=(0.5, 0.8),
    gamma=(0.0, 0.1, 0.4),
    strength=(0.05, 0.1, 0.2, 0.5),
)
"""For the digits. It was widened, on validation data, until strong weight decay was inside it: without, SGD fits the
wrong labels, and the comparison would be unfair. In the demonstration SGD tries every point of its part of the grid;
with wrong labels it chooses the largest learning rate, and was seen to prefer it to 0.5 as well."""

_digits = CompareConfig(
    workdir=Path("runs/digits"),
    data=DataConfig(name="digits", validation=0.6, train_size=400, augment="none"),
    model=ModelConfig(name="mlp"),
    grid=_RADII,
    epochs=75,
    batch_size=50,
    noise=(0.0, 0.3),
    trials=25,
    tuning_seeds=2,
    seeds=10,
    measure=("eigenvalues",),
    measure_examples=400,
)
"""The demonstration. 400 training images are few, so that the effect of the method is large and a run takes a fraction
of a second: 160 s in all on 2 busy CPU cores."""

_digits_mlp = dataclasses.replace(
    _digits,
    workdir=Path("runs/digits_mlp"),
    methods=_PAPER,
    noise=(0.0, 0.2, 0.4, 0.6),
    seeds=20,
    measure=_FLATNESS,
    k=5,
)
"""The demonstration with accelerated GAM, more noise and more seeds. A run of SGD takes 0.13 s and one of GAM 0.7 s,
the measurements of a final run 2 s: 15 minutes on 2 cores."""

_digits_cnn = dataclasses.replace(
    _digits_mlp,
    workdir=Path("runs/digits_cnn"),
    model=ModelConfig(name="resnet20", width=0.25),
    epochs=30,
    trials=9,
    tuning_seeds=1,
    grid=dataclasses.replace(_RADII, learning_rate=(0.02, 0.05, 0.1), weight_decay=(5e-4, 5e-3, 2e-2)),
    measure=("eigenvalues",),
    k=1,
)
"""A small ResNet on the same images. A run of SGD takes 2 s, one of GAM 9 s: 40 minutes on 2 cores."""

_digits_family = dataclasses.replace(
    _digits,
    workdir=Path("runs/digits_family"),
    methods=METHODS,
    noise=(0.0, 0.4),
    grid=dataclasses.replace(_RADII, sam_rho=(0.05, 0.1, 0.2, 0.5, 1.0)),
)
"""All ten methods; ASAM's radius is of another scale. 8 minutes on 2 cores."""

_digits_recipes = dataclasses.replace(
    _digits,
    workdir=Path("runs/digits_recipes"),
    methods=(*_PAPER, *RECIPES),
    noise=(0.3,),
    grid=dataclasses.replace(_RADII, gam_alpha=(0.2, 0.5, 1.0, 2.0, 5.0)),
    seeds=20,
    measure=(),
)
"""Cheaper ways to take GAM's and SAM's steps, at 30 % wrong labels. Larger weights are in the grid than for the
demonstration, as a term that acts less often may need more. 8 minutes on 2 cores."""

_fashion_mnist_resnet = CompareConfig(
    workdir=Path("runs/fashion_mnist_resnet"),
    data=DataConfig(name="fashion_mnist", train_size=5400),
    model=ModelConfig(name="resnet20", width=0.25),
    grid=GridConfig(
        learning_rate=(0.03, 0.1, 0.3),
        weight_decay=(5e-4, 2e-3, 5e-3),
        sam_rho=(0.02, 0.05, 0.1, 0.2),
        gam_rho=(0.02, 0.05, 0.1, 0.2),
        gam_alpha=(0.1, 0.3, 1.0),
        beta=(0.5, 0.8),
        gamma=(0.0, 0.1),
    ),
    epochs=10,
    methods=_PAPER,
    trials=9,
    tuning_seeds=1,
    seeds=5,
    measure=("eigenvalues",),
    measure_examples=1000,
)
"""10 % of the training images that are left when the validation images are set aside. A run of SGD takes 85 s, one of
GAM 400 s: 3 hours on 2 cores."""

_fashion_mnist_vit = dataclasses.replace(
    _fashion_mnist_resnet,
    workdir=Path("runs/fashion_mnist_vit"),
    data=DataConfig(name="fashion_mnist", train_size=5400, image_size=16),
    model=ModelConfig(name="vit", width=1 / 3),
    base="adamw",
    warmup=0.05,
    grid=dataclasses.replace(
        _fashion_mnist_resnet.grid, learning_rate=(3e-4, 1e-3, 3e-3), weight_decay=(0.01, 0.1), sam_rho=(0.05, 0.1, 0.2)
    ),
    epochs=8,
    trials=6,
)
"""The same with a ViT and AdamW, on images of 16 x 16 pixels: 17 tokens rather than 50. A run of AdamW
takes 120 s, one of GAM 810 s: 4 hours on 2 cores."""

_cifar10_resnet = dataclasses.replace(
    _fashion_mnist_resnet,
    workdir=Path("runs/cifar10_resnet"),
    data=DataConfig(name="cifar10", train_size=4500),
    epochs=12,
)
"""10 % of the training images that are left when the validation images are set aside. A run of SGD takes 135 s, one of
GAM 590 s: 4.5 hours on 2 cores."""

STUDIES = {
    study.workdir.name: study
    for study in (
        _digits,
        _digits_mlp,
        _digits_cnn,
        _digits_family,
        _digits_recipes,
        _fashion_mnist_resnet,
        _fashion_mnist_vit,
        _cifar10_resnet,
    )
}
"""Every study by name, which is also that of its folder in ``runs``."""
