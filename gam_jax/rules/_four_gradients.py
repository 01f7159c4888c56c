"""Gradients at four points: what accelerated GAM, C-Flat and FAD have in common."""

from typing import NamedTuple

import jax

from gam_jax._engine import Engine
from gam_jax._transform import Diagnostics
from gam_jax._tree import cosine, global_norm, subtract
from gam_jax._types import PyTree


class FourGradients(NamedTuple):
    """Lines of Algorithm 2: two gradients at and near the point, two at and near the ascent point of the norm."""

    g0: PyTree
    g1: PyTree
    g2: PyTree
    g3: PyTree
    seen: Diagnostics


def four_gradients(engine: Engine, updates: PyTree, rho: jax.Array, rho_prime: jax.Array) -> FourGradients:
    """Evaluates g0 at w, g1 a step rho_prime along g0, g2 a step rho along g1 - g0, g3 rho_prime further along g2.

    ``(g1 - g0) / rho_prime`` and ``rho (g3 - g2) / rho_prime`` are f and h_norm of Algorithm 1 by finite differences,
    and the diagnostics are estimated from them.
    """
    g0 = engine.clean_gradient(updates)
    g1 = engine.gradient(engine.ascend(engine.params, g0, rho_prime))
    w2 = engine.ascend(engine.params, subtract(g1, g0), rho)
    g2 = engine.gradient(w2)
    g3 = engine.gradient(engine.ascend(w2, g2, rho_prime))
    bend = subtract(g3, g2)
    norm = engine.metric.norm(g2)
    seen = Diagnostics(engine.metric.norm(g0), norm, rho * norm, rho * global_norm(bend) / rho_prime, cosine(g0, bend))
    return FourGradients(g0, g1, g2, g3, seen)
