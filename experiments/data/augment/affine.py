"""Rotation, shear and translation of an image, as PIL computes them: nearest neighbour, in 16.16 fixed point.

A matrix (a, b, c, d, e, f) says where an output pixel comes from: the centre (x, y) of an output pixel takes the input
pixel that contains (a x + b y + c, d x + e y + f). Matrices are made on the host, in float64; the device sees integers.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

_ONE = 1 << 16


def fixed_point(a: float, b: float, c: float, d: float, e: float, f: float) -> np.ndarray:
    """The matrix in units of 1/65536, for pixel indices instead of pixel centres; int32 of shape (6,)."""
    by_index = np.array([a, b, c + (a + b) / 2, d, e, f + (d + e) / 2])
    return np.floor(by_index * _ONE + 0.5).astype(np.int32)


IDENTITY = fixed_point(1, 0, 0, 0, 1, 0)


def rotation(degrees: float, image_shape: tuple[int, int, int]) -> np.ndarray:
    """Counter-clockwise about the centre of the image."""
    height, width, _ = image_shape
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = width / 2, height / 2
    return fixed_point(cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)


def shear_x(factor: float) -> np.ndarray:
    """Row y takes its pixels from ``factor * y`` further right."""
    return fixed_point(1, factor, 0, 0, 1, 0)


def shear_y(factor: float) -> np.ndarray:
    """Column x takes its pixels from ``factor * x`` further down."""
    return fixed_point(1, 0, 0, factor, 1, 0)


def translation(right: float, down: float) -> np.ndarray:
    """Each pixel comes from so many pixels further right and down."""
    return fixed_point(1, 0, right, 0, 1, down)


def warp(image: jax.Array, matrix: jax.Array, fill: jax.Array) -> jax.Array:
    """The image under a matrix of :func:`fixed_point`; what comes from outside is the pixel ``fill``."""
    height, width, _ = image.shape
    a, b, c, d, e, f = matrix
    x, y = jnp.arange(width)[None, :], jnp.arange(height)[:, None]
    column, row = (a * x + b * y + c) >> 16, (d * x + e * y + f) >> 16
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    rows, columns = jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)
    moved = image.at[rows, columns].get(mode="promise_in_bounds")
    return jnp.where(inside[:, :, None], moved, fill[None, None, :])
