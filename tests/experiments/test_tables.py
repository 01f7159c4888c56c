"""The tables of results that the pages show are those of the records."""

import functools
import itertools
import re
import subprocess

import pytest

from experiments.common.markdown import blocks
from experiments.configs.tables import ROOT, TABLES, content, pages
from experiments.main import main
from experiments.study.report.tables import _options
from tests.experiments.train.runs import refused

PAGES = [path.relative_to(ROOT).as_posix() for path in pages()]
NOT_OURS = (
    "| study | task | methods | noise |",  # what is to be run
    "| config | augmentation | CIFAR-10: SGD |",  # the paper's numbers
    "| config | base optimizer | top-1: base |",
    "| config | EfficientNet-B0: SGD |",
    "| wish | chain |",  # options
    "| Python | JAX | optax |",  # versions
)
"""How tables begin that hold numbers, but no results of ours."""
NO_RECORD = (
    "| last epoch: test accuracy |",
    "| method | test accuracy | images/s |",
    "| run       | training loss |",
    "| ρ    | R0 SGD |",
    "| step | images a chip | tracing |",
)
"""How tables begin whose records were not kept; docs/results.md says so of each."""


def read(page):
    return (ROOT / page).read_text()


def shown(page):
    """The names of the tables of a page."""
    return [block.name for block in blocks(read(page), page)]


def outside(page):
    """The tables that stand in no block, as text."""
    lines = read(page).split("\n")
    for block in blocks(read(page), page):
        lines[block.first : block.last] = [""] * (block.last - block.first)
    groups = itertools.groupby(lines, lambda line: line.startswith("|"))
    return ["\n".join(rows) for is_table, rows in groups if is_table]


@pytest.fixture
def page(tmp_path):
    """A page that shows one table, as it should be."""
    path = tmp_path / "page.md"
    path.write_text("# Title\n\n<!-- table: steps -->\n<!-- end of table -->\n\nThe end.\n")
    assert main(["tables", "--pages", str(path)]) == 0
    return path


def test_every_table_is_what_its_records_say(capsys):
    assert main(["tables", "--check"]) == 0, capsys.readouterr().err


def test_every_page_with_a_table_is_looked_at():
    tracked = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {page for page in tracked.stdout.split() if shown(page)} <= {*PAGES}


def test_every_table_is_shown_somewhere():
    assert {name for page in PAGES for name in shown(page)} == TABLES.keys()


@pytest.mark.parametrize("page", PAGES)
def test_numbers_stand_in_tables_made_from_records(page):
    """But for those that are no results, and those whose records were not kept."""
    unknown = [table for table in outside(page) if re.search(r"\d\.\d|±|\d ?%", table)]
    assert [table for table in unknown if not table.startswith(NOT_OURS + NO_RECORD)] == []


def test_a_table_without_a_record_is_still_there():
    """Else its row above is to be removed, lest it excuse another one."""
    every = [table for page in PAGES for table in outside(page)]
    assert [start for start in NOT_OURS + NO_RECORD if sum(table.startswith(start) for table in every) != 1] == []


def test_a_block_has_the_table_its_records_and_their_command(page):
    text = page.read_text()
    assert text.startswith("# Title\n\n<!-- table: steps -->\n\n| step ") and text.endswith("\n\nThe end.\n")
    assert "\n\nMade from `experiments/results/benchmark_vit`, `experiments/results/benchmark_resnet`, records" in text
    assert "`python -m experiments.main benchmark --networks" in text


def test_a_changed_digit_is_noticed_and_written_anew(page, capsys):
    right = page.read_text()
    page.write_text(right.replace("4.25 (3.62", "4.26 (3.62"))
    said = refused(capsys, "tables", "--check", "--pages", str(page))
    assert re.search(
        r"page.md, line 3: table 'steps' differs.*4\.26.*expected.*4\.25.*experiments.main tables", said, re.S
    )
    assert page.read_text() != right
    assert main(["tables", "--pages", str(page)]) == 0 and "line 3: table 'steps' changed" in capsys.readouterr().out
    assert page.read_text() == right
    assert main(["tables", "--pages", str(page)]) == 0 and "changed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "text, message",
    [
        ("<!-- table: step -->\n<!-- end of table -->", r"line 1: there is no table 'step': did you mean 'steps'\?"),
        ("\n<!-- table: steps -->\n| a |", "line 2: expected <!-- end of table --> after table 'steps', got the end"),
        ("<!-- table: steps -->\n<!-- table: gains -->", "after table 'steps', got <!-- table: gains --> in line 2"),
        ("a\n<!-- end of table -->", "line 2: expected <!-- table: NAME --> before it, got <!-- end of table -->"),
    ],
)
def test_a_wrong_page_is_refused(tmp_path, capsys, text, message):
    page = tmp_path / "page.md"
    page.write_text(text)
    assert re.search(message, refused(capsys, "tables", "--pages", str(page)))
    assert page.read_text() == text


def test_a_page_or_record_that_is_missing_is_named(tmp_path, page, monkeypatch, capsys):
    assert "cannot read" in refused(capsys, "tables", "--pages", str(tmp_path / "none.md"))
    monkeypatch.setattr("experiments.configs.tables.ROOT", tmp_path)
    said = refused(capsys, "tables", "--pages", str(page))
    assert re.search(r"page.md, line 3: table 'steps' needs the records of `python .*vit/benchmark.json is not", said)


def rows(text, *start):
    """The rows of tables as a dict from their first cell to the others by column, of tables whose header starts so."""
    found = {}
    for _, lines in itertools.groupby(text.split("\n"), lambda line: line.startswith("|")):
        header, *cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines] or [[]]
        if tuple(header[: len(start)]) == start:
            found |= {row[0]: dict(zip(header, row, strict=True)) for row in cells[1:]}
    return found


@functools.cache
def made(name):
    return "\n".join(content(name))


EVIDENCE = "experiments/results/evidence/evidence.md"


@pytest.mark.parametrize(
    "claim, pair",
    [
        ("GAM improves on its base optimizer", "GAM - base"),
        ("GAM improves on SAM", "GAM - SAM"),
        ("SAM + GAM is better than SAM", "SAM + GAM - SAM"),
        ("accelerated GAM is as good as GAM, for 4 gradients", "accelerated GAM - GAM"),
    ],
)
def test_the_claims_are_counted_as_in_the_report(claim, pair):
    one = rows(read(EVIDENCE), "methods", "tasks")[pair]
    counts = f"{one['clearly better']} of {one['tasks']} tasks, clearly worse on {one['clearly worse']}"
    said = f"clearly better on {counts}; {one['mean over tasks']} points in the mean"
    assert rows(made("claims"), "claim of the paper")[claim]["measured here"] == said


def test_flatness_and_correlations_are_those_of_the_report():
    claims = rows(made("claims"), "claim of the paper")
    gam = rows(read(EVIDENCE), "method", "R1 at 0.1")["GAM"]
    (said,) = [row["measured here"] for claim, row in claims.items() if "than those of the base" in claim]
    for measure in ("top eigenvalue", "R1 at 0.1"):
        ratio, flatter = re.fullmatch(r"(.*) \((.*)\)", gam[measure]).groups()
        assert f"{measure} {ratio} of theirs, less on {flatter} tasks" in said
    told = [row["measured here"] for row in claims.values() if "rank correlation" in row["measured here"]]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in read(EVIDENCE).split("\n")]
    gap = "test loss - training loss"
    for said, start in zip(told, ([gap, "together"], [gap, "within"], ["test error", "together"]), strict=True):
        values = [row[3].split()[0] for row in cells if row[:2] == start]
        assert re.findall(r"[-+]\d\.\d\d", said) == values and len(values) == 3


def test_strengths_are_those_of_the_report():
    report = rows(read(EVIDENCE), "GAM: gam_rho x gam_alpha")
    found = rows(made("strengths"), "task")
    assert found.keys() == report.keys()
    for task, row in found.items():
        tried = {value: cell for value, cell in report[task].items() if cell.endswith(")")}
        behind = {value: float(cell.split()[0].strip("*")) for value, cell in tried.items()}
        good = row["alpha x rho within a point of the best"].split(", ")
        larger = dict(entry.split(": ") for entry in row["larger: points behind"].split(", ") if entry)
        assert all(behind[value] >= -1 for value in good) and all(behind[v] == float(b) for v, b in larger.items())
        assert {value for value in behind if behind[value] > -1} <= {*good}
        assert {value for value in behind if float(value) > max(map(float, good))} == larger.keys()
        assert row["top eigenvalue"] == report[task]["top eigenvalue"]


def test_recipes_and_steps_are_those_of_their_reports():
    report = {
        line.split("|")[2].strip(): [cell.strip() for cell in line.split("|")]
        for line in read("experiments/results/studies/digits_recipes/report.md").split("\n")
        if line.startswith("| 30%") and " x " in line
    }
    recipes = rows(made("recipes"), "step", "options")
    assert {*report} - {*recipes} == {"SGD"}
    for name, row in recipes.items():
        *_, gain = row.values()
        assert gain == report[name][4] and f"{row['step FLOPs']} x" == report[name][-2]
    for network in ("vit", "resnet"):
        report = rows(read(f"experiments/results/benchmark_{network}/benchmark.md"), "method", "interval")
        steps = rows(made("steps"), "step")
        assert steps.keys() == report.keys()
        assert all(row[f"{network}: time"] == report[name]["time, acting"] for name, row in steps.items())


def test_options_are_said_as_code_and_defaults_are_not():
    options = {"interval": 4, "between": "hold", "max_ratio": 1.0, "curvature_share": 5}
    assert _options(options) == '`interval=4, between="hold", max_ratio=1.0, share=5`'
    assert _options({"interval": 2, "between": "skip", "max_ratio": None}) == "`interval=2`" and _options({}) == ""
