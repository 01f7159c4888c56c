"""What fields of a record must hold, checked where it is read: an error names the file, the field and the value."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Union

from experiments.common.errors import require


class Kind(NamedTuple):
    """What one field may hold.

    Attributes:
      fits: whether a value is of this kind.
      said: the kind in words, as in "expected a number".
    """

    fits: Callable[[Any], bool]
    said: str


Fields = Mapping[str, Union[Kind, "Fields"]]
"""The kinds of fields that must be there, by name; in place of a kind, those of an object."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


TEXT = Kind(lambda value: isinstance(value, str), "a text")
FLAG = Kind(lambda value: isinstance(value, bool), "true or false")
NUMBER = Kind(_is_number, "a number")
COUNT = Kind(_is_count, "an integer of at least 0")
POSITIVE = Kind(lambda value: _is_number(value) and value > 0, "a number above 0")
NOT_NEGATIVE = Kind(lambda value: _is_number(value) and value >= 0, "a number of at least 0")
FRACTION = Kind(lambda value: _is_number(value) and 0 <= value <= 1, "a number in [0, 1]")
NOTHING = Kind(lambda value: value is None, "null")


def one_of(*values: str) -> Kind:
    """One of these texts."""
    return Kind(lambda value: isinstance(value, str) and value in values, " or ".join(map(repr, values)))


def optional(kind: Kind) -> Kind:
    """Of that kind, or null."""
    return Kind(lambda value: value is None or kind.fits(value), f"{kind.said}, or null")


def list_of(kind: Kind, length: int | None = None) -> Kind:
    """A list of that length, or of any above 0, whose entries are all of one kind."""
    return Kind(
        lambda value: (
            isinstance(value, list)
            and (len(value) == length if length is not None else len(value) > 0)
            and all(map(kind.fits, value))
        ),
        f"a list of {'some' if length is None else length}, each {kind.said}",
    )


def check_fields(where: str, record: Any, fields: Fields, prefix: str = "") -> None:
    """Refuses a record in which a field is missing or of another kind; fields that are not named may be anything.

    Raises:
      UserError: with where it is, the field and its value.
    """
    expected = "expected an object" + (f" with {', '.join(map(repr, fields))}" if fields else "")
    require(isinstance(record, dict), f"{where} has {prefix.rstrip('.')} = {brief(record)}, {expected}")
    for name, kind in fields.items():
        field = prefix + name
        require(name in record, f"{where} has no {field!r}, expected {_said(kind)}")
        if isinstance(kind, Kind):
            require(kind.fits(record[name]), f"{where} has {field} = {brief(record[name])}, expected {kind.said}")
        else:
            check_fields(where, record[name], kind, f"{field}.")


def brief(value: Any) -> str:
    """A value as an error prints it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _said(kind: Any) -> str:
    return kind.said if isinstance(kind, Kind) else "an object"
