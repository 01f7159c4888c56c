"""Turns a method into an optax transformation: loss arguments, schedules, state, diagnostics, memory."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gam_jax._check_trees import check_first_like, check_params
from gam_jax._engine import Engine
from gam_jax._hold import bound, drop_nonfinite, held_term, last_finite, nothing_held, remember
from gam_jax._interval import on_interval
from gam_jax._loss import loss_of_update
from gam_jax._method import Method, Step
from gam_jax._signature import release
from gam_jax._tree import add_scaled, cast_like, relative_difference, subtract
from gam_jax._types import LossFn, PyTree


class State(NamedTuple):
    """The state of every transformation of the family. :func:`gam_jax.diagnostics` reads it.

    Attributes:
      count: the number of updates so far, int32.
      diagnostics: a NamedTuple of float32 scalars, from the last step on which the method acted and they were finite.
      held: what ``between="hold"`` or ``"look"`` keeps (:class:`gam_jax.Held`); otherwise ``()``.
      memory: what the method itself remembers, such as a mean of gradients; ``()`` for most. It changes on the steps
        on which the method acts, as a whole, and not where the new one has inf or NaN: one bad step leaves the last
        finite memory. With ``axis_name`` all replicas remember the same: what differs between them is averaged.
      checks: a dict of float32 scalars about what came in. "mismatch", on the last step on which the method acted, is
        ``|updates - grad L| / |grad L|``: what came in against the gradient of the method's own loss at the
        parameters, on the arguments that it was passed. Where the oracle loss is this loss it is 0 but for rounding;
        if not, an argument is missing or misspelt, a key or a mask is another one, or the statistics of BatchNorm
        moved between the two. It is there for methods that compute this gradient, and where the option asks for it.
        "dropped", with ``drop_nonfinite``, is the number of steps so far on which the updates passed unchanged, since
        the method would have made inf or NaN of them; with ``per_replica`` the mean over the replicas.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    diagnostics: Any
    held: Any = ()
    memory: Any = ()
    checks: Any = ()

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


def as_link(loss_fn: LossFn, method: Method, state_class: type[State] = State) -> optax.GradientTransformationExtraArgs:
    """The optax transformation of a method.

    Args:
      loss_fn: the loss; its arguments beside the parameters are taken by name from the extra arguments of update.
      method: the method.
      state_class: the class of its state, which names it.
    """
    options = method.options
    loss = loss_of_update(release(loss_fn), options.has_aux)
    finds_own_gradient = method.adds and options.share == 1 and not options.per_replica

    def init(params: PyTree) -> State:
        check_params(params, params)
        held = () if options.between == "skip" else nothing_held(params)
        zero = jnp.zeros((), jnp.float32)
        checks = {"mismatch": zero} if options.mismatch or finds_own_gradient else {}
        checks |= {"dropped": zero} if options.drop_nonfinite else {}
        memory = method.memory(params) if method.memory else ()
        return state_class(jnp.zeros((), jnp.int32), method.nothing_seen(), held, memory, checks)

    first = jax.jit(init)

    def update(updates: PyTree, state: Any, params: PyTree | None = None, **extra_args: Any) -> tuple[PyTree, State]:
        check_params(params, updates)
        check_first_like("state", state, first, params)
        engine = Engine.create(loss, params, loss.pick(extra_args), options)
        updates = engine.before(jax.tree.map(jnp.asarray, updates))
        updates = cast_like(updates, updates)  # drops weak types, which both branches below must agree on
        values = method.values(state.count, engine.params, state.memory)

        def mismatch(step: Step) -> jax.Array:
            own = step.point.grad if finds_own_gradient else engine.curvature.at(engine.params).grad
            return relative_difference(engine.after(updates), engine.after(own), engine.apart)

        def act() -> tuple[PyTree, Any, Any, Any, Any]:
            step = method.step(engine, updates, values)
            new, checks = cast_like(step.update, updates), dict(state.checks)
            memory = last_finite(engine.after(step.memory), state.memory, engine.apart)
            held = state.held
            if options.between != "skip":
                term = engine.after(subtract(new, updates))
                held = remember(options, term, engine.after(updates), held, engine.apart)
            if "mismatch" in checks:
                checks |= keep_finite({"mismatch": mismatch(step)}, {"mismatch": checks["mismatch"]})
            if options.drop_nonfinite:
                new, drops = drop_nonfinite(new, updates, engine.apart)
                checks["dropped"] += engine.after(drops.astype(jnp.float32))
            return new, keep_finite(engine.after(step.seen), state.diagnostics), held, memory, checks

        def rest() -> tuple[PyTree, Any, Any, Any, Any]:
            new = updates
            if options.between != "skip":
                new = add_scaled(updates, 1.0, held_term(options, updates, state.held, engine.apart))
            return new, state.diagnostics, state.held, state.memory, dict(state.checks)

        new, *kept = on_interval(options.interval, state.count, act, rest)
        new = engine.after(bound(new, updates, options.max_ratio, engine.apart))
        return new, type(state)(jnp.asarray(optax.safe_increment(state.count)), *kept)

    return optax.GradientTransformationExtraArgs(init, update)


def keep_finite(new: Any, last: Any) -> Any:
    """The new diagnostics in float32, the last ones where a step gave inf or NaN."""
    return jax.tree.map(lambda n, o: jnp.where(jnp.isfinite(n), n, o).astype(jnp.float32), new, last)
