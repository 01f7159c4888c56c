"""The colour operations of RandAugment and AutoAugment in the two forms that they have, as PIL computes them.

A *blend* mixes the image with a degenerate one (ImageEnhance); a *table* maps the levels of each channel (ImageOps).
The image is uint8 of shape (height, width, channels), with 1 or 3 channels.
"""

import jax
import jax.numpy as jnp
import numpy as np

BLENDS = ("Brightness", "Contrast", "Color", "Sharpness")
TABLES = ("fixed", "AutoContrast", "Equalize")

_LEVELS = np.arange(256)
UNCHANGED = _LEVELS.astype(np.uint8)
INVERTED = UNCHANGED[::-1]


def solarized(threshold: float) -> np.ndarray:
    """The table that inverts the levels from the threshold on."""
    return np.where(_LEVELS < threshold, UNCHANGED, INVERTED)


def posterized(bits: int) -> np.ndarray:
    """The table that keeps so many of the 8 bits, from the highest on."""
    return UNCHANGED & np.uint8(256 - (1 << (8 - bits)))


def blend(image: jax.Array, which: jax.Array, factor: jax.Array) -> jax.Array:
    """``degenerate + factor * (image - degenerate)``, where ``which`` is an index into ``BLENDS``.

    The degenerate image is black (Brightness), the mean grey (Contrast), the grey image (Color), the smoothed image
    (Sharpness). The factor 1 changes nothing.
    """
    levels = image.astype(jnp.int32)
    grey = _grey(levels)
    pixels = grey.size
    mean = (2 * grey.sum() + pixels) // (2 * pixels)
    degenerate = jax.lax.select_n(
        which,
        jnp.zeros_like(levels),
        jnp.broadcast_to(mean, levels.shape),
        jnp.broadcast_to(grey, levels.shape),
        _smooth(levels),
    )
    mixed = degenerate + factor * (levels - degenerate)
    return jnp.clip(mixed, 0, 255).astype(jnp.uint8)


def _grey(levels: jax.Array) -> jax.Array:
    """ITU-R 601 luma with one channel, in PIL's 16-bit fixed point."""
    if levels.shape[2] == 1:
        return levels
    weighted = levels * jnp.array([19595, 38470, 7471])[None, None, :]
    return (weighted.sum(axis=2, keepdims=True) + (1 << 15)) >> 16


def _smooth(levels: jax.Array) -> jax.Array:
    """Rounded mean of 3 x 3 neighbours, the middle one 5 times, divided by 13; the outermost pixels stay."""
    rows = levels[:-2] + levels[1:-1] + levels[2:]
    box = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    total = box + 4 * levels[1:-1, 1:-1]
    return levels.at[1:-1, 1:-1].set((2 * total + 13) // 26)


def look_up(image: jax.Array, which: jax.Array, fixed: jax.Array) -> jax.Array:
    """Maps the levels by the table ``fixed``, or by one made from the image; ``which`` is an index into ``TABLES``."""
    channels = image.shape[2]
    pixels = image.reshape(-1, channels).astype(jnp.int32)
    table = jax.lax.select_n(
        which,
        jnp.broadcast_to(fixed[:, None], (256, channels)),
        _autocontrast(pixels),
        _equalize(pixels),
    )
    mapped = jnp.take_along_axis(table, pixels, axis=0, mode="promise_in_bounds")
    return mapped.reshape(image.shape)


def _autocontrast(pixels: jax.Array) -> jax.Array:
    """Stretches the levels of each channel to 0 ... 255.

    In exact integers. PIL's float64 loses one level where the quotient is a whole number that float64 rounds down.
    """
    levels = jnp.arange(256)[:, None]
    lowest, highest = pixels.min(axis=0)[None, :], pixels.max(axis=0)[None, :]
    stretched = (levels - lowest) * 255 // jnp.maximum(highest - lowest, 1)
    return jnp.where(highest > lowest, stretched.clip(0, 255), levels).astype(jnp.uint8)


def _equalize(pixels: jax.Array) -> jax.Array:
    """Makes the levels of each channel equally frequent."""
    count, channels = pixels.shape
    levels = jnp.arange(256)[:, None]
    histogram = jnp.zeros((256, channels), jnp.int32).at[pixels, jnp.arange(channels)[None, :]].add(1)
    below = jnp.cumsum(histogram, axis=0) - histogram
    of_highest = (pixels == pixels.max(axis=0, keepdims=True)).sum(axis=0, keepdims=True)
    step = (count - of_highest) // 255
    equalized = (below + step // 2) // jnp.maximum(step, 1)
    return jnp.where(step > 0, equalized.clip(0, 255), levels).astype(jnp.uint8)
