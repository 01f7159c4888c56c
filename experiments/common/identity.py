"""Configs as JSON holds them: what decides the results of a run, written beside them and read again."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from experiments.common.errors import UserError

Config = TypeVar("Config")
_PLAIN = {bool: (bool,), int: (int,), float: (float, int), str: (str,)}
"""What JSON may hold for a field of a type."""


def to_json(config: Any, apart: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of a config, without those that do not decide its results, such as ``data.folder``."""
    tree = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    for name in apart:
        *path, last = name.split(".")
        fields = tree
        for step in path:
            fields = fields[step]
        del fields[last]
    return tree


def from_json(kind: type[Config], fields: Any, **more: Any) -> Config:
    """The config whose fields JSON holds, and some more; those that are missing have their defaults.

    Raises:
      UserError: if it holds other fields, or values of another kind.
    """
    try:
        return _read(kind, fields | more)
    except (AttributeError, TypeError, OverflowError) as error:
        raise UserError(f"it does not hold a config of this version ({error})") from error


def _read(kind: Any, value: Any) -> Any:
    if get_origin(kind) is Annotated:
        return _read(get_args(kind)[0], value)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        types = get_type_hints(kind, include_extras=True)
        value = getattr(kind, "modern", lambda fields: fields)(value)  # records of older versions
        return kind(**{name: _read(types.get(name), field) for name, field in value.items()})
    if get_origin(kind) in (Union, UnionType):
        others = [one for one in get_args(kind) if one is not NoneType]
        return value if value is None or len(others) > 1 else _read(others[0], value)
    if get_origin(kind) is tuple:
        return tuple(_read(get_args(kind)[0], item) for item in value)
    if kind in _PLAIN and type(value) not in _PLAIN[kind]:
        raise TypeError(f"{repr(value)[:40]} is not of type {_PLAIN[kind][0].__name__}")
    if get_origin(kind) is Literal and value not in get_args(kind):
        raise TypeError(f"{repr(value)[:40]} is none of {', '.join(get_args(kind))}")
    return Path(value) if kind is Path else value
