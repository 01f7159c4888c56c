"""The records of a benchmark, checked where they are read: what its tables take from them is there."""

from pathlib import Path
from typing import Any

from experiments.common.errors import require
from experiments.common.kinds import NOT_NEGATIVE, POSITIVE, TEXT, Fields, Kind, brief, check_fields, list_of, one_of
from experiments.common.store import read_object
from experiments.measure.cost.benchmark import Record

_INTERVAL = Kind(lambda value: type(value) is int and value > 0, "an integer above 0")
_ABOUT: Fields = {
    "network": TEXT,
    "library": one_of("jax", "torch", "torch.compile"),
    "case": TEXT,
    "intervals": list_of(_INTERVAL),
    "seconds": {},
}
_COMPILED: Fields = {"temporary_bytes": POSITIVE, "state_bytes": NOT_NEGATIVE, "compile_seconds": POSITIVE}


def read_benchmark(folder: Path) -> Record:
    """What :func:`experiments.measure.cost.benchmark.benchmark` has written there.

    Raises:
      UserError: if it cannot be read, or a record has not what the tables are made of; names file, field and value.
    """
    path = folder / "benchmark.json"
    results = read_object(path)
    records: Any = results.get("records")
    require(
        isinstance(records, list) and len(records) > 0,
        f"{path} has records = {brief(records)}, expected a list of some",
    )
    bases: dict[tuple[str, str], Record] = {}
    for number, record in enumerate(records):
        where = f"{path}, record {number},"
        check_fields(where, record, _ABOUT)
        _check_costs(where, record, bases.setdefault((record["network"], record["library"]), record))
    return results


def _check_costs(where: str, record: Record, base: Record) -> None:
    """Of a case, beside the first of its network and library, which it is compared with."""
    phases = ("acting", "skipped") if max(record["intervals"]) > 1 else ("acting",)
    fields: dict[str, Fields] = {"flops": dict.fromkeys(phases, POSITIVE)}
    if record["seconds"]:
        require(base["seconds"], f"{where} has times, and {base['case']!r}, which it is compared with, has none")
        rounds = None if record is base else len(base["seconds"]["acting"])
        fields["seconds"] = dict.fromkeys(phases, list_of(POSITIVE, rounds))
    check_fields(where, record, {**fields, **(_COMPILED if record["library"] == "jax" else {})})
