"""Mixup: an image and its label are mixed with those of another row of the batch."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

_QUANTILES = 4096


class Mixed(NamedTuple):
    """Labels of mixed images, each of shape (batch,).

    Attributes:
      label: the class of the larger share, int32.
      other: the class of the smaller one, int32.
      share: the larger share, float32 in [1/2, 1].
    """

    label: jax.Array
    other: jax.Array
    share: jax.Array


def mixup(
    key: jax.Array, strength: float, images: jax.Array, labels: jax.typing.ArrayLike, axes: tuple[str, ...] = ()
) -> tuple[jax.Array, Mixed]:
    r"""Mixes each row of a batch with the one before it, the first with the last (Zhang et al. 2018).

    .. math:: x_i \leftarrow s x_i + (1 - s) x_{i-1}, \quad s = \max(\lambda, 1 - \lambda), \quad
       \lambda \sim \mathrm{Beta}(a, a)

    Of s one of 4096 quantiles is drawn: jax.random.beta is a loop that runs as often as its numbers say, and the FLOPs
    of a step with such a loop cannot be told.

    1. One share s for the whole batch, and neighbours rather than a random order, as in big_vision: rows come in a
       random order, and over devices only one row of each travels. The paper has an s in [0, 1]; its mixture has the
       same distribution, and here a row keeps its own label as the larger one.

    Args:
      key: of the batch.
      strength: a, above 0; 0.2 is light, 1 is uniform.
      images: float, [batch, height, width, channels], normalised or not.
      labels: int, [batch].
      axes: of the mesh, inside shard_map, over which the batch is divided; the rows here are then a part of it.

    Returns:
      The images, and what they are of.
    """
    middles = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    shares = scipy.special.betaincinv(strength, strength, (1 + middles) / 2)
    share = jax.random.choice(key, jnp.asarray(shares, images.dtype))
    labels = jnp.asarray(labels)
    mixed = share * images + (1 - share) * _before(images, axes)
    return mixed, Mixed(labels, _before(labels, axes), jnp.full(labels.shape, share))


def _before(rows: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """The row before each, and before the first one the last."""
    if not axes:
        return jnp.roll(rows, 1, axis=0)
    devices = jax.lax.axis_size(axes)
    last = jax.lax.ppermute(rows[-1:], axes, [(device, (device + 1) % devices) for device in range(devices)])
    return jnp.concatenate([last, rows[:-1]])
