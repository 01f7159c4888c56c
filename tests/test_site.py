"""The pages: every public name has its place, every link leads somewhere, every page is found from the first."""

import pathlib
import re

import pytest

import gam_jax
from gam_jax import flatness

ROOT = pathlib.Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "experiments" / "README.md", *DOCS]
LINK = r"!?\[[^\]]*\]\((?!https?://)([^)#]*)(#[^)]*)?\)"


def anchors(path):
    """Those of the headings, as GitHub and the site make them."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    for target, anchor in re.findall(LINK, path.read_text()):
        found = (path.parent / target).resolve() if target else path
        assert found.exists(), target
        if anchor:
            assert anchor[1:] in anchors(found), f"{target}{anchor}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_reports_are_linked(path):
    """What a page quotes can be opened from it."""
    assert re.findall(r"`experiments/results/[^`]*\.(?:md|png)`", path.read_text()) == []


def test_every_report_is_listed():
    listed = re.findall(r"<reports/(.*)>", (ROOT / "docs" / "reports.md").read_text())
    results = ROOT / "experiments" / "results"
    assert sorted(listed) == sorted(str(path.relative_to(results).with_suffix("")) for path in results.rglob("*.md"))


def test_every_public_name_is_on_the_page_of_the_api():
    text = (ROOT / "docs" / "api.md").read_text()
    for room in (gam_jax, flatness):
        missing = [name for name in room.__all__ if not re.search(rf"{room.__name__}\.{name}\b", text)]
        assert missing == []


def test_every_page_is_found_from_the_first():
    first = (ROOT / "docs" / "index.md").read_text()
    listed = [line for block in re.findall(r"```{toctree}\n(.*?)```", first, re.S) for line in block.split("\n")]
    assert {path.stem for path in DOCS} - {"index"} <= set(listed)


def test_the_first_screen_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130
    assert len((ROOT / "experiments" / "README.md").read_text().splitlines()) <= 80
