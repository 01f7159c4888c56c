"""Finished studies, read again from their folders: what tables and pictures over several of them are made of."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from experiments.common.errors import require
from experiments.common.store import Record, read_object
from experiments.optim.recipes import label
from experiments.study.config import CompareConfig
from experiments.study.report.records import read_runs, versions
from experiments.study.report.statistics import (
    Estimate,
    Row,
    summarize,
    values,
)


class Study(NamedTuple):
    """A finished study.

    Attributes:
      config: what was compared.
      records: all its runs.
      summary: a row for each noise level and method.
      made_with: the versions that made it.
    """

    config: CompareConfig
    records: Sequence[Record]
    summary: Sequence[Row]
    made_with: dict[str, Any]

    @property
    def name(self) -> str:
        return self.config.workdir.name

    def row(self, noise: float, method: str) -> Row:
        """The row of a method at a noise level."""
        return next(row for row in self.summary if (row.noise, row.method) == (noise, method))

    def label(self, method: str) -> str:
        """A method or recipe as people write it."""
        return label(method, self.config.base)

    def values(self, noise: float, method: str, *path: str | int) -> np.ndarray:
        """What the final runs of a method recorded at a path, by seed; see :func:`.statistics.values`."""
        return values(self.records, noise, method, *path)

    def mean(self, noise: float, method: str, measure: str) -> float:
        """A measure of flatness (see :func:`measures`) at the end; NaN if it was not taken."""
        path = measures(self.config, "end").get(measure)
        return math.nan if path is None else Estimate.of(self.values(noise, method, *path)).mean

    def final(self) -> list[Record]:
        """The final runs, ordered by noise, method and seed."""
        runs = [record for record in self.records if record["kind"] == "test"]
        return sorted(runs, key=lambda r: (r["noise"], self.config.methods.index(r["method"]), r["seed"]))

    def chosen(self) -> list[Record]:
        """One final run for each noise level and method, which has the hyper-parameters that were chosen."""
        return [record for record in self.final() if record["seed"] == 0]

    def made_here(self) -> list[Record]:
        """The trials and the final runs, without trials that were taken over from another study."""
        kinds = ("test",) if self.config.tuned_in else ("tune", "test")
        return [record for record in self.records if record["kind"] in kinds]

    def hours(self) -> dict[str, float]:
        """Time that trials and final runs have taken, by kind."""
        seconds = {"tune": 0.0, "test": 0.0}
        for record in self.made_here():
            seconds[record["kind"]] += record["seconds"]
        return {kind: total / 3600 for kind, total in seconds.items()}


class Task(NamedTuple):
    """A noise level of a study: what methods are compared on."""

    study: Study
    noise: float

    @property
    def label(self) -> str:
        return self.study.name + (f", {self.noise:.0%} wrong labels" if self.noise else "")


def study_of(config: CompareConfig, records: Sequence[Record], made_with: dict[str, Any]) -> Study:
    """A study whose runs are all there."""
    return Study(config, records, summarize(config, records), made_with)


def read_study(folder: Path) -> Study:
    """Reads the folder of a finished study, whatever code it was made with.

    Raises:
      UserError: if it is none, not finished, or has not what reports are made of; names file, field and value.
    """
    require(folder.is_dir(), f"there is no folder {folder}: give the folders of finished studies")
    path = folder / "config.json"
    identity = read_object(path)
    found = identity.get("config")
    require(isinstance(found, dict) and "grid" in found, f"{folder} holds no study")
    config = CompareConfig.of(folder, found)
    made_with = versions(path, identity.get("made_with"))
    return study_of(config, read_runs(config), made_with)


def tasks(studies: Sequence[Study]) -> list[Task]:
    """All tasks in order."""
    return [Task(study, noise) for study in studies for noise in study.config.noise]


def measures(config: CompareConfig, stage: Literal["half", "end"]) -> dict[str, tuple[str | int, ...]]:
    """What was measured at half-time or at the end, by name, with its place in the record of a run."""
    found: dict[str, tuple[str | int, ...]] = {}
    if "flatness" in config.measure:
        found |= {f"{r} at {rho:g}": (stage, r, i) for r in ("R0", "R1") for i, rho in enumerate(config.rho)}
    if "eigenvalues" in config.measure:
        found["top eigenvalue"] = (stage, "eigenvalues", 0)
    if "trace" in config.measure:
        found["trace"] = (stage, "trace")
    return found
