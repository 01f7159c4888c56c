"""RandAugment and AutoAugment: which operations, how strong, how probable."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.augment.operations import Name, Operation, apply, operation

_LARGEST = {"Rotate": 30, "ShearX": 0.3, "ShearY": 0.3, "TranslateX": 10 / 32, "TranslateY": 10 / 32}
"""Where the ranges end in the authors' code for CIFAR; Table 6 of AutoAugment has other translations, 150 of 331."""


class Policy(NamedTuple):
    """Draws of one of n sub-policies, all n equally likely; a sub-policy is k operations, each with its probability.

    Attributes:
      draws: how many sub-policies an image goes through.
      probability: float32 [n, k].
      operations: the leaves have leading axes [n, k, 3]: not applied, applied, applied in the other direction.
    """

    draws: int
    probability: np.ndarray
    operations: Operation


def _policy(draws: int, steps: list[list[tuple[float, Operation, Operation]]]) -> Policy:
    """Stacks sub-policies of steps (probability, operation, operation in the other direction)."""
    probability = np.array([[p for p, _, _ in sub_policy] for sub_policy in steps], np.float32)
    rows = [row for sub_policy in steps for _, *both in sub_policy for row in (Operation(), *both)]
    axes = (*probability.shape, 3)
    stacked = (np.stack(leaves).reshape(*axes, *np.shape(leaves[0])) for leaves in zip(*rows, strict=True))
    return Policy(draws, probability, Operation(*stacked))


def choose(key: jax.Array, policy: Policy) -> tuple[jax.Array, jax.Array]:
    """What one image goes through.

    Returns:
      The sub-policies, int32 [draws], and for each of their operations 0 (not applied), 1 (applied) or 2 (applied in
      the other direction), int32 [draws, k].
    """
    which, whether, direction = jax.random.split(key, 3)
    count, length = policy.probability.shape
    chosen = jax.random.randint(which, (policy.draws,), 0, count)
    applied = jax.random.uniform(whether, (policy.draws, length)) < jnp.asarray(policy.probability)[chosen]
    other = jax.random.bernoulli(direction, shape=applied.shape)
    return chosen, jnp.where(applied, 1 + other.astype(jnp.int32), 0)


def augmentation(policy: Policy, fill: jax.Array) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The policy as a function of a key and one image."""

    def augment(key: jax.Array, image: jax.Array) -> jax.Array:
        chosen, variants = choose(key, policy)
        for draw, step in np.ndindex(*variants.shape):
            row = (chosen[draw], step, variants[draw, step])
            image = apply(jax.tree.map(lambda leaf, row=row: jnp.asarray(leaf)[row], policy.operations), image, fill)
        return image

    return augment


def _amount(name: Name, strength: float, sign: int, bits: int, factor: float) -> float:
    """What :func:`operation` takes for a strength in [0, 1]; ``bits`` are those at strength 0, 4 more than at 1."""
    match name:
        case "Rotate" | "ShearX" | "ShearY" | "TranslateX" | "TranslateY":
            return sign * _LARGEST[name] * strength
        case "Posterize":
            return bits - int(4 * strength)
        case "Solarize":
            return 256 * (1 - strength)
        case _:
            return factor


RANDAUGMENT: tuple[Name, ...] = (
    "Identity",
    "AutoContrast",
    "Equalize",
    "Rotate",
    "Solarize",
    "Color",
    "Posterize",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
)
"""The 14 operations of RandAugment."""


def randaugment(image_shape: tuple[int, int, int], count: int = 2, magnitude: float = 14) -> Policy:
    """RandAugment (Cubuk et al. 2019): ``count`` operations of the 14, each with the same magnitude out of 30.

    The defaults are the paper's for Wide-ResNet-28-10 on CIFAR-100; it searched anew for each network and data set, and
    it and its code differ in the scale of magnitudes. Here 0 changes nothing (but AutoContrast and Equalize have no
    magnitude) and 30 is the end of the range: 30 degrees, shear 0.3, translation by 10 of 32 pixels, 4 bits, inversion
    of all levels, enhancement by a factor of 0.1 or 1.9.
    """
    strength = magnitude / 30

    def step(name: Name, sign: int) -> Operation:
        amount = _amount(name, strength, sign, bits=8, factor=1 + sign * 0.9 * strength)
        return operation(name, amount, image_shape)

    return _policy(count, [[(1.0, step(name, 1), step(name, -1))] for name in RANDAUGMENT])


AUTOAUGMENT: tuple[tuple[tuple[Name, float, int], tuple[Name, float, int]], ...] = (
    (("Invert", 0.1, 7), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, 8), ("Equalize", 0.9, 2)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, 5), ("Equalize", 0.5, 1)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, 7), ("AutoContrast", 0.4, 8)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, 3)),
    (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.2, 8), ("Equalize", 0.6, 4)),
    (("Color", 0.9, 9), ("Equalize", 0.6, 6)),
    (("AutoContrast", 0.8, 4), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 3)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, 2), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, 8), ("Invert", 0.1, 3)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 1)),
)
"""Table 7 of Cubuk et al. (2018): the sub-policies found on CIFAR-10, as (operation, probability, magnitude of 10)."""


def autoaugment(image_shape: tuple[int, int, int]) -> Policy:
    """AutoAugment (Cubuk et al. 2018): one of the 25 sub-policies of Table 7, which serve CIFAR-100 too.

    Magnitudes mean what they mean in the authors' code for CIFAR. Beside translations this departs in Posterize from
    the paper's Table 6: 4 bits stay at magnitude 0, none at 10. Enhancements have the factor 0.1 at magnitude 0, 1.9
    at 10.
    """

    def step(name: Name, magnitude: int, sign: int) -> Operation:
        strength = magnitude / 10
        amount = _amount(name, strength, sign, bits=4, factor=0.1 + 1.8 * strength)
        return operation(name, amount, image_shape)

    return _policy(1, [[(p, step(name, m, 1), step(name, m, -1)) for name, p, m in pair] for pair in AUTOAUGMENT])
