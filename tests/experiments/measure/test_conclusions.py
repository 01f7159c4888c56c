"""The last sentence of each measurement, of records that are kept."""

from pathlib import Path

import pytest

from experiments.common.store import read_json
from experiments.measure.cost import aot_report, benchmark_report
from experiments.measure.flatness.conclusions import flatness_conclusion, landscape_conclusion

RESULTS = Path(__file__).parents[3] / "experiments" / "results"


def test_benchmark():
    results = read_json(RESULTS / "benchmark_vit" / "benchmark.json")
    assert benchmark_report.conclusion(results, "vit") == (
        "vit: a step of GAM takes 4.2 times SGD's time and 6.7 times SGD's FLOPs"
    )
    untimed = results | {"records": [r | {"seconds": {}} for r in results["records"] if r["case"] in ("SGD", "SAM")]}
    assert benchmark_report.conclusion(untimed, "vit") == "vit: a step of SAM takes 2.0 times SGD's FLOPs"


def test_aot():
    results = read_json(RESULTS / "aot" / "imagenet_vit_b32-v5e-4x4.json")
    ways = len(results["records"])
    assert aot_report.conclusion(results) == (
        f"imagenet_vit_b32 fits v5e:4x4 in all {ways} ways; GAM needs the most memory, 42% of a chip's"
    )


@pytest.fixture
def minima():
    return [read_json(RESULTS / "digits_cnn_minima" / f"{run}-160-flatness.json") for run in ("plain", "sam", "gam")]


def test_flatness(minima):
    values = [result["measured"]["top_eigenvalues"]["values"][0] for result in minima]
    least = ("SGD", "SAM", "GAM")[values.index(min(values))]
    assert flatness_conclusion(minima) == (
        f"By the top Hessian eigenvalue {least} is the flattest of 3 networks, {min(values):.3g}; "
        f"SGD has {max(values):.3g}"
    )
    assert flatness_conclusion(minima[:1]) == f"SGD: top Hessian eigenvalue {values[0]:.3g}"


def test_landscape(minima):
    lines = [{"line 0": {"x": [-1.0, 0.0, 1.0], "values": [rise, 1.0, 1.0]}} for rise in (5.0, 2.0, 3.0)]
    results = [result | {"measured": line} for result, line in zip(minima, lines, strict=True)]
    assert landscape_conclusion(results) == (
        "By the mean rise of the loss along a line SAM is the flattest of 3 networks, 0.5; SGD has 2"
    )
