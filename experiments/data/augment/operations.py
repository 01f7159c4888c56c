"""Every operation of RandAugment and AutoAugment as numbers for one program.

Under vmap a ``lax.switch`` computes all its branches. So all operations are one sequence instead, a warp, a blend and a
table, of which each operation leaves two neutral, and what differs from image to image is data.
"""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from experiments.data.augment import affine, color

Name = Literal[
    "Identity",
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
]
"""The published operations."""
NAMES: tuple[Name, ...] = get_args(Name)


class Operation(NamedTuple):
    """One operation, or many with leading axes.

    Attributes:
      matrix: of :func:`experiments.augment.affine.warp`, int32 [6].
      blend: index into ``color.BLENDS``.
      factor: of the blend, float32; 1 is neutral.
      table: index into ``color.TABLES``.
      fixed: the fixed table, uint8 [256].
    """

    matrix: ArrayLike = affine.IDENTITY
    blend: ArrayLike = np.int32(0)
    factor: ArrayLike = np.float32(1)
    table: ArrayLike = np.int32(0)
    fixed: ArrayLike = color.UNCHANGED


def operation(name: Name, amount: float, image_shape: tuple[int, int, int]) -> Operation:
    """The named operation on images of this shape.

    Args:
      name: which.
      amount: degrees counter-clockwise (Rotate), pixels per pixel (Shear), the fraction of the image's width or height
        (Translate), the bits that stay (Posterize), the level from which on levels are inverted (Solarize), the factor
        of the enhancement with 1 for none (Color, Contrast, Brightness, Sharpness). The others have none.
      image_shape: (height, width, channels).
    """
    height, width, _ = image_shape
    match name:
        case "Identity":
            return Operation()
        case "Rotate":
            return Operation(matrix=affine.rotation(amount, image_shape))
        case "ShearX":
            return Operation(matrix=affine.shear_x(amount))
        case "ShearY":
            return Operation(matrix=affine.shear_y(amount))
        case "TranslateX":
            return Operation(matrix=affine.translation(amount * width, 0))
        case "TranslateY":
            return Operation(matrix=affine.translation(0, amount * height))
        case "Brightness" | "Contrast" | "Color" | "Sharpness":
            return Operation(blend=np.int32(color.BLENDS.index(name)), factor=np.float32(amount))
        case "AutoContrast" | "Equalize":
            return Operation(table=np.int32(color.TABLES.index(name)))
        case "Invert":
            return Operation(fixed=color.INVERTED)
        case "Solarize":
            return Operation(fixed=color.solarized(amount))
        case "Posterize":
            return Operation(fixed=color.posterized(int(amount)))


def apply(chosen: Operation, image: jax.Array, fill: jax.Array) -> jax.Array:
    """The image after one operation; pixels that come from outside are ``fill``."""
    matrix, blend, factor, table, fixed = map(jnp.asarray, chosen)
    image = affine.warp(image, matrix, fill)
    image = color.blend(image, blend, factor)
    return color.look_up(image, table, fixed)
