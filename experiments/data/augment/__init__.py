"""Augmentation of training images inside the jitted step: uint8 in, uint8 out, before normalisation.

What an image becomes depends on its key and on nothing else: not on its place in the batch, nor on the devices.

Of the libraries without TensorFlow (looked at in 2026), dm-pix and augmax (JAX) have neither of the two policies, nor
Equalize and Posterize; albumentations and imgaug (numpy and OpenCV, last released in 2025 and 2020) cannot be jitted.
Hence our own, tested against PIL.
"""

from collections.abc import Callable
from functools import partial
from typing import get_args

import jax
import jax.numpy as jnp

from experiments.common.errors import require
from experiments.data.augment import policies
from experiments.data.augment.basic import cutout, random_crop, random_flip
from experiments.data.config import Augmentation

NAMES: tuple[str, ...] = get_args(Augmentation)

_OneImage = Callable[[jax.Array, jax.Array], jax.Array]


def build(
    name: str, image_shape: tuple[int, int, int], *, fill: tuple[int, ...] | None = None, crop: bool = True
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """An augmentation of batches, to be called inside jit.

    - none: nothing.
    - basic: random crop and horizontal flip.
    - cutout: basic, then one square filled.
    - randaugment, autoaugment: basic, then the policy, then one square filled, as in the papers. The policies take the
      levels 0 ... 255 as black and white, and 1 or 3 channels.
    - randaugment_light: basic, then two operations of RandAugment at a magnitude of 10, and no square.

    Args:
      name: one of ``NAMES``.
      image_shape: (height, width, channels).
      fill: the pixel for the square and for what a policy moves in from outside: the data set's mean, which
        normalisation makes 0. Default: black. (The crop's margin is black.)
      crop: False for images that were cropped at random before; then basic is the flip.

    Returns:
      A function of one typed key for each image, shape [batch], and of the images, uint8 [batch, height, width,
      channels], which returns images of the same shape and type.

    Raises:
      UserError: for an unknown name, a fill that is no pixel, a number of channels that a policy does not take; and,
        when called, for images of another shape or type.
    """
    channels = image_shape[2]
    fill = (0,) * channels if fill is None else fill
    require(name in NAMES, f"augment must be one of {', '.join(NAMES)}, got {name!r}")
    require(
        len(fill) == channels and all(0 <= level <= 255 for level in fill),
        f"fill must hold one level in 0 ... 255 for each of {channels} channels, got {fill}",
    )
    steps = _steps(name, image_shape, jnp.array(fill, jnp.uint8), crop)

    def augment(key: jax.Array, image: jax.Array) -> jax.Array:
        for i, step in enumerate(steps):
            image = step(jax.random.fold_in(key, i), image)
        return image

    def augment_batch(keys: jax.Array, images: jax.Array) -> jax.Array:
        require(
            images.dtype == jnp.uint8 and images.shape[1:] == image_shape,
            f"augmentation takes uint8 images of shape {image_shape}, got {images.dtype} {images.shape[1:]}",
        )
        return jax.vmap(augment)(keys, images)

    return augment_batch


def _steps(name: str, image_shape: tuple[int, int, int], fill: jax.Array, crop: bool) -> list[_OneImage]:
    basic = [random_crop, random_flip] if crop else [random_flip]
    square = partial(cutout, fill=fill)
    match name:
        case "none":
            return []
        case "basic":
            return basic
        case "cutout":
            return [*basic, square]
    require(image_shape[2] in (1, 3), f"{name} takes images of 1 or 3 channels, got {image_shape[2]}")
    if name == "randaugment_light":
        return [*basic, policies.augmentation(policies.randaugment(image_shape, magnitude=10), fill)]
    policy = policies.randaugment(image_shape) if name == "randaugment" else policies.autoaugment(image_shape)
    return [*basic, policies.augmentation(policy, fill), square]
