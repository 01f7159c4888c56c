"""The folder of a run: its identity, and results appended one atomic line at a time, so that a kill loses nothing."""

import contextlib
import fcntl
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.errors import UserError, require

Record = dict[str, Any]
_MOST_LEVELS = 100
"""Of nested JSON; what is read is walked by functions that call themselves."""


def key(record: Mapping[str, Any], fields: Sequence[str]) -> tuple[Any, ...]:
    """What a record is about; the store holds at most one record for each."""
    found = (record.get(name) for name in fields)
    return tuple(repr(value) if isinstance(value, list | dict) else value for value in found)


class Store:
    """The records of one run, a line of JSON each. Open it with :func:`open_store`."""

    def __init__(self, descriptor: int, records: list[Record], fields: Sequence[str], about: dict[str, Any]):
        self._descriptor = descriptor
        self._fields = fields
        self.records = records
        self.about = about
        """What ``config.json`` holds."""
        self._keys = {key(record, fields) for record in records}

    def __contains__(self, record: Mapping[str, Any]) -> bool:
        return key(record, self._fields) in self._keys

    def append(self, record: Record) -> None:
        """Writes one line, whole or not at all: a line cut short by a kill is dropped at the next opening."""
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        try:
            while line:
                line = line[os.write(self._descriptor, line) :]
        except OSError as error:
            raise UserError(f"cannot write a result: {error}; the same command goes on from there") from error
        self.records.append(record)
        self._keys.add(key(record, self._fields))


@contextlib.contextmanager
def open_store(
    workdir: Path,
    identity: dict[str, Any],
    name: str,
    fields: Sequence[str],
    *,
    about: dict[str, Any] | None = None,
    complete: Callable[[Any], Any] = lambda identity: identity,
) -> Iterator[Store]:
    """Opens or creates the folder of a run, for one process at a time.

    Args:
      workdir: the folder.
      identity: whatever decides the results, as JSON holds it; kept in ``config.json``.
      name: of the file in the folder.
      fields: of a record, that say what it is about.
      about: what else a new folder keeps there; it may differ in an old one, see ``Store.about``.
      complete: gives an identity of an older version the fields that came later.

    Raises:
      UserError: if the folder cannot be written, is in use, or holds results of another identity.
    """
    path = workdir / name
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        raise UserError(f"cannot write results to --workdir {workdir}: {error}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{workdir} is in use by another process: choose another --workdir") from error
        there = _claim(path, identity, about or {}, complete)
        _cut_unfinished_line(path)
        yield Store(descriptor, read_records(path), fields, there)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, text: str) -> None:
    """Replaces a text file, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _claim(
    results: Path, identity: dict[str, Any], about: dict[str, Any], complete: Callable[[Any], Any]
) -> dict[str, Any]:
    """What ``config.json`` says; it is written where there is none, and refused where it has another identity."""
    path = results.with_name("config.json")
    if not path.exists():
        require(results.stat().st_size == 0, f"{results} has no config.json beside it: choose another --workdir")
        try:
            write_json(path, identity | about)
        except OSError as error:
            raise UserError(f"cannot write results to --workdir {results.parent}: {error}") from error
        return identity | about
    there = read_json(path)
    known = {name: value for name, value in there.items() if name not in about} if isinstance(there, dict) else there
    refuse_other(results.parent, complete(known), identity, "--workdir")
    return there


def write_json(path: Path, tree: Any) -> None:
    """Replaces a JSON file, whole or not at all."""
    write_atomically(path, json.dumps(tree, indent=2, allow_nan=False) + "\n")


def parse(text: bytes) -> Any:
    """What JSON says, if it is of the kind that is written here: numbers of 64 bits, and few levels.

    Raises:
      ValueError: if it is something else.
    """
    try:
        tree = json.loads(text, parse_constant=_finite, parse_float=_finite, parse_int=_short)
    except RecursionError as error:
        raise ValueError("it is nested without end") from error
    level, depth = [tree], 0
    while level:
        level = [item for node in level if isinstance(node, dict | list) for item in _items(node)]
        depth += 1
        if depth > _MOST_LEVELS:
            raise ValueError(f"it is nested more than {_MOST_LEVELS} deep")
    return tree


def _items(node: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return node.values() if isinstance(node, dict) else node


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:40]} is not a finite number")
    return number


def _short(text: str) -> int:
    if len(text) > 20:  # 64 bits; more would not fit into a float or an array
        raise ValueError(f"{text[:20]}... has {len(text)} digits, expected at most 20")
    return int(text)


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
      UserError: if it cannot be read.
    """
    try:
        return parse(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable as JSON ({error})") from error


def read_object(path: Path) -> dict[str, Any]:
    """What a JSON file holds that must hold an object. Raises as :func:`read_json`."""
    tree = read_json(path)
    require(isinstance(tree, dict), f"{path} holds {repr(tree)[:40]}, expected an object")
    return tree


def refuse_other(place: Path, there: Any, identity: dict[str, Any], option: str) -> None:
    """Raises :class:`UserError`, which names the differences, unless a place holds results of this identity."""
    differing = differences(there, identity)
    require(
        not differing,
        f"{place} holds results of another config or of other code:\n"
        + "\n".join(differing)
        + f"\nchoose another {option}, or delete {place}",
    )


def differences(there: Any, identity: dict[str, Any]) -> list[str]:
    """A line for every field in which two identities differ."""
    old, new = _flat(there), _flat(json.loads(json.dumps(identity)))
    return [
        f"  {name}: {old.get(name, 'absent')} there, {new.get(name, 'absent')} now"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        name: value
        for field, subtree in tree.items()
        for name, value in _flat(subtree, f"{prefix}.{field}" if prefix else field).items()
    }


def _cut_unfinished_line(path: Path) -> None:
    """Removes a last line that a kill left without its end."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)


def read_records(path: Path) -> list[Record]:
    """The records in a file, but for a last line that is not finished.

    Raises:
      UserError: if there is no such file, or a line is damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from error
    records = []
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            record = parse(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}, is damaged ({error}): delete that line") from error
        require(isinstance(record, dict), f"{path}, line {number}, holds {repr(record)[:40]}, expected an object")
        records.append(record)
    return records


def plain(value: Any) -> Any:
    """Numbers, arrays and what is made of them as JSON holds them; None for inf and NaN."""
    value = getattr(value, "_asdict", lambda: value)()
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
