"""Turns a rule into an optax transformation: loss arguments, schedules, state, diagnostics, memory."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gam_jax._checks import check_coefficient, check_params, check_radii, check_scalar, check_state, is_prefix
from gam_jax._engine import Engine
from gam_jax._hold import DropDiagnostics, bound, drop_nonfinite, hold, last_finite, nothing_held
from gam_jax._interval import on_interval
from gam_jax._loss import loss_of_update
from gam_jax._options import Options
from gam_jax._signature import release
from gam_jax._tree import add_scaled, cast_like, subtract, wide_dtype
from gam_jax._types import LossFn, PyTree, ScalarOrSchedule


class State(NamedTuple):
    """The state of every transformation of the family.

    Attributes:
      count: the number of updates so far, int32.
      diagnostics: a NamedTuple of float32 scalars, from the last step on which the method acted and they were finite.
        With ``drop_nonfinite`` they are in :class:`gam_jax.DropDiagnostics`. :func:`gam_jax.diagnostics` reads them.
      held: what ``between="hold"`` keeps (:class:`gam_jax.Held`); otherwise ``()``.
      memory: what the method itself remembers, such as a mean of gradients; ``()`` for most. It changes on the steps
        on which the method acts, as a whole, and not where the new one has inf or NaN: one bad step leaves the last
        finite memory. With ``axis_name`` all replicas remember the same: what differs between them is averaged.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    diagnostics: Any
    held: Any = ()
    memory: Any = ()

    method = "method"  # its name, of the class: each method has its own, of the same fields


class Diagnostics(NamedTuple):
    """What a first-order method saw, at no extra cost.

    Attributes:
      grad_norm: ``||grad L(w)||``.
      perturbed_grad_norm: ``||grad L||`` at the ascent point of the gradient norm.
      first_order_flatness: ``rho * perturbed_grad_norm``, the one-step estimate of R1_rho (Definition 4.1).
      norm_grad_norm: ``||h_norm||``, the norm of the gradient of R1_rho.
      cosine: of the angle between the gradient of the oracle loss and h_norm.
    """

    grad_norm: jax.Array
    perturbed_grad_norm: jax.Array
    first_order_flatness: jax.Array
    norm_grad_norm: jax.Array
    cosine: jax.Array


Rule = Callable[..., tuple[Any, ...]]
"""One method: ``rule(engine, updates, **coefficients) -> (updates, diagnostics)``; one with a memory takes it after the
updates and returns the new one: ``rule(engine, updates, memory, **coefficients) -> (updates, diagnostics, memory)``.
"""


def from_rule(
    loss_fn: LossFn,
    rule: Rule,
    diagnostics: Callable[..., Any],
    coefficients: dict[str, ScalarOrSchedule],
    options: Options,
    memory: Callable[[PyTree], PyTree] | None = None,
    state_class: type[State] = State,
) -> optax.GradientTransformationExtraArgs:
    """The optax transformation of a rule.

    Args:
      loss_fn: the loss; its arguments beside the parameters are taken by name from the extra arguments of update.
      rule: the method.
      diagnostics: the NamedTuple class that the rule returns its diagnostics in.
      coefficients: the rule's coefficients by name.
      options: the shared options.
      memory: for a rule with a memory, its first one from the parameters, made of arrays like them (such as
        ``optax.tree.zeros_like``), so that it is sharded as they are.
      state_class: the class of its state, which names it.
    """
    loss_fn = release(loss_fn)
    loss = loss_of_update(loss_fn, options.has_aux)
    holds = options.between == "hold"
    remembering = rule if memory else _without_memory(rule)
    for name, value in coefficients.items():
        (check_radii if name == "rho" else check_coefficient)(name, value)

    def init(params: PyTree) -> State:
        check_params(params, params)
        fields = diagnostics.__annotations__
        seen = diagnostics(*(jnp.zeros((), jnp.float32) for _ in fields))
        seen = DropDiagnostics(seen, jnp.zeros((), jnp.float32)) if options.drop_nonfinite else seen
        held, remembered = nothing_held(params) if holds else (), memory(params) if memory else ()
        return state_class(jnp.zeros((), jnp.int32), seen, held, remembered)

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra_args: Any) -> tuple[PyTree, State]:
        check_params(params, updates)
        check_state(state, init, params)
        engine = Engine.create(loss, params, loss.pick(extra_args), options)
        updates = engine.before(jax.tree.map(jnp.asarray, updates))
        updates = cast_like(updates, updates)  # drops weak types, which both branches below must agree on
        values = {name: resolve(name, value, state.count, engine.params) for name, value in coefficients.items()}

        def act() -> tuple[PyTree, Any, Any, Any]:
            new, seen, remembered = remembering(engine, updates, state.memory, **values)
            remembered = last_finite(engine.after(remembered), state.memory)
            new, held = cast_like(new, updates), state.held
            if holds:
                held = hold(engine.after(subtract(new, updates)), held)
            last = state.diagnostics
            if not options.drop_nonfinite:
                return new, keep_finite(engine.after(seen), last), held, remembered
            new, drops = drop_nonfinite(new, updates)
            dropped = last.dropped + engine.after(drops.astype(jnp.float32))
            return new, DropDiagnostics(keep_finite(engine.after(seen), last.seen), dropped), held, remembered

        def rest() -> tuple[PyTree, Any, Any, Any]:
            new = add_scaled(updates, 1.0, state.held.term) if holds else updates
            return new, state.diagnostics, state.held, state.memory

        new, *kept = on_interval(options.interval, state.count, act, rest)
        new = engine.after(bound(new, updates, options.max_ratio))
        return new, type(state)(jnp.asarray(optax.safe_increment(state.count)), *kept)

    return optax.GradientTransformationExtraArgs(init, update)


def _without_memory(rule: Rule) -> Rule:
    """The rule in the form of those that have a memory, which it hands on."""
    return lambda engine, updates, memory, **coefficients: (*rule(engine, updates, **coefficients), memory)


def resolve(name: str, value: ScalarOrSchedule, count: Any, params: PyTree) -> Any:
    """The coefficient at this step, in the dtype of norms; schedules that dip below zero are clamped there.

    Radii, a pytree of coefficients with the structure of the parameters or a prefix of it, are resolved one by one. A
    pytree that can be called, as a model can, is taken for radii if it has that structure, else for a schedule.
    """
    radii = not jax.tree_util.all_leaves([value]) and is_prefix(value, params)
    if callable(value) and not radii:
        value = value(count)
        for leaf in jax.tree.leaves(value) if name == "rho" and value is not None else [value]:
            check_scalar(f"{name}(count)", leaf)
    if not jax.tree_util.all_leaves([value]):
        if not is_prefix(value, params):
            raise ValueError(
                "rho must be a number or a pytree of numbers with the structure of the parameters, "
                f"{jax.tree.structure(params)}, or a prefix of it, got {jax.tree.structure(value)}"
            )
        return jax.tree.map(lambda leaf: resolve(name, leaf, count, params), value)
    now = jnp.asarray(value)
    return jnp.maximum(now.astype(wide_dtype(*jax.tree.leaves(params))), 0)


def keep_finite(new: Any, last: Any) -> Any:
    """The new diagnostics in float32, the last ones where a step gave inf or NaN."""
    return jax.tree.map(lambda n, o: jnp.where(jnp.isfinite(n), n, o).astype(jnp.float32), new, last)
