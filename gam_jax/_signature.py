"""Signatures as help() shows them, every option by name, and as optax.inject_hyperparams reads them."""

import dataclasses
import inspect
import re
from collections.abc import Callable, Container
from typing import Any, NamedTuple, TypeVar

from gam_jax import _types


class Static(NamedTuple):
    """What optax.inject_hyperparams leaves alone: neither traced as a number nor called as a schedule."""

    value: Any


def release(value: Any) -> Any:
    """The value itself, if it is held :class:`Static`."""
    return value.value if isinstance(value, Static) else value


class _StaticParameter(inspect.Parameter):
    """One whose value is no hyperparameter."""


class _Signature(inspect.Signature):
    """Binds the values of static parameters, defaults too, as :class:`Static`.

    1. optax.inject_hyperparams binds all arguments, then traces whatever is a number, an ``interval`` of 1 too, and
       calls whatever is callable, a loss or a mask too, with the step count. What it does not know it passes on.
    """

    def bind(self, *args: Any, **kwargs: Any) -> inspect.BoundArguments:
        bound = super().bind(*args, **kwargs)
        bound.apply_defaults()
        for name, value in bound.arguments.items():
            if isinstance(self.parameters[name], _StaticParameter):
                bound.arguments[name] = Static(value)
        return bound


Function = TypeVar("Function", bound=Callable[..., Any])

_NAMES = ("ScalarOrSchedule", "HvpMode", "Between", "GroupsBy", "LossFn")
_ALIASES = {inspect.formatannotation(getattr(_types, name)): name for name in _NAMES}


class _Shown(str):
    """An annotation that is printed without quotes."""

    def __repr__(self) -> str:
        return str(self)


def _short(annotation: Any) -> Any:
    """``float | Array`` for ``float | jax.jaxlib._jax.Array``; the name of an alias for what it stands for."""
    if annotation is inspect.Signature.empty:
        return annotation
    text = inspect.formatannotation(annotation)
    for long, name in _ALIASES.items():
        text = text.replace(long, name)
    return _Shown(re.sub(r"(?:\w+\.)+(?=\w)", "", text))


def readable(function: Function) -> Function:
    """Shortens the annotations of a function or a dataclass in what help() shows; they stay as they are."""
    signature = inspect.signature(function)
    parameters = [p.replace(annotation=_short(p.annotation)) for p in signature.parameters.values()]
    function.__signature__ = signature.replace(  # pyright: ignore[reportFunctionMemberAccess]
        parameters=parameters, return_annotation=_short(signature.return_annotation)
    )
    return function


def show_options(options: type, names: Container[str]) -> Callable[[Function], Function]:
    """Shows fields of a dataclass of options one by one in the signature of a function that takes ``**options``.

    So help() lists them, and optax.inject_hyperparams finds them.
    """

    def show(function: Function) -> Function:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        shared = [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
            for f in dataclasses.fields(options)
            if f.name in names
        ]
        function.__signature__ = signature.replace(parameters=[*own, *shared])  # pyright: ignore
        return readable(function)

    return show


def static(function: Function, names: Container[str]) -> Function:
    """Makes parameters static for optax.inject_hyperparams, which binds them as :class:`Static`."""
    signature = inspect.signature(function)
    parameters = [
        _StaticParameter(p.name, p.kind, default=p.default, annotation=p.annotation) if p.name in names else p
        for p in signature.parameters.values()
    ]
    function.__signature__ = _Signature(parameters, return_annotation=signature.return_annotation)  # pyright: ignore
    return function
