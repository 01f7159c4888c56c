"""The ball of perturbations, of l2 or l-infinity norm, in coordinates that may be scaled parameter by parameter."""

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from gam_jax._check_trees import check_arrays, check_params
from gam_jax._checks import check_choice
from gam_jax._climb import projected
from gam_jax._metric import check_scaling, resolve_scaling
from gam_jax._tree import wide_dtype
from gam_jax._types import PyTree
from gam_jax.flatness._objective import Objective
from gam_jax.flatness._passes import strong
from gam_jax.flatness._vectors import inner, norm, random_like, scale, shift, unit

Norm = Literal["l2", "linf"]


def check_geometry(norm: Any, adaptive: Any, params: PyTree) -> None:
    """Raises unless these describe a ball around the parameters."""
    check_choice("norm", norm, get_args(Norm))
    check_scaling(adaptive)
    check_arrays("params", params)
    check_params(params, params)
    resolve_scaling(adaptive, jax.tree.map(strong, params))


class Ball(NamedTuple):
    r"""``{w + T u : ||u||_p <= rho}``. Offsets u and gradients with respect to u are in float32 or wider.

    Attributes:
      center: w.
      scaling: T, or None for 1. Where it is 0 nothing moves.
      rho: the radius.
      norm: p = 2 or infinity.
    """

    center: PyTree
    scaling: PyTree | None
    rho: float
    norm: Norm

    @classmethod
    def around(cls, objective: Objective, rho: float, norm: Norm, adaptive: Any) -> "Ball":
        """The ball around the parameters, in the metric that ``adaptive`` names."""
        scaling = objective.of_block(lambda params: resolve_scaling(adaptive, params))
        return cls(objective.params, scaling, rho, norm)

    def point(self, offset: PyTree) -> PyTree:
        """``w + T u``, in the dtypes of w."""
        return shift(self.center, 1.0, self.stretch(offset))

    def stretch(self, vector: PyTree) -> PyTree:
        """``T v``: from offsets to perturbations, and from gradients in w to gradients in u."""
        return vector if self.scaling is None else _multiply(self.scaling, vector)

    def distance(self, offset: PyTree) -> float:
        """``||u||_p``."""
        return float(norm(offset) if self.norm == "l2" else _largest(offset))

    def steepness(self, gradient: PyTree) -> float:
        """The largest ``<g, u>`` over the unit ball: the dual norm of g."""
        return float(norm(gradient) if self.norm == "l2" else _sum(gradient))

    def farthest(self, gradient: PyTree) -> PyTree:
        """The u of the ball that is farthest along g; 0 where g is 0."""
        return scale(self.rho, unit(gradient) if self.norm == "l2" else _signs(gradient))

    def projected(self, offset: PyTree) -> PyTree:
        """The nearest u of the ball."""
        if self.norm == "linf":
            return _clip(offset, self.rho)
        return _projected(offset, self.rho)

    def gap(self, gradient: PyTree, offset: PyTree) -> float:
        """``max over the ball of <g, x - u>``."""
        return max(self.rho * self.steepness(gradient) - float(inner(gradient, offset)), 0.0)

    def start(self, key: jax.Array) -> PyTree:
        """A random u: of the sphere, or a corner of the cube."""
        drawn = random_like(key, self.center, "normal" if self.norm == "l2" else "signs")
        return self.farthest(drawn if self.scaling is None else _where(self.scaling, drawn))

    @property
    def diameter(self) -> float:
        """The largest Euclidean distance of two u."""
        size = sum(leaf.size for leaf in jax.tree.leaves(self.center))
        return 2 * self.rho * (1.0 if self.norm == "l2" else size**0.5)


_projected = jax.jit(projected)


@jax.jit
def _multiply(scaling: PyTree, tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.multiply, scaling, tree)


@jax.jit
def _where(scaling: PyTree, tree: PyTree) -> PyTree:
    return jax.tree.map(lambda t, x: jnp.where(t == 0, 0, x), scaling, tree)


@jax.jit
def _signs(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.sign, tree)


@jax.jit
def _clip(tree: PyTree, most: float) -> PyTree:
    return jax.tree.map(lambda x: jnp.clip(x, -most, most), tree)


@jax.jit
def _largest(tree: PyTree) -> jax.Array:
    return jnp.max(jnp.stack([jnp.max(jnp.abs(x), initial=0) for x in jax.tree.leaves(tree)]))


@jax.jit
def _sum(tree: PyTree) -> jax.Array:
    dtype = wide_dtype(*jax.tree.leaves(tree))
    return sum((jnp.sum(jnp.abs(x)).astype(dtype) for x in jax.tree.leaves(tree)), jnp.zeros((), dtype))
