"""The maximum of a function in the ball around the parameters, found with a fixed number of evaluations."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gam_jax._checks import check_integer
from gam_jax._climb import is_enough, moved, next_length, promised, random_like, shortened
from gam_jax._engine import Engine
from gam_jax._replicas import as_varying
from gam_jax._shards import varying_axes
from gam_jax._signature import release
from gam_jax._tree import global_norm, normalize, scale_by, subtract, wide_dtype
from gam_jax._types import PyTree


class Look(NamedTuple):
    """What is seen at one point.

    Attributes:
      value: of the function whose maximum is looked for.
      grad: its gradient.
      more: what the rule needs beside it.
    """

    value: jax.Array
    grad: PyTree
    more: Any = ()


@dataclasses.dataclass(frozen=True)
class Search:
    """How the maximum is looked for: ``steps`` points from each start, one after the other; the highest of all counts.

    The first start is the paper's, a step rho along the gradient at the parameters: with one step and nothing else it
    is all there is. The others are random points of the sphere.

    Attributes:
      steps: points looked at from each start.
      restarts: typed keys, one for each further start, or None.
    """

    steps: int = 1
    restarts: jax.Array | None = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, release(getattr(self, field.name)))
        check_integer("ascent_steps", self.steps)
        keys = self.restarts
        if keys is None:
            return
        if not isinstance(keys, jax.Array) or not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
            made = "jax.random.split(jax.random.key(0), 3)"
            raise TypeError(
                f"restarts must be None or typed keys, one for each start, as {made}, got restarts={keys!r}"
            )
        if keys.ndim != 1 or not keys.size:
            raise ValueError(f"restarts must be a list of one key or more, got keys of shape {keys.shape}")

    @property
    def is_plain(self) -> bool:
        """Whether the one step of the paper is all."""
        return self.steps == 1 and self.restarts is None

    def check_radius(self, rho: Any) -> None:
        """Raises unless one step is asked for, or there is one ball: one radius, or a schedule that may give one."""
        if not self.is_plain and not callable(rho) and not jax.tree_util.all_leaves([rho]):
            raise ValueError(
                "rho must be one radius where ascent_steps or restarts look for the maximum in a ball, which has one, "
                f"got rho={rho!r}"
            )

    def highest(self, engine: Engine, look: Callable[[PyTree], Look], toward: PyTree, rho: PyTree) -> Look:
        """What is seen at the highest of the points; ``toward`` is the gradient at the parameters, themselves left out.

        1. In a loop, so that the program does not grow with the number of steps and starts.
        """
        if self.is_plain:
            return look(engine.ascend(engine.params, toward, rho))
        self.check_radius(rho)
        metric = engine.metric
        start = scale_by(rho, normalize(metric.scaled(toward), metric.eps, metric.apart))
        best = self._climb(engine, look, start, rho)
        if self.restarts is None:
            return best

        def again(best: Look, key: jax.Array) -> tuple[Look, None]:
            drawn = metric.masked(random_like(key, engine.params))
            drawn = jax.tree.map(lambda x, like: as_varying(tuple(varying_axes(like)), x), drawn, start)
            found = self._climb(engine, look, scale_by(rho, normalize(drawn, 0.0, metric.apart)), rho)
            return _choose(found.value > best.value, found, best), None

        return jax.lax.scan(again, best, self.restarts)[0]

    def _climb(self, engine: Engine, look: Callable[[PyTree], Look], start: PyTree, rho: jax.Array) -> Look:
        """The highest point of one ascent, in the coordinates ``u`` of the points ``w + T u``."""
        metric, apart = engine.metric, engine.metric.apart

        def see(offset: PyTree) -> Look:
            seen = look(metric.shifted(engine.params, offset))
            return seen._replace(value=seen.value.astype(wide_dtype(seen.value)))

        def step(state: tuple[PyTree, Look, jax.Array], _: None) -> tuple[tuple[PyTree, Look, jax.Array], None]:
            offset, here, length = state
            gradient = metric.scaled(here.grad)
            new = moved(offset, gradient, length, rho, metric.eps, apart)
            there = see(new)
            climbs = is_enough(here.value, there.value, promised(gradient, offset, new, apart))
            turned = metric.scaled(there.grad)
            change, steepness = subtract(turned, gradient), global_norm(turned, apart)
            longer = next_length(length, subtract(new, offset), change, steepness, 2 * rho, apart)
            length = jnp.where(climbs, longer, shortened(length, 2 * rho)).astype(length.dtype)
            return (*_choose(climbs, (new, there), (offset, here)), length), None

        first = see(start)
        infinite = as_varying(tuple(varying_axes(first.value)), jnp.asarray(jnp.inf, global_norm(start).dtype))
        return jax.lax.scan(step, (start, first, infinite), length=self.steps - 1)[0][1]


ONE_STEP = Search()
"""The step of the paper."""


def _choose(condition: jax.Array, one: Any, other: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), one, other)
