"""Finished studies, read again from their folders: what tables and pictures over several of them are made of."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.compare import plan
from experiments.config import CompareConfig, require
from experiments.store import Record, key, read_json, read_records
from experiments.summary import Estimate, Row, summarize, values
from experiments.tables import measures


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

    def mean(self, noise: float, method: str, measure: str) -> float:
        """A measure of flatness (see :func:`experiments.tables.measures`) at the end; NaN if it was not taken."""
        path = measures(self.config, "end").get(measure)
        return math.nan if path is None else Estimate.of(values(self.records, noise, method, *path)).mean


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
      UserError: if it is none, or not finished.
    """
    identity = read_json(folder / "config.json")
    require("grid" in identity.get("config", {}), f"{folder} holds no study")
    config, records = CompareConfig.of(folder, identity["config"]), read_records(folder / "results.jsonl")
    there = {key(record) for record in records}
    missing = [task for task in plan(config) if key(task) not in there]
    require(not missing, f"{folder} is not finished: {len(missing)} runs are missing, the first is {missing[:1]}")
    return study_of(config, records, identity["made_with"])


def tasks(studies: Sequence[Study]) -> list[Task]:
    """All tasks in order."""
    return [Task(study, noise) for study in studies for noise in study.config.noise]
