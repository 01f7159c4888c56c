"""Strangers' measurements: whatever a record holds, it is refused where it is read, or its table is made."""

import json
import re

import pytest

from experiments.common.errors import UserError
from experiments.configs.tables import ROOT, TABLES
from experiments.measure.cost.benchmark_records import read_benchmark
from experiments.measure.cost.benchmark_report import step_table
from experiments.measure.flatness.figures import point_table
from experiments.measure.flatness.landscape_figures import landscape_table
from experiments.measure.flatness.records import read_point, read_slices

RESULTS = ROOT / "experiments" / "results"
WRONG = (..., None, "x", True, 0, -1.5, [], {}, [0], ["x"], {"acting": 1}, {"acting": [None]})
COMPILED = {"temporary_bytes": 3, "state_bytes": 0, "compile_seconds": 1.5}
SGD = {
    **{"network": "vit", "library": "jax", "case": "SGD", "intervals": [1], "flops": {"acting": 1.0}},
    **{"seconds": {"acting": [1.0, 1.1]}, **COMPILED},
}
GAM = SGD | {
    **{"case": "GAM", "intervals": [1, 2], "flops": {"acting": 6.0, "skipped": 1.0}},
    "seconds": {"acting": [6.0, 6.1], "skipped": [1.0, 1.2]},
}
TORCH = {name: value for name, value in (SGD | {"library": "torch"}).items() if name not in COMPILED}
RECORDS = [SGD, GAM, TORCH]


def paths(tree, *above):
    """The paths of all values within objects."""
    for name, value in tree.items():
        yield (*above, name)
        if isinstance(value, dict):
            yield from paths(value, *above, name)


def put(tree, path, value):
    """A copy in which that lies there; ... removes it."""
    copy = json.loads(json.dumps(tree))
    *path, last = path
    place = copy
    for name in path:
        place = place[name]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return copy


def benchmark(folder, records=RECORDS):
    (folder / "benchmark.json").write_text(json.dumps({"records": records}))
    return read_benchmark(folder)


def test_a_benchmark_is_read_as_it_is(tmp_path):
    assert benchmark(tmp_path)["records"] == RECORDS
    untimed = [record | {"seconds": {}} for record in RECORDS]
    assert "GAM" in step_table([benchmark(tmp_path, untimed)])


@pytest.mark.parametrize("number", range(3))
def test_whatever_a_benchmark_holds_is_refused_or_shown(tmp_path, number):
    refused = 0
    for path in paths(RECORDS[number]):
        for value in WRONG:
            records = [*RECORDS]
            records[number] = put(RECORDS[number], path, value)
            try:
                found = benchmark(tmp_path, records)
            except UserError as error:
                assert re.search(r"benchmark.json, record \d, has .*", str(error)) and "\n" not in str(error)
                refused += 1
            else:
                step_table([found])
    assert refused > 60


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("flops", "skipped"), ..., "record 1, has no 'flops.skipped', expected a number above 0"),
        (("seconds", "acting"), [1.0], "has seconds.acting = [1.0], expected a list of 2, each a number above 0"),
        (("intervals",), [0], "has intervals = [0], expected a list of some, each an integer above 0"),
        (("library",), "numpy", "has library = 'numpy', expected 'jax' or 'torch' or 'torch.compile'"),
        (("compile_seconds",), "3", "has compile_seconds = '3', expected a number above 0"),
    ],
)
def test_the_error_names_record_field_and_value(tmp_path, path, value, message):
    with pytest.raises(UserError, match=re.escape(message)):
        benchmark(tmp_path, [SGD, put(GAM, path, value)])


@pytest.mark.parametrize("records", [None, [], {}, "x", [1]])
def test_a_benchmark_without_records_is_refused(tmp_path, records):
    with pytest.raises(UserError, match="benchmark.json.* has .*expected"):
        benchmark(tmp_path, records)


def test_whatever_a_measured_checkpoint_holds_is_refused_or_shown(tmp_path):
    (name,) = TABLES["minima"].records
    result = json.loads((RESULTS / name / "gam-160-flatness.json").read_text())
    used = ("name", "step", "config", "optim", "method", "averaging", "point", "loss", "trace", "value")
    used += ("local_minima", "mean_minima", "top_eigenvalues", "values", "checkpoint", "measured")
    refused, path = 0, tmp_path / "gam-160-flatness.json"
    for place in (place for place in paths(result) if place[-1] in used):
        for value in WRONG:
            path.write_text(json.dumps(put(result, place, value)))
            try:
                found = read_point(path)
            except UserError as error:
                assert f"{path} has " in str(error) and "\n" not in str(error)
                refused += 1
            else:
                point_table([found])
    assert refused > 100


def test_whatever_slices_hold_is_refused_or_shown(tmp_path):
    checkpoint = {"name": "gam-8", "step": 8, "config": {"optim": {"method": "gam"}, "averaging": "none"}}
    lines = {f"line {i}": {"x": [-1.0, 0.0, 1.0], "values": [2.0 + i, 1.0, 2.0]} for i in range(2)}
    result = {"checkpoint": checkpoint, "settings": {"points": 3}, "measured": lines}
    refused, path = 0, tmp_path / "gam-8-landscape.json"
    for place in paths(result):
        for value in WRONG:
            path.write_text(json.dumps(put(result, place, value)))
            try:
                found = read_slices(path)
            except UserError as error:
                assert f"{path} has " in str(error) and "\n" not in str(error)
                refused += 1
            else:
                landscape_table([found])
    assert refused > 100
    path.write_text(json.dumps(result))
    assert "| GAM | 1.000         | 1.250 ± 0.250      |" in landscape_table([read_slices(path)])
