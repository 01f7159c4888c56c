"""What lasts from step to step: the term held between, bounded; and nothing of a step that gave inf or NaN."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gam_jax._tree import add_scaled, all_finite, cast_like, cosine, global_norm, subtract
from gam_jax._types import PyTree


class Held(NamedTuple):
    """What ``between="hold"`` keeps in the state.

    Attributes:
      term: what the method added on the last step on which it acted and this was finite; zero before. Its shapes,
        dtypes and shardings are those of the parameters.
      held_cosine: of the angle between that term and the one before it, float32: how stale a held term is when it is
        replaced. Near 1 the interval may be longer, near 0 it is too long, and below 0 the steps between went too far
        along the term. 0 at the first.
    """

    term: PyTree
    held_cosine: jax.Array


class DropDiagnostics(NamedTuple):
    """The diagnostics with ``drop_nonfinite``, all float32 scalars.

    Attributes:
      seen: those of the method, such as :class:`gam_jax.Diagnostics`.
      dropped: the number of steps so far on which the updates passed unchanged, since the method would have made inf or
        NaN of them; with ``per_replica`` the mean over the replicas, each of which drops its own.
    """

    seen: Any
    dropped: jax.Array


def nothing_held(params: PyTree) -> Held:
    """Before the first step on which the method acts."""
    return Held(optax.tree.zeros_like(params), jnp.zeros((), jnp.float32))


def hold(term: PyTree, held: Held) -> Held:
    """The term in place of the last one; that one stays where a step gave inf or NaN."""
    new = cast_like(term, held.term)
    return last_finite(Held(new, cosine(new, held.term)), held)


def last_finite(new: PyTree, last: PyTree) -> PyTree:
    """``new`` in the dtypes of ``last``; all of ``last`` where there is inf or NaN in ``new``."""
    new = cast_like(new, last)
    finite = jnp.isfinite(global_norm(new))
    return jax.tree.map(lambda new, last: jnp.where(finite, new, last), new, last)


def bound(new: PyTree, updates: PyTree, max_ratio: float | jax.Array | None) -> PyTree:
    """The new updates, with what they add to the old ones shortened to ``max_ratio`` times the norm of these."""
    if max_ratio is None:
        return new
    term = subtract(new, updates)
    norm = global_norm(term)
    limit = jnp.asarray(max_ratio, norm.dtype) * global_norm(updates)
    factor = jnp.where(norm > limit, limit, 1) / jnp.where(norm > limit, norm, 1)
    return add_scaled(updates, factor, term)


def drop_nonfinite(new: PyTree, updates: PyTree) -> tuple[PyTree, jax.Array]:
    """The new updates, or the old ones if these are finite and the new ones not; and whether that was so."""
    drops = all_finite(updates) & ~all_finite(new)
    return jax.tree.map(lambda new, old: jnp.where(drops, old, new), new, updates), drops
