"""Single images: decoding, cropping and resizing, by Pillow."""

import io
import math

import numpy as np
from PIL import Image

from experiments.common.errors import UserError, require

_FORMATS = ("JPEG", "PNG", "GIF", "BMP")
"""Those that TensorFlow decodes. Among Pillow's others is EPS, a program that it would have Ghostscript run."""
_SCALE = (0.08, 1.0)
"""Share of the image that a random crop covers."""
_RATIO = (3 / 4, 4 / 3)
"""Width over height of a random crop."""
_ATTEMPTS = 10
_CENTRE = 224 / 256
"""Share of the shorter side that the centre crop covers: resize to 256, cut out 224."""

Box = tuple[float, float, float, float]
"""Left, upper, right, lower edge in pixels."""


def decode(encoded: bytes, channels: int, size: tuple[int, int] | None = None) -> Image.Image:
    """The image in a file, as grey values or as RGB whatever the file holds.

    Args:
      encoded: the file.
      channels: 1 or 3.
      size: width and height that it must have, if that is known.

    Raises:
      UserError: if it is damaged, of another format, of another size, or too large to be meant.
    """
    try:
        image = Image.open(io.BytesIO(encoded), formats=_FORMATS)
        require(size in (None, image.size), f"its image has the size {image.size}, expected {size}")
        pixels, most = math.prod(image.size), Image.MAX_IMAGE_PIXELS or math.inf
        require(pixels <= most, f"its image has {pixels} pixels, more than {most}, which Pillow takes for an attack")
        return image.convert("L" if channels == 1 else "RGB")
    except UserError:
        raise
    except Exception as error:  # Pillow raises whatever it stumbles over
        formats, kind = ", ".join(_FORMATS), type(error).__name__
        raise UserError(f"its image, {encoded[:8]!r}..., cannot be decoded as {formats} ({kind})") from error


def pixels(image: Image.Image) -> np.ndarray:
    """Shape (height, width, channels), uint8."""
    array = np.asarray(image)
    return array if array.ndim == 3 else array[..., None]


def cut(image: Image.Image, box: Box, size: int) -> np.ndarray:
    """A box resized to a square: bilinear, with a wider filter where that makes it smaller."""
    return pixels(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


def centre_box(width: int, height: int) -> Box:
    """The square that is evaluated, the same as of the image with its shorter side resized to 256/224 of the crop."""
    side = _CENTRE * min(width, height)
    left, upper = (width - side) / 2, (height - side) / 2
    return left, upper, left + side, upper + side


def random_box(rng: np.random.Generator, width: int, height: int) -> Box:
    """A random box for training (Szegedy et al. 2015, section 6): of random area and shape, anywhere in the image.

    Where ten attempts do not fit into the image, the largest box in its middle that has a legal shape.
    """
    low, high = map(math.log, _RATIO)
    for _ in range(_ATTEMPTS):
        area = width * height * rng.uniform(*_SCALE)
        ratio = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, upper, left + w, upper + h
    w, h = min(width, height * _RATIO[1]), min(height, width / _RATIO[0])
    left, upper = (width - w) / 2, (height - h) / 2
    return left, upper, left + w, upper + h


def resize_all(images: np.ndarray, size: int) -> np.ndarray:
    """Images (n, height, width, channels), uint8, each as a whole resized to a square."""
    if images.shape[1:3] == (size, size):
        return images
    grey = images.shape[-1] == 1
    whole = [Image.fromarray(image[..., 0] if grey else image) for image in images]
    return np.stack([pixels(image.resize((size, size), Image.Resampling.BILINEAR)) for image in whole])
