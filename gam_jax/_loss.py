"""The user's loss: which arguments it takes, how it is called, what it returns."""

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gam_jax._types import LossFn, PyTree

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""What the loss takes beside the parameters: by position and by name."""

_RECIPES = {
    "flax.nnx": (
        "an nnx model: gam_jax.nnx.value_and_grad(loss_fn, ...)(model, ...) in place of nnx.value_and_grad. In a "
        "chain: graphdef, params, rest = nnx.split(model, nnx.Param, ...), and a loss_fn(params, rest, ...) "
        "that calls nnx.merge(graphdef, params, rest, copy=True); pass rest=rest beside the batch"
    ),
    "equinox": (
        "an equinox model: gam_jax.equinox.filter_value_and_grad(loss_fn, ...)(model, ...) in place of "
        "eqx.filter_value_and_grad. In a chain: params, static = eqx.partition(model, eqx.is_inexact_array), and a "
        "loss_fn(params, ...) that calls eqx.combine(params, static)"
    ),
}


@dataclasses.dataclass(frozen=True)
class Loss:
    """The user's loss after binding, ``loss(params, arguments) -> (scalar, aux)``, with aux None without has_aux.

    Attributes:
      evaluate: the loss in that form.
      signature: of the user's function, without its first parameter.
    """

    evaluate: Callable[[PyTree, Arguments], tuple[jax.Array, Any]]
    signature: inspect.Signature

    @classmethod
    def create(cls, loss_fn: LossFn, has_aux: bool, *, of: str, reserved: Sequence[str], by_name: bool) -> "Loss":
        """Binds a loss that is called by ``of``, a function which has the ``reserved`` names for itself.

        Raises:
          TypeError: if ``loss_fn`` is not a function of the parameters, if it takes a reserved name, or, when arguments
            travel ``by_name``, if some of its own have none.
        """
        if not callable(loss_fn):
            raise TypeError(f"loss_fn must be a function (params, ...) -> scalar, got {loss_fn!r}")
        try:
            parameters = list(inspect.signature(loss_fn).parameters.values())
        except ValueError:
            raise TypeError(
                f"cannot tell which arguments {loss_fn!r} takes: pass lambda params, batch: loss_fn(params, batch)"
            ) from None
        if not parameters or parameters[0].kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD):
            raise TypeError(f"loss_fn must take the parameters as its first argument, got {loss_fn!r} without one")
        others = parameters if parameters[0].kind is inspect.Parameter.VAR_POSITIONAL else parameters[1:]
        nameless = [p.name for p in others if p.kind is p.VAR_POSITIONAL]
        if by_name and nameless:
            raise TypeError(
                f"loss_fn takes *{nameless[0]}, and its arguments travel by name through {of}: name them, as in "
                "lambda params, x, y: loss_fn(params, x, y) (a wrapper shows the names of what it wraps by "
                "functools.wraps)"
            )
        bound = loss_fn.keywords if isinstance(loss_fn, functools.partial) else {}
        taken = [p.name for p in others if p.name in reserved and p.name not in bound]
        if taken:
            raise TypeError(
                f"loss_fn takes an argument named {taken[0]!r}, a name that {of} has for itself: rename it, or wrap "
                f"the loss, as in lambda params, loss_{taken[0]}, batch: loss_fn(params, loss_{taken[0]}, batch)"
            )
        return cls(bind(loss_fn, has_aux), inspect.Signature(others))

    def __call__(self, params: PyTree, arguments: Arguments) -> tuple[jax.Array, Any]:
        return self.evaluate(params, arguments)

    def takes(self, name: str) -> bool:
        """Whether the loss can be passed an argument of that name."""
        return name in self.signature.parameters or self._rest_of_names is not None

    def pick(self, extra_args: dict[str, Any]) -> Arguments:
        """The arguments of the loss among those passed to ``update``, by position where the loss has one for them.

        Names that the loss does not take are left out, since they may be meant for another link; all of them are passed
        to a loss with ``**kwargs``.

        Raises:
          TypeError: if an argument without a default is missing, or a name looks like a misspelt one that has a
            default.
        """
        named = [p for p in self.signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        missing = [p.name for p in named if p.default is p.empty and p.name not in extra_args]
        if missing:
            raise TypeError(
                f"update() is missing {missing}, which loss_fn needs: pass each by name, as in "
                f"tx.update(grads, state, params, {missing[0]}=...). Got {sorted(extra_args)}"
                + ("" if extra_args else _train_state_recipe(missing))
            )
        given = {p.name: extra_args[p.name] for p in named if p.name in extra_args}
        if self._rest_of_names is None:
            _check_spelling([p.name for p in named if p.name not in given], [n for n in extra_args if n not in given])
        if self._rest_of_names is not None:
            given[self._rest_of_names] = {name: extra_args[name] for name in extra_args if name not in given}
        call = inspect.BoundArguments(self.signature, given)  # pyright: ignore[reportArgumentType]
        if any(p.kind is p.POSITIONAL_ONLY for p in named):
            call.apply_defaults()  # what comes after an omitted one can still be reached
        return call.args, call.kwargs

    def names(self, args: Sequence[Any]) -> list[str]:
        """A name for each argument passed by position; ``args[0]``, ... for those of ``*args``."""
        parameters = self.signature.parameters.values()
        names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][: len(args)]
        return names + [f"args[{i}]" for i in range(len(args) - len(names))]

    @property
    def _rest_of_names(self) -> str | None:
        """What ``**kwargs`` is called, if there is one."""
        return next((p.name for p in self.signature.parameters.values() if p.kind is p.VAR_KEYWORD), None)


def loss_of_update(loss_fn: LossFn, has_aux: bool) -> Loss:
    """The loss of a link, whose arguments are passed to ``update`` by name."""
    return Loss.create(loss_fn, has_aux, of="update()", reserved=("updates", "state", "params"), by_name=True)


def loss_of_call(loss_fn: LossFn, has_aux: bool, *, reserved: Sequence[str]) -> Loss:
    """The loss of a ``value_and_grad`` function, which takes by name what it needs itself: step count, memory."""
    of = "value_and_grad with a schedule, an interval or a memory"
    return Loss.create(loss_fn, has_aux, of=of, reserved=reserved, by_name=False)


def bind(loss_fn: LossFn, has_aux: bool) -> Callable[[PyTree, Arguments], tuple[jax.Array, Any]]:
    """The loss as (params, (args, kwargs)) -> (scalar, aux), with its result checked."""

    def loss(params: PyTree, arguments: Arguments) -> tuple[jax.Array, Any]:
        args, kwargs = arguments
        try:
            result = loss_fn(params, *args, **kwargs)
        except (TypeError, AttributeError) as error:
            recipe = None if getattr(loss_fn, _OF_MODEL, False) else _recipe(params)
            if recipe is None:
                raise
            raise TypeError(f"loss_fn fails at the params alone ({error}). If it takes {recipe}") from error
        if has_aux and not (isinstance(result, tuple) and len(result) == 2):
            raise TypeError(f"with has_aux=True loss_fn must return (loss, aux), got {type(result).__name__}")
        value, aux = result if has_aux else (result, None)
        if isinstance(value, tuple | list | dict):
            raise TypeError(f"loss_fn must return a scalar, got a {type(value).__name__}; for (loss, aux) say has_aux")
        try:
            value = jnp.asarray(value)
        except (TypeError, ValueError):
            raise TypeError(f"loss_fn must return a real scalar, got {value!r}") from None
        if value.shape or not jnp.issubdtype(value.dtype, jnp.floating):
            raise TypeError(f"loss_fn must return a real scalar, got shape {value.shape} and dtype {value.dtype}")
        return value, aux

    return loss


def _train_state_recipe(missing: Sequence[str]) -> str:
    """What to write in place of ``TrainState.apply_gradients``, which passes on no arguments."""
    arguments = ", ".join(f"{name}={name}" for name in missing)
    return f""". The apply_gradients of Flax's TrainState passes none on. In place of it write

    updates, opt_state = state.tx.update(grads, state.opt_state, state.params, {arguments})
    params = optax.apply_updates(state.params, updates)
    state = state.replace(step=state.step + 1, params=params, opt_state=opt_state)

or leave the link out of tx, and take grads from gam_jax.gam_value_and_grad in place of jax.value_and_grad"""


_OF_MODEL = "_gam_jax_of_model"


def of_model(loss_fn: LossFn) -> Callable[[LossFn], LossFn]:
    """Marks a loss of parameters that rebuilds the model for ``loss_fn`` of it, and gives it the latter's names."""

    def mark(loss_of_params: LossFn) -> LossFn:
        loss = functools.wraps(loss_fn)(loss_of_params)
        setattr(loss, _OF_MODEL, True)
        return loss

    return mark


def _check_spelling(omitted: list[str], unknown: list[str]) -> None:
    """Raises if a name that the loss does not take is close to one that it takes and did not get."""
    for name in unknown:
        close = difflib.get_close_matches(name, omitted, n=1, cutoff=0.75)
        if close:
            raise TypeError(
                f"update() got {name}=..., which loss_fn does not take, and not {close[0]!r}, which it takes: is it "
                f"misspelt? If {name!r} is meant for another link, pass {close[0]}=... as well, its default if need be"
            )


def _recipe(params: PyTree) -> str | None:
    """How a loss of a model becomes one of its parameters, for models of libraries where the model is a pytree."""

    def library(node: Any) -> str | None:
        modules = [base.__module__ for base in type(node).__mro__]
        return next((name for name in _RECIPES if any(m.startswith(name) for m in modules)), None)

    nodes = jax.tree.leaves(params, is_leaf=lambda node: library(node) is not None)
    return next((_RECIPES[name] for name in map(library, nodes) if name), None)
