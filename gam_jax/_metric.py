"""The geometry in which a step is taken: plain, adaptive, and with parameters left out."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gam_jax._tree import add_scaled, global_norm, normalize, widen
from gam_jax._types import PyTree


@dataclasses.dataclass(frozen=True)
class Metric:
    r"""The geometry in which a step of length rho is taken: a diagonal scaling T per parameter.

    Norms are :math:`\|T x\|` and directions :math:`T^2 x / (\|T x\| + \xi)`, so that the step ``rho * direction``
    has length rho in the norm :math:`\|T^{-1}\epsilon\|`. T is 1 by default, ``|w|`` for adaptive sharpness
    (ASAM, Kwon et al. 2021), and 0 on the leaves that ``mask`` leaves out: these neither move nor enter a norm.

    Attributes:
      scaling: T, a pytree like the parameters in float32 or wider, or None for 1.
      mask: a pytree of Python bools (True takes part), or None for all.
      eps: the xi of the paper's Algorithm 1.
    """

    scaling: PyTree | None
    mask: PyTree | None
    eps: float | jax.Array

    def _scaled(self, tree: PyTree) -> PyTree:
        if self.scaling is not None:
            tree = jax.tree.map(lambda t, x: t * widen(x), self.scaling, tree)
        if self.mask is not None:
            tree = jax.tree.map(lambda keep, x: x if keep else jnp.zeros_like(x), self.mask, tree)
        return tree

    def norm(self, tree: PyTree) -> jax.Array:
        """``||T x||``."""
        return global_norm(self._scaled(tree))

    def direction(self, tree: PyTree) -> PyTree:
        """``T^2 x / (||T x|| + eps)``, in float32 or wider; zero at zero."""
        unit = normalize(self._scaled(tree), self.eps)
        return unit if self.scaling is None else self._scaled(unit)

    def ascend(self, start: PyTree, toward: PyTree, radius: jax.Array) -> PyTree:
        """``start + radius * direction(toward)``, formed in float32 or wider, in the dtypes of ``start``."""
        return add_scaled(start, radius, self.direction(toward))


def resolve_mask(mask: Any, params: PyTree) -> PyTree | None:
    """The mask as a pytree of Python bools with the structure of the parameters."""
    if callable(mask):
        mask = mask(params)
    if mask is None:
        return None
    if jax.tree.structure(mask) != jax.tree.structure(params):
        raise ValueError(
            f"perturb_mask must have the structure of the parameters, {jax.tree.structure(params)}, got "
            f"{jax.tree.structure(mask)}"
        )
    for path, leaf in jax.tree.leaves_with_path(mask):
        if not isinstance(leaf, bool | np.bool_):
            raise TypeError(f"perturb_mask must hold bools, got {leaf!r} at {jax.tree_util.keystr(path)}")
    return jax.tree.map(bool, mask)
