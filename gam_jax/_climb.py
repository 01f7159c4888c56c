"""A step of an ascent in a closed ball: where to look, whether to go there, and how far to look after that.

The spectral projected gradient method (Birgin, Martinez and Raydan 2000), with a search that never decreases the
value. Offsets and gradients are in coordinates in which the ball is round. The first length is infinite: the projection
is then ``rho g / ||g||``, SAM's step. Repeated, it never decreases a convex function, and is a power iteration on a
quadratic. A length that does not increase the value enough is cut to a quarter. The next one is the inverse curvature
along the last step where that is concave, else four times the last.

The flatness measures climb by it until they arrive (gam_jax/flatness/_ball.py), the methods with a fixed number of
gradients (gam_jax/_maximum.py).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from gam_jax._shards import Apart
from gam_jax._tree import add_scaled, global_norm, inner_product, normalize, scale_by, subtract, wide_dtype
from gam_jax._types import PyTree

_SUFFICIENT = 1e-4  # of the increase that the gradient promises (Armijo)


def moved(offset: PyTree, gradient: PyTree, length: Any, rho: Any, eps: Any = 0.0, apart: Apart = None) -> PyTree:
    """``offset + length * gradient / (||gradient|| + eps)``, projected onto the ball."""
    far = jnp.isinf(length)
    stay, step = jnp.where(far, 0, 1), jnp.where(far, rho, length)
    return projected(add_scaled(scale_by(stay, offset), step, normalize(gradient, eps, apart)), rho, apart)


def projected(offset: PyTree, rho: Any, apart: Apart = None) -> PyTree:
    """The nearest offset of the ball."""
    distance = global_norm(offset, apart)
    outside = distance > rho
    return scale_by(jnp.where(outside, rho, 1) / jnp.where(outside, distance, 1), offset)


def promised(gradient: PyTree, offset: PyTree, there: PyTree, apart: Apart = None) -> jax.Array:
    """The increase from one offset to the other if the function were linear."""
    return inner_product(gradient, subtract(there, offset), apart)


def is_enough(value: Any, new_value: Any, increase: Any) -> Any:
    """Whether the value grew, and by a part of the increase that was promised."""
    return (new_value > value) & (new_value >= value + _SUFFICIENT * increase)


def next_length(
    length: Any, step: PyTree, change: PyTree, steepness: Any, diameter: Any, apart: Apart = None
) -> jax.Array:
    """How far to look after a step on which the gradient changed; ``steepness`` is the norm of the new one."""
    bend, square = inner_product(step, change, apart), inner_product(step, step, apart)
    concave = bend < 0
    newton = steepness * square / jnp.where(concave, -bend, 1)
    longer = jnp.where(concave, newton, 4 * length)
    return jnp.where((length < jnp.inf) & (longer < 4 * diameter), longer, jnp.inf)


def shortened(length: Any, diameter: Any) -> jax.Array:
    """How far to look after a step that was not taken; the diameter is that of the ball."""
    return jnp.minimum(length / 4, diameter)


def random_like(key: jax.Array, tree: PyTree, kind: str = "normal") -> PyTree:
    """Independent entries, in float32 or wider: standard normal, random signs, or uniform between -1 and 1."""
    leaves, structure = jax.tree.flatten(tree)
    uniform = functools.partial(jax.random.uniform, minval=-1.0, maxval=1.0)
    draw = {"normal": jax.random.normal, "signs": jax.random.rademacher, "uniform": uniform}[kind]
    keys = jax.random.split(key, len(leaves))
    dtypes = [wide_dtype(leaf) for leaf in leaves]
    return jax.tree.unflatten(
        structure, [draw(k, leaf.shape, t) for k, leaf, t in zip(keys, leaves, dtypes, strict=True)]
    )
