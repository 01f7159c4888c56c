"""What a package index shows of README.md: no link and no picture that it does not have."""

import pathlib
import re
import tomllib

ROOT = pathlib.Path(__file__).parents[1]
HOOK = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
README = (ROOT / "README.md").read_text()
LINK = r"(!?)\[[^\]]*\]\(([^)]*)\)"


def shown():
    """README.md as the build changes it."""
    text = "".join((ROOT / fragment["path"]).read_text() for fragment in HOOK["fragments"])
    for change in HOOK["substitutions"]:
        text = re.sub(change["pattern"], change["replacement"], text)
    return text


def test_links_lead_somewhere():
    relative = [target for _, target in re.findall(LINK, README) if not target.startswith("http")]
    assert relative and "https://" in shown()
    assert [target for _, target in re.findall(LINK, shown()) if not target.startswith("http")] == []


def test_nothing_else_changes():
    kept = [match.group(0) for match in re.finditer(LINK, README) if match.group(2).startswith("http")]
    assert [match.group(0) for match in re.finditer(LINK, shown())] == kept

    def words(text):
        return re.sub(LINK, lambda found: "" if found.group(1) else found.group(0)[1:].split("]")[0], text).split()

    assert words(shown()) == words(README)
