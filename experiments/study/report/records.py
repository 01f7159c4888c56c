"""The records of a study, checked where they are read: what reports, tables and pictures take from them is there."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.common.errors import require
from experiments.common.kinds import (
    FLAG,
    FRACTION,
    NOT_NEGATIVE,
    NOTHING,
    NUMBER,
    POSITIVE,
    TEXT,
    Fields,
    check_fields,
    list_of,
    one_of,
    optional,
)
from experiments.common.store import Record, read_records
from experiments.optim.recipes import hyperparameters
from experiments.study.config import CompareConfig
from experiments.study.plan import key, plan

_SESSION: Fields = {"command": TEXT, "started": TEXT, "hardware": TEXT, "python": TEXT}
_VERSIONS: Fields = {"jax": TEXT, "source": TEXT}


def read_runs(config: CompareConfig) -> list[Record]:
    """The records of a study whose runs are all there.

    Raises:
      UserError: if one is missing, not of this study, or has not what such a run leaves.
    """
    path = config.workdir / "results.jsonl"
    records = read_records(path)
    wanted = {key(task): task for task in plan(config)}
    there = {key(record) for record in records}
    missing = [task for name, task in wanted.items() if name not in there]
    require(
        not missing, f"{config.workdir} is not finished: {len(missing)} runs are missing, the first is {missing[:1]}"
    )
    for number, record in enumerate(records, start=1):
        where = f"{path}, line {number},"
        check_fields(where, record, {"kind": one_of("session", "cost", "tune", "test")})
        if record["kind"] == "session":
            check_fields(where, record, _SESSION)
            continue
        require(key(record) in wanted, f"{where} has a run that is none of this study's: {_about(record)}")
        _check_run(where, record, config)
    _check_chosen(path, records)
    return records


def versions(path: Path, made_with: Any) -> dict[str, str]:
    """What a study says that made it.

    Raises:
      UserError: unless it is versions by name.
    """
    check_fields(str(path), made_with, _VERSIONS, "made_with.")
    check_fields(str(path), made_with, dict.fromkeys(made_with, TEXT), "made_with.")
    return made_with


def _check_chosen(path: Path, records: Sequence[Record]) -> None:
    """The hyper-parameters of a final run are those of a trial."""
    tried = [_hyperparameters(record) for record in records if record["kind"] == "tune"]
    for number, record in enumerate(records, start=1):
        require(
            record["kind"] != "test" or _hyperparameters(record) in tried,
            f"{path}, line {number}, has hyperparameters = {record.get('hyperparameters')}, expected those of a trial",
        )


def _hyperparameters(record: Record) -> tuple[Any, ...]:
    return record["noise"], record["method"], record["hyperparameters"]


def _about(record: Record) -> dict[str, Any]:
    return {name: record[name] for name in ("kind", "noise", "method", "trial", "seed") if name in record}


def _check_run(where: str, record: Record, config: CompareConfig) -> None:
    if record["kind"] == "cost":
        return check_fields(where, record, {"flops_per_step": optional(POSITIVE)})
    chosen = dict.fromkeys(hyperparameters(record["method"]), NUMBER)
    check_fields(where, record, {"diverged": FLAG, "seconds": NOT_NEGATIVE, "hyperparameters": chosen})
    tune = {"validation_accuracy": FRACTION, "validation_loss": NUMBER}
    test = {"test_accuracy": FRACTION, "train_accuracy": FRACTION}
    test |= dict.fromkeys(("test_loss", "train_loss", "generalization_gap"), NUMBER)
    scores: Fields = tune if record["kind"] == "tune" else test | _measured(config)
    if record["diverged"]:
        check_fields(f"{where} whose diverged is true,", record, dict.fromkeys(scores, NOTHING))
    else:
        check_fields(where, record, scores)


def _measured(config: CompareConfig) -> dict[str, Fields]:
    """What was measured at half-time and at the end; null where the loss was not finite."""
    found, number = {}, optional(NUMBER)
    if "eigenvalues" in config.measure:
        found["eigenvalues"] = list_of(number, config.k)
    if "trace" in config.measure:
        found |= {"trace": number, "trace_standard_error": number}
    if "flatness" in config.measure:
        found |= {name: list_of(number, len(config.rho)) for name in ("R0", "R1")}
    return dict.fromkeys(("half", "end"), found) if config.measure else {}
