"""Random crop, horizontal flip and Cutout of one uint8 image of shape (height, width, channels)."""

import jax
import jax.numpy as jnp


def random_crop(key: jax.Array, image: jax.Array) -> jax.Array:
    """A window of the image's own size, uniformly placed in the image with a black margin of 1/8 of its size around.

    That is 4 pixels for 32, as in He et al. (2016). Black means 0 before normalisation.
    """
    height, width, _ = image.shape
    margins = (round(height / 8), round(width / 8))
    padded = jnp.pad(image, (*((margin, margin) for margin in margins), (0, 0)))
    top, left = jax.random.randint(key, (2,), 0, 2 * jnp.array(margins) + 1)
    return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)


def random_flip(key: jax.Array, image: jax.Array) -> jax.Array:
    """Mirrors left and right with probability 1/2."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def cutout(key: jax.Array, image: jax.Array, fill: jax.Array) -> jax.Array:
    """Fills one square, whose sides are half of the image's, with the pixel ``fill`` (DeVries and Taylor 2017).

    That is 16 pixels for 32. The square's centre is any pixel, so that part of the square may lie outside.
    """
    height, width, _ = image.shape
    size = min(height, width) // 2
    top, left = jax.random.randint(key, (2,), 0, jnp.array([height, width])) - size // 2
    rows, columns = jnp.arange(height), jnp.arange(width)
    inside = jnp.logical_and(
        jnp.logical_and(rows >= top, rows < top + size)[:, None],
        jnp.logical_and(columns >= left, columns < left + size)[None, :],
    )
    return jnp.where(inside[:, :, None], fill[None, None, :], image)
