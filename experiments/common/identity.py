"""Configs as JSON holds them: what decides the results of a run, written beside them and read again."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

Config = TypeVar("Config")


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


def from_json(kind: type[Config], fields: Any) -> Config:
    """The config whose fields JSON holds; those that are missing have their defaults.

    Raises:
      TypeError, AttributeError: if it holds other fields.
    """
    return _read(kind, fields)


def _read(kind: Any, value: Any) -> Any:
    if get_origin(kind) is Annotated:
        return _read(get_args(kind)[0], value)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        types = get_type_hints(kind, include_extras=True)
        return kind(**{name: _read(types.get(name), field) for name, field in value.items()})
    if get_origin(kind) in (Union, UnionType):
        others = [one for one in get_args(kind) if one is not NoneType]
        return value if value is None or len(others) > 1 else _read(others[0], value)
    if get_origin(kind) is tuple:
        return tuple(value)
    return Path(value) if kind is Path else value
