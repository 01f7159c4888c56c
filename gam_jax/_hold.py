"""What lasts from step to step: the term kept for the steps between; and nothing of a step that gave inf or NaN."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gam_jax._options import Options
from gam_jax._shards import Apart
from gam_jax._tree import (
    add_scaled,
    all_finite,
    cast_like,
    cosine,
    global_norm,
    normalize,
    perpendicular,
    scale_by,
    subtract,
)
from gam_jax._types import PyTree


class Held(NamedTuple):
    """What ``between="hold"`` and ``between="look"`` keep in the state.

    Attributes:
      term: what the method added on the last step on which it acted and this was finite; zero before. With "look" the
        part of it orthogonal to the updates that came in. Its shapes, dtypes and shardings are those of the
        parameters.
      held_cosine: of the angle between that term and the one before it, float32: how stale a held term is when it is
        replaced. Near 1 the interval may be longer, near 0 it is too long, and below 0 the steps between went too far
        along the term. 0 at the first.
    """

    term: PyTree
    held_cosine: jax.Array


def nothing_held(params: PyTree) -> Held:
    """Before the first step on which the method acts."""
    return Held(optax.tree.zeros_like(params), jnp.zeros((), jnp.float32))


def remember(options: Options, term: PyTree, updates: PyTree, held: Held, apart: Apart) -> Held:
    """What is kept of the term in place of the last one; that one stays where a step gave inf or NaN."""
    kept = perpendicular(term, updates, apart) if options.between == "look" else term
    new = cast_like(kept, held.term)
    return last_finite(Held(new, cosine(new, held.term, apart)), held, apart)


def held_term(options: Options, updates: PyTree, held: Held, apart: Apart) -> PyTree:
    """What is added on a step between."""
    if options.between == "hold":
        return held.term
    norm = global_norm(updates, apart)
    return scale_by(jnp.asarray(options.look_ratio, norm.dtype) * norm, normalize(held.term, 0.0, apart))


def last_finite(new: PyTree, last: PyTree, apart: Apart) -> PyTree:
    """``new`` in the dtypes of ``last``; all of ``last`` where there is inf or NaN in ``new``."""
    new = cast_like(new, last)
    finite = jnp.isfinite(global_norm(new, apart))
    return jax.tree.map(lambda new, last: jnp.where(finite, new, last), new, last)


def bound(new: PyTree, updates: PyTree, max_ratio: float | jax.Array | None, apart: Apart) -> PyTree:
    """The new updates, with what they add to the old ones shortened to ``max_ratio`` times the norm of these."""
    if max_ratio is None:
        return new
    term = subtract(new, updates)
    norm = global_norm(term, apart)
    limit = jnp.asarray(max_ratio, norm.dtype) * global_norm(updates, apart)
    factor = jnp.where(norm > limit, limit, 1) / jnp.where(norm > limit, norm, 1)
    return add_scaled(updates, factor, term)


def drop_nonfinite(new: PyTree, updates: PyTree, apart: Apart) -> tuple[PyTree, jax.Array]:
    """The new updates, or the old ones if these are finite and the new ones not; and whether that was so."""
    drops = all_finite(updates, apart) & ~all_finite(new, apart)
    return jax.tree.map(lambda new, old: jnp.where(drops, old, new), new, updates), drops
