"""The tables of results that pages show, a row for each: how it is made, of which records, and what made those.

A page has them between two lines, ``<!-- table: NAME -->`` and ``<!-- end of table -->``.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from experiments.common.errors import UserError, nearest, require
from experiments.common.markdown import Block, blocks
from experiments.common.store import read_records
from experiments.few_shot.report import result_table as few_shot_table
from experiments.few_shot.study import read_study as read_few_shot
from experiments.measure.cost.aot_grid_report import table as grid_table
from experiments.measure.cost.benchmark_records import read_benchmark
from experiments.measure.cost.benchmark_report import step_table
from experiments.measure.flatness.figures import point_table
from experiments.measure.flatness.landscape_figures import landscape_table
from experiments.measure.flatness.records import read_point, read_slices
from experiments.measure.instances import figures as instances
from experiments.study.report.choices import strength_table
from experiments.study.report.claims import paper_table
from experiments.study.report.evidence import PAPER, gain_table
from experiments.study.report.study import Study, read_study, tasks
from experiments.study.report.tables import result_table, saving_table

ROOT = Path(__file__).parents[2]
"""Of the repository."""
_RESULTS = Path("experiments", "results")


class Table(NamedTuple):
    """A table of results.

    Attributes:
      make: from the folders of its records to Markdown.
      records: these folders, below ``experiments/results``.
      command: what made the records.
    """

    make: Callable[..., str]
    records: tuple[str, ...]
    command: str


def _digits(folder: Path) -> str:
    study = read_study(folder)
    return result_table(study)


def _recipes(folder: Path) -> str:
    study = read_study(folder)
    return saving_table(study)


def _steps(*folders: Path) -> str:
    return step_table([read_benchmark(folder) for folder in folders])


def _grid(folder: Path) -> str:
    return grid_table(read_records(folder / "aot.jsonl"))


_MINIMA = ("plain-160", "sam-160", "gam-160", "sam+gam-160")


def _minima(folder: Path) -> str:
    return point_table([read_point(folder / f"{run}-flatness.json") for run in _MINIMA])


def _slices(folder: Path) -> str:
    return landscape_table([read_slices(folder / f"{run}-landscape.json") for run in _MINIMA])


def _studies(folder: Path) -> list[Study]:
    found = [read_study(path.parent) for path in sorted(folder.glob("*/config.json"))]
    require(len(found) > 0, f"there is no study in {folder}, expected some */config.json")
    return found


_COMPARE = "compare --config STUDY --workdir experiments/results/studies/STUDY"
TABLES = {
    "digits": Table(_digits, ("digits",), "compare --config digits"),
    "steps": Table(
        _steps,
        ("benchmark_vit", "benchmark_resnet"),
        "benchmark --networks NETWORK --workdir experiments/results/benchmark_NETWORK",
    ),
    "recipes": Table(_recipes, ("studies/digits_recipes",), _COMPARE.replace("STUDY", "digits_recipes")),
    "strengths": Table(lambda folder: strength_table(tasks(_studies(folder))), ("studies",), _COMPARE),
    "gains": Table(lambda folder: gain_table(tasks(_studies(folder)), PAPER), ("studies",), _COMPARE),
    "claims": Table(lambda folder: paper_table(_studies(folder)), ("studies",), _COMPARE),
    "grid": Table(
        _grid, ("aot_grid",), "aot-grid --networks NETWORKS --topologies SLICES --workdir experiments/results/aot_grid"
    ),
    "instances": Table(
        lambda folder: instances.table(instances.read(folder)),
        ("instances",),
        "instances --output experiments/results/instances",
    ),
    "few_shot": Table(
        lambda folder: few_shot_table(*read_few_shot(folder)),
        ("few_shot_digits",),
        "few-shot --workdir experiments/results/few_shot_digits",
    ),
    "minima": Table(
        _minima,
        ("digits_cnn_minima",),
        "flatness --checkpoint RUNS --output experiments/results/digits_cnn_minima --k 10 --restarts 2 "
        "--rho 0.02 0.05 0.1 0.2 --ascent-steps 30 --density-probes 2",
    ),
    "slices": Table(
        _slices,
        ("digits_cnn_minima",),
        "landscape --checkpoint RUNS --output experiments/results/digits_cnn_minima",
    ),
}
"""All tables, by the name that stands in the pages."""


def pages() -> list[Path]:
    """The Markdown files that may show results."""
    return [path for places in ("*.md", "experiments/*.md", "docs/*.md") for path in sorted(ROOT.glob(places))]


def content(name: str) -> tuple[str, ...]:
    """The lines that belong between the two lines of a table: the table, its records, and their command.

    Raises:
      UserError: if there is no such table, or no record of it.
    """
    if name not in TABLES:
        raise UserError(f"there is no table {name!r}{nearest(name, TABLES)}")
    table = TABLES[name]
    command = f"`python -m experiments.main {table.command}`"
    try:
        made = table.make(*(ROOT / _RESULTS / record for record in table.records))
    except UserError as error:
        raise UserError(f"table {name!r} needs the records of {command}: {error}") from error
    records = ", ".join(f"`{_RESULTS / record}`" for record in table.records)
    return ("", *made.split("\n"), "", f"Made from {records}, records of {command}.", "")


def outdated(text: str, page: str) -> dict[Block, tuple[str, ...]]:
    """The tables of a page that are not what their records say, with the lines that belong there.

    Raises:
      UserError: with page and line, if a table is unknown, has no end, or no record.
    """
    found = {}
    for block in blocks(text, page):
        try:
            expected = content(block.name)
        except UserError as error:
            raise UserError(f"{page}, line {block.first}: {error}") from error
        if block.content != expected:
            found[block] = expected
    return found
