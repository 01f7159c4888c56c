"""A method of the family: a rule with its numbers, and a step of it on a batch, on a share of it, in groups."""

import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gam_jax._check_trees import check_radii, is_prefix
from gam_jax._checks import check_coefficient, check_scalar
from gam_jax._curvature import Point
from gam_jax._engine import Engine
from gam_jax._loss import Arguments
from gam_jax._options import Options
from gam_jax._parts import Parts, every_nth
from gam_jax._tree import add_scaled, subtract, wide_dtype
from gam_jax._types import PyTree, ScalarOrSchedule


class Step(NamedTuple):
    """What a rule gives.

    Attributes:
      point: the loss at the parameters; its value is None where the clean gradient came from the caller.
      update: what goes on to the base optimizer.
      seen: the diagnostics of the method.
      memory: what it remembers, for a method with a memory.
    """

    point: Point
    update: PyTree
    seen: Any
    memory: Any = ()


Rule = Callable[..., Step]
"""``rule(engine, updates, **values) -> Step``, where updates is what came in, or None for the rule's own gradient;
among the values are the coefficients, and what the method remembers as ``memory``, if it has one."""


@dataclasses.dataclass(frozen=True)
class Method:
    """A rule with its numbers.

    Attributes:
      rule: the method.
      seen: the NamedTuple class that the rule returns its diagnostics in.
      coefficients: the rule's coefficients by name.
      options: the shared options.
      adds: whether it computes the gradient itself and adds a term to what comes in, rather than replace it.
      memory: for a method with a memory, its first one from the parameters, made of arrays like them (such as
        ``optax.tree.zeros_like``), so that it is sharded as they are.
    """

    rule: Rule
    seen: type
    coefficients: Mapping[str, ScalarOrSchedule]
    options: Options
    adds: bool = False
    memory: Callable[[PyTree], PyTree] | None = None

    def __post_init__(self):
        for name, value in self.coefficients.items():
            (check_radii if name.endswith("rho") else check_coefficient)(name, value)

    @property
    def scheduled(self) -> bool:
        """Whether a coefficient is a schedule."""
        return any(callable(leaf) for leaf in jax.tree.leaves(dict(self.coefficients)))

    def nothing_seen(self) -> Any:
        """The diagnostics before the first step, and of a step on which the method does not act."""
        return _zeros(self.seen)

    def values(self, count: Any, params: PyTree, memory: PyTree) -> dict[str, Any]:
        """What the rule takes by name at this step."""
        values = {name: resolve(name, value, count, params) for name, value in self.coefficients.items()}
        return {**values, "memory": memory} if self.memory else values

    def step(self, engine: Engine, updates: Any, values: Mapping[str, Any]) -> Step:
        """One step of the rule on the engine's batch. Without updates its point is that of the whole batch.

        1. On a share of the batch, a method that replaces the gradient adds the difference that it makes there.
        """
        if self.options.share == 1:
            return self._in_groups(engine, updates, values)
        there = engine.on(every_nth(engine.loss, engine.arguments, self.options))
        whole = engine.curvature.at(engine.params) if updates is None else Point(None, None, updates)
        if self.adds:
            return self._in_groups(there, whole.grad, values)._replace(point=whole)
        step = self._in_groups(there, None, values)
        update = add_scaled(whole.grad, 1.0, subtract(step.update, step.point.grad))
        return step._replace(point=whole, update=update)

    def _in_groups(self, engine: Engine, updates: Any, values: Any) -> Step:
        """Each group perturbs with its own gradient; all else is averaged over them."""
        if self.options.groups == 1:
            return self.rule(engine, updates, **values)

        def group(arguments: Arguments) -> tuple[Any, Any, Any]:
            point, *results = self.rule(engine.on(arguments), updates, **values)
            return point.value, point.aux, (point.grad, *results)

        value, aux, (grad, *results) = Parts.groups(engine.loss, engine.arguments, self.options).mean(group)
        return Step(Point(value, aux, grad), *results)


def as_diagnostics(seen: Any) -> Any:
    """Float32 scalars, whatever the parameters are."""
    return jax.tree.map(lambda value: value.astype(jnp.float32), seen)


def _zeros(seen: type) -> Any:
    """Zeros in the fields of a NamedTuple class, and in those of its fields that are such classes."""
    fields = typing.get_type_hints(seen).values()
    return seen(*(_zeros(field) if hasattr(field, "_fields") else jnp.zeros((), jnp.float32) for field in fields))


def resolve(name: str, value: ScalarOrSchedule, count: Any, params: PyTree) -> Any:
    """The coefficient at this step, in the dtype of norms; schedules that dip below zero are clamped there.

    Radii, a pytree of coefficients with the structure of the parameters or a prefix of it, are resolved one by one. A
    pytree that can be called, as a model can, is taken for radii if it has that structure, else for a schedule.
    """
    radii = not jax.tree_util.all_leaves([value]) and is_prefix(value, params)
    if callable(value) and not radii:
        value = value(count)
        for leaf in jax.tree.leaves(value) if name.endswith("rho") and value is not None else [value]:
            check_scalar(f"{name}(count)", leaf)
    if not jax.tree_util.all_leaves([value]):
        if not is_prefix(value, params):
            raise ValueError(
                f"{name} must be a number or a pytree of numbers with the structure of the parameters, "
                f"{jax.tree.structure(params)}, or a prefix of it, got {jax.tree.structure(value)}"
            )
        return jax.tree.map(lambda leaf: resolve(name, leaf, count, params), value)
    now = jnp.asarray(value)
    return jnp.maximum(now.astype(wide_dtype(*jax.tree.leaves(params))), 0)
