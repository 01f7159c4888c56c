"""The order of the rooms: no import climbs, none goes in a circle, and every path named as a string exists."""

import ast
import graphlib
import pathlib
import subprocess
import sys

import pytest

from experiments.common import provenance

ROOT = pathlib.Path(__file__).parents[2]
HOUSE = ROOT / "experiments"
FLOORS = "common | data models optim | train | measure study | few_shot | configs | commands | main"
FLOOR = {room: number for number, rooms in enumerate(FLOORS.split("|")) for room in rooms.split()}


def imported(path: pathlib.Path) -> set[str]:
    """The files that a file imports, wherever in it, as dotted names."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    names = {f"{node.module}.{alias.name}" for node in nodes for alias in node.names} | {node.module for node in nodes}
    return {
        name for name in names if (place := ROOT / name.replace(".", "/")).with_suffix(".py").exists() or place.is_dir()
    }


FILES = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in HOUSE.rglob("*.py")}
IMPORTS = {
    name: {other for other in imported(path) if other in FILES and other != name} for name, path in FILES.items()
}


def test_no_import_climbs():
    assert {name.split(".")[1] for name in FILES if "." in name} == {*FLOOR} and sum(map(len, IMPORTS.values())) > 300
    pairs = [
        (name.split(".")[1], other.split(".")[1]) for name, found in IMPORTS.items() for other in found if "." in other
    ]
    assert [(room, other) for room, other in pairs if room != other and FLOOR[other] >= FLOOR[room]] == []


def test_no_circle():
    packages = {name for name, path in FILES.items() if path.name == "__init__.py"}
    tuple(graphlib.TopologicalSorter({name: found - packages for name, found in IMPORTS.items()}).static_order())


def test_what_the_fingerprint_leaves_out_exists():
    assert [name for name in provenance.APART if not (HOUSE / name).exists()] == []


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("experiments.study.worker", ("jax", "numpy", "flax")),
        ("experiments.main", ("flax", "matplotlib", "tensorflow")),
    ],
)
def test_what_must_start_fast_imports_nothing_slow(module, absent):
    """The worker chooses its core before JAX counts the cores; the help need not wait for networks and pictures."""
    code = f"import sys, {module}; print([name for name in {absent} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert found.stdout == "[]\n"
