"""Lines 7 to 10 of Algorithm 1: what GAM and SAM + GAM have in common."""

import jax

from gam_jax._engine import Engine, NormGradient
from gam_jax._maximum import ONE_STEP, Look, Search
from gam_jax._transform import Diagnostics
from gam_jax._tree import add_scaled, cosine, global_norm, scale_by
from gam_jax._types import PyTree


def algorithm_1(
    engine: Engine, here: NormGradient, h_loss: PyTree, rho: PyTree, alpha: jax.Array, search: Search = ONE_STEP
) -> tuple[PyTree, Diagnostics]:
    """Lines 7 to 10 of Algorithm 1, after line 6, f = H g / (||g|| + xi) at the parameters."""

    def look(params: PyTree) -> Look:
        there = engine.norm_gradient(params)
        return Look(there.norm, there.grad, there.point.grad)

    there = search.highest(engine, look, here.grad, rho)  # line 7
    h_norm = scale_by(rho, there.grad)  # line 8
    update = add_scaled(h_loss, alpha, h_norm)  # line 10
    flatness = engine.metric.reach(rho, there.more, there.value)
    norm, angle = global_norm(h_norm, engine.apart), cosine(h_loss, h_norm, engine.apart)
    return update, Diagnostics(here.norm, there.value, flatness, norm, angle)
