"""Gradients at four points: what accelerated GAM, C-Flat and FAD have in common."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gam_jax._curvature import Point
from gam_jax._engine import Engine
from gam_jax._shards import Apart
from gam_jax._transform import Diagnostics
from gam_jax._tree import cosine, global_norm, scale_by, subtract
from gam_jax._types import PyTree


class FourGradients(NamedTuple):
    """Lines of Algorithm 2: two gradients at and near the point, two at and near the ascent point of the norm."""

    here: Point
    g0: PyTree
    g1: PyTree
    g2: PyTree
    g3: PyTree
    seen: Diagnostics


def four_gradients(engine: Engine, updates: PyTree | None, rho: PyTree, rho_prime: PyTree) -> FourGradients:
    """Evaluates g0 at w, g1 a step rho_prime along g0, g2 a step rho along g1 - g0, g3 rho_prime further along g2.

    ``(g1 - g0) / rho_prime`` and ``rho (g3 - g2) / rho_prime`` are f and h_norm of Algorithm 1 by finite differences,
    and the diagnostics are estimated from them.
    """
    here = engine.clean(updates)
    g0 = here.grad
    g1 = engine.gradient(engine.ascend(engine.params, g0, rho_prime))
    w2 = engine.ascend(engine.params, subtract(g1, g0), rho)
    g2 = engine.gradient(w2)
    g3 = engine.gradient(engine.ascend(w2, g2, rho_prime))
    bend = subtract(g3, g2)
    norm = engine.metric.norm(g2)
    flatness, turn = engine.metric.reach(rho, g2, norm), _turn(bend, rho, rho_prime, engine.apart)
    seen = Diagnostics(engine.metric.norm(g0), norm, flatness, turn, cosine(g0, bend, engine.apart))
    return FourGradients(here, g0, g1, g2, g3, seen)


def _turn(bend: PyTree, rho: PyTree, rho_prime: PyTree, apart: Apart) -> jax.Array:
    """``||rho bend / rho_prime||``; radii may be one for all leaves or one for each."""
    if jax.tree_util.all_leaves([rho, rho_prime]):
        return rho * global_norm(bend, apart) / rho_prime
    return global_norm(scale_by(rho, scale_by(jax.tree.map(jnp.reciprocal, rho_prime), bend)), apart)
