"""Checks of functions that a caller gives: whether they can be called with what they will get."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def check_takes(name: str, function: Callable[..., Any], *arguments: str) -> None:
    """Raises unless the function can be called with these arguments, by position; those that hide theirs pass."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*arguments)
    except TypeError:
        takes = f"a function of ({', '.join(arguments)})"
        raise TypeError(f"{name} must be {takes}, got {name}={function!r} with the signature {signature}") from None


def check_arguments(signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raises unless the loss can be called with these arguments beside the parameters."""
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"loss_fn takes {signature} beside the parameters: {error}") from None
