"""How wrong values are refused: with a message that prints them, before any work is done."""

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """Something that the user can put right; printed without a traceback."""


class Stopped(Exception):
    """A run was asked to stop (SIGTERM), and its state is saved."""


def require(condition: bool, message: str) -> None:
    """Raises :class:`UserError` with the message unless the condition holds."""
    if not condition:
        raise UserError(message)


def require_distinct(name: str, values: tuple[Any, ...], verb: str = "name") -> None:
    """Raises :class:`UserError` unless there are values, and no two the same."""
    require(
        len(values) > 0 and len(set(values)) == len(values),
        f"{name} must {verb} distinct values, at least one, got {values}",
    )


def require_at_least(config: Any, least: int, *names: str, prefix: str = "") -> None:
    """Raises :class:`UserError` unless each of these fields is that large."""
    for name in names:
        value = getattr(config, name)
        require(value >= least, f"{prefix}{name} must be at least {least}, got {value}")


def require_seed(name: str, seed: int) -> None:
    """Raises :class:`UserError` unless it is a seed that JAX takes whole, in 0 ... 2^31 - 1."""
    require(0 <= seed < 2**31, f"{name} must be in 0 ... 2147483647, got {seed}")


def require_fraction(name: str, value: float) -> None:
    """Raises :class:`UserError` unless the value is in [0, 1]."""
    require(0 <= value <= 1, f"{name} must be a fraction in [0, 1], got {value} (30 % is 0.3)")


def require_momentum(momentum: float) -> None:
    """Raises :class:`UserError` unless it is in [0, 1)."""
    require(0 <= momentum < 1, f"momentum must be in [0, 1), got {momentum}")


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name: the nearest known one, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {close[0]!r}?" if close else f": known are {', '.join(map(repr, known))}"
