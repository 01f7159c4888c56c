"""Turns a method into a function in the form of ``jax.value_and_grad``, without a state."""

from collections.abc import Callable
from typing import Any

import jax

from gam_jax._calls import check_arguments
from gam_jax._check_trees import check_first_like, check_params
from gam_jax._checks import check_count, check_flag
from gam_jax._engine import Engine
from gam_jax._hold import bound, drop_nonfinite
from gam_jax._interval import on_interval
from gam_jax._loss import loss_of_call
from gam_jax._method import Method, as_diagnostics
from gam_jax._signature import release
from gam_jax._tree import cast_like
from gam_jax._types import LossFn, PyTree


def as_value_and_grad(loss_fn: LossFn, method: Method, has_diagnostics: bool) -> Callable[..., tuple[Any, ...]]:
    """The function of a method, as :func:`gam_jax.gam_value_and_grad` describes it.

    Args:
      loss_fn: the loss.
      method: the method.
      has_diagnostics: whether what the method saw is returned too.
    """
    options = method.options
    check_flag("has_diagnostics", has_diagnostics)
    if options.between != "skip":
        raise ValueError(f"a function has no state to keep a term in: use the link, got between={options.between!r}")
    if options.mismatch:
        raise ValueError("nothing comes into a function that could be mismatched: got mismatch=True")
    needs = [name for name, needed in (("count", _counts(method)), ("memory", method.memory is not None)) if needed]
    loss = loss_of_call(release(loss_fn), options.has_aux, reserved=needs)

    first_memory = jax.jit(method.memory) if method.memory else None

    def value_and_grad(params: PyTree, /, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        own = {name: kwargs.pop(name, None) for name in ("count", "memory") if name in needs or not loss.takes(name)}
        missing = [name for name in needs if own[name] is None]
        if missing:
            raise TypeError(_MISSING[missing[0]])
        check_params(params, params)
        if "count" in needs:
            check_count("count", own["count"], at_least=0)
        if method.memory:
            check_first_like("memory", own["memory"], first_memory, params)
        check_arguments(loss.signature, args, kwargs)
        engine = Engine.create(loss, params, (args, kwargs), options)
        count, memory = own.get("count"), own.get("memory")

        def act() -> tuple[Any, PyTree, Any, Any]:
            values = method.values(count, engine.params, memory)
            point, update, seen, new_memory = method.step(engine, None, values)
            update = cast_like(update, engine.params)
            if options.drop_nonfinite:
                update, _ = drop_nonfinite(update, point.grad, engine.apart)
            update = bound(update, point.grad, options.max_ratio, engine.apart)
            memory_like = cast_like(new_memory, memory) if method.memory else ()
            return (point.value, point.aux), update, as_diagnostics(seen), memory_like

        def rest() -> tuple[Any, PyTree, Any, Any]:
            point = engine.curvature.at(engine.params)
            return (point.value, point.aux), point.grad, method.nothing_seen(), memory if method.memory else ()

        (value, aux), grads, seen, memory = on_interval(options.interval, count, act, rest)
        value, grads, seen, memory = engine.after((value, grads, seen, memory))
        more = ([seen] if has_diagnostics else []) + ([memory] if method.memory else [])
        return (value, aux) if options.has_aux else value, grads, *more

    return value_and_grad


_MISSING = {
    "count": "a schedule or an interval needs the step count: call f(params, ..., count=step)",
    "memory": "the method remembers a pytree like the parameters: call f(params, ..., memory=memory), which returns "
    "the next one last; the first is optax.tree.zeros_like(params)",
}


def _counts(method: Method) -> bool:
    """Whether the method has to be told the step."""
    interval = method.options.interval
    return method.scheduled or callable(interval) or isinstance(interval, jax.Array) or interval != 1
