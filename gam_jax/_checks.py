"""Checks of what a caller gives: errors that print the offending value and what was expected."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from gam_jax._calls import check_takes
from gam_jax._types import PyTree


def _is_real(value: Any) -> bool:
    """Whether the value is a real number or an array of such, traced or not; a bool is none."""
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # of an int of more than 308 digits
        return math.inf


def check_coefficient(name: str, value: Any, *, positive: bool = False, at_most: float = math.inf) -> None:
    """Raises unless the value is a finite number >= 0 (> 0 if ``positive``), a traced scalar or a schedule."""
    if callable(value):
        return check_takes(name, value, "count")
    allowed = f"a finite number {'> 0' if positive else '>= 0'}{f' and <= {at_most}' if at_most < math.inf else ''}"
    message = f"{name} must be {allowed}, a traced scalar or a schedule, got {name}={value!r}"
    if not _is_real(value):
        raise TypeError(message)
    if np.ndim(value):
        raise ValueError(message)
    if isinstance(value, Tracer):
        return
    number = _as_float(value)
    if not 0 <= number <= at_most or number == math.inf or (positive and number == 0):
        raise ValueError(message)


def check_scalar(name: str, value: Any) -> None:
    """Raises unless the value, such as that of a schedule, is a real scalar, traced or not."""
    if not _is_real(value) or np.ndim(value):
        raise TypeError(f"{name} must be a real scalar, got {value!r}")


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raises unless the value is one of the choices, texts or None."""
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        raise ValueError(f"{name} must be one of {choices}, got {name}={value!r}")


def check_count(name: str, value: Any, otherwise: str = "", *, at_least: int = 1) -> None:
    """Raises unless the value is an int32 integer >= 1, traced or not; ``otherwise`` says what else its place takes."""
    message = f"{name} must be an integer >= {at_least}{otherwise}, got {name}={value!r}"
    if not _is_real(value) or np.ndim(value) or not jnp.issubdtype(getattr(value, "dtype", type(value)), jnp.integer):
        raise ValueError(message)
    if not isinstance(value, Tracer) and not at_least <= int(value) < 2**31:
        raise ValueError(message)


def check_names(name: str, value: Any) -> None:
    """Raises unless the value is None, a name, or some names, alone or as the keys of a dict to pytrees of bools."""
    if value is None or isinstance(value, str):
        return
    if not (isinstance(value, Mapping | Sequence) and value and all(isinstance(entry, str) for entry in value)):
        raise TypeError(f"{name} must be a name, a tuple of names or a dict from names, got {name}={value!r}")
    if isinstance(value, Mapping):
        check_bools(name, dict(value))


def check_bools(name: str, tree: PyTree) -> None:
    """Raises unless all leaves are bools, known now."""
    for path, leaf in jax.tree.leaves_with_path(tree):
        if not isinstance(leaf, bool | np.bool_):
            raise TypeError(f"{name} must hold bools, got {leaf!r} at {name}{jax.tree_util.keystr(path)}")


def check_axes(name: str, value: Any) -> None:
    """Raises unless the value is None, the name of a mesh axis or a tuple of such."""
    axes = value if isinstance(value, tuple | list) else [value]
    if not all(isinstance(axis, Hashable) and not isinstance(axis, int | float) for axis in axes):
        raise TypeError(f"{name} must be None, the name of a mesh axis or a tuple of names, got {name}={value!r}")


def check_key(key: Any) -> None:
    """Raises unless the key is one typed key."""
    if not isinstance(key, jax.Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise TypeError(f"key must be a typed key, as jax.random.key(0) makes them, got {key!r}")
    if key.shape:
        raise ValueError(f"key must be a single key, got keys of shape {key.shape}")


def check_integer(name: str, value: Any, *, at_least: int = 1, at_most: int | None = None, of: str = "") -> None:
    """Raises unless the value is an integer in the range; ``of`` says what ``at_most`` is."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {name}={value!r}")
    if value < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {name}={value}")
    if at_most is not None and value > at_most:
        raise ValueError(f"{name} must be at most {at_most}{of}, got {name}={value}")


def check_positive(name: str, value: Any, *, or_zero: bool = False) -> None:
    """Raises unless the value is a finite number > 0, or 0 if that is allowed."""
    try:
        number = math.nan if isinstance(value, str | bool) or np.ndim(value) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (0 < number < math.inf or (or_zero and number == 0)):
        raise ValueError(f"{name} must be a finite number {'>=' if or_zero else '>'} 0, got {name}={value!r}")


def check_flag(name: str, value: Any) -> None:
    """Raises unless the value is a bool: the text "False", say, is true."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {name}={value!r}")


def check_number(name: str, value: Any, *, positive: bool = False, at_most: float = math.inf) -> None:
    """Raises unless the value is a finite number >= 0 (> 0 if ``positive``) or a traced scalar; no schedule."""
    if callable(value):
        raise TypeError(f"{name} must be a number or a traced scalar, not a function, got {name}={value!r}")
    check_coefficient(name, value, positive=positive, at_most=at_most)


def check_function(name: str, value: Any, otherwise: str = "") -> None:
    """Raises unless the value can be called; ``otherwise`` says what else its place takes."""
    if not callable(value):
        raise TypeError(f"{name} must be a function{otherwise}, got {name}={value!r}")


def check_numbers(name: str, values: Any) -> np.ndarray:
    """The values as float64 [n]; raises unless they are a list of finite real numbers."""
    try:
        array = np.asarray(values)
        array = array.astype(np.float64) if array.dtype.kind in "biuf" else np.full(1, np.nan)
    except (TypeError, ValueError):
        array = np.full(1, np.nan)
    if array.ndim != 1 or not array.size or not np.isfinite(array).all():
        raise ValueError(f"{name} must be a list of finite numbers, got {name}={values!r}")
    return array
