"""A grid of steps for TPU slices, with the CPU's compiler in the place of the TPU's: resumable, and reported."""

import json

import jax
import pytest

from experiments.main import main
from experiments.measure.cost import aot_grid, aot_grid_report, chips
from experiments.measure.cost.config import AotGridConfig

CHIP = chips.Chip(flops=1e12, memory_bytes=1e9, memory_bandwidth=1e11, network_bandwidth=1e10)
COMMAND = "aot-grid --config digits --networks mlp --topologies v5e:2x4 --images 2 --methods plain sam".split()


@pytest.fixture(autouse=True)
def _cpu_for_tpu(monkeypatch):
    monkeypatch.setattr(aot_grid, "describe", lambda topology: (jax.devices(), CHIP))
    monkeypatch.setattr(aot_grid, "version", lambda name: "0")


@pytest.fixture
def compiled(monkeypatch):
    """The cells that are compiled, in order."""
    found, measure = [], aot_grid.measure_cell
    monkeypatch.setattr(aot_grid, "measure_cell", lambda *args: (found.append(args[-1]), measure(*args))[1])
    return found


def records(folder):
    return [json.loads(line) for line in (folder / "aot.jsonl").read_text().splitlines()]


def test_the_first_list_changes_slowest():
    config = AotGridConfig(networks=("vit_b32", "vit_l16"), topologies=("v5e:4x4",), images=(16, 64), methods=("sam",))
    where = [(cell.network, cell.images) for cell in aot_grid.cells(config)]
    assert where == [("vit_b32", 16), ("vit_b32", 64), ("vit_l16", 16), ("vit_l16", 64)]


def test_a_grid_goes_on_where_it_stopped_and_grows(tmp_path, compiled, monkeypatch, capsys):
    command = [*COMMAND, "--workdir", str(tmp_path)]
    with monkeypatch.context() as stopping:
        measure = aot_grid.measure_cell

        def stop(config, load_train, cell):
            if cell.method == "sam":
                raise KeyboardInterrupt
            return measure(config, load_train, cell)

        stopping.setattr(aot_grid, "measure_cell", stop)
        assert main(command) == 130
    assert [record["method"] for record in records(tmp_path)] == ["plain"]
    assert main(command) == 0
    assert [cell.method for cell in compiled] == ["plain", "sam"]
    assert main([*command, "--fsdp", "1", "8"]) == 0
    assert [(cell.method, cell.fsdp) for cell in compiled[2:]] == [("plain", 8), ("sam", 8)]
    found = records(tmp_path)
    assert len(found) == 4 and all(record["batch_size"] == 16 and record["chips"] == 8 for record in found)
    assert found[1]["flops"] == pytest.approx(2 * found[0]["flops"], rel=0.05)
    assert found[0]["made_with"]["command"].endswith(f"--workdir {tmp_path}")
    assert capsys.readouterr().out.count("mlp, v5e:2x4, 2 images a chip, fsdp=8, SAM: ") == 1
    report = (tmp_path / "aot.md").read_text()
    assert report.count("| mlp ") == 4 and report.count("divided among 8") == 2 and "197 TFLOP/s" in report


def test_a_folder_holds_grids_of_one_config(tmp_path, compiled, capsys):
    command = [*COMMAND, "--workdir", str(tmp_path), "--methods", "plain"]
    assert main(command) == 0
    assert main([*command, "--hvp", "jvp"]) == 2
    assert "hvp: linearize there, jvp now" in capsys.readouterr().err and len(compiled) == 1


def record(**changes):
    seconds = {"compute": 2e-3, "memory": 5e-3, "network": 1e-3}
    steps = {"overlapped": max(seconds.values()), "in_turn": sum(seconds.values())}
    cell = aot_grid.Cell("vit_b32", "v6e:16x16", 64, "gam", 1)._asdict()
    return {
        **cell,
        "base": "adamw",
        "chips": 256,
        "parts": 1,
        "fits": True,
        "flops": 1.5e12,
        "memory_traffic_bytes": 2.5e9,
        "memory": {"peak": 4e9, "available": 8e9},
        "collectives": {"all-reduce": {"calls": 3, "wire_bytes": 7e9}},
        "seconds": seconds,
        "step_seconds": steps,
        "trace_seconds": 2.0,
        "compile_seconds": 61.0,
    } | changes


def test_the_row_of_a_cell():
    row = [cell.strip() for cell in aot_grid_report.table([record()]).splitlines()[2].split("|")[1:-1]]
    assert row == (
        "vit_b32,v6e:16x16,64,GAM,on every chip,1.50,4.00,50%,2.5,7.00,3 all-reduce,2.0,5.0,1.0,5.0 to 8.0,25% to 40%,"
        "2 + 61 s"
    ).split(",")
    assert "fsdp=1, AdamW: " in aot_grid_report.line(record(method="plain"))
    assert aot_grid_report.line(record()).endswith("GAM: 1.50 TFLOP, 50% of HBM, step 5.0 to 8.0 ms, compiled in 63 s")


def test_what_does_not_fit_is_a_row():
    large = record(fits=False, memory={"peak": 16e9, "available": 8e9})
    never_compiled = {
        name: large[name] for name in (*aot_grid.CELL, "base", "chips", "fits", "memory", "trace_seconds")
    }
    for one in (large, never_compiled):
        assert "| does not fit: 200% |" in aot_grid_report.table([one])
    assert aot_grid_report.line(never_compiled).endswith("GAM: does not fit: 200% of HBM")


def test_rows_are_sorted_by_network_slice_batch_and_method():
    cells = [("sam", 128, "v5e:4x4", 16), ("gam", 16, "v6e:4x4", 16), ("plain", 16, "v5e:16x16", 256)]
    cells += [("gam", 16, "v5e:4x4", 16), ("plain", 16, "v5e:4x4", 16)]
    rows = [record(method=m, images=images, topology=t, chips=chips) for m, images, t, chips in cells]
    table = aot_grid_report.table(rows).splitlines()[2:]
    found = [tuple(cell.strip() for cell in row.split("|")[2:5]) for row in table]
    assert found == [
        ("v5e:4x4", "16", "AdamW"),
        ("v5e:4x4", "16", "GAM"),
        ("v5e:4x4", "128", "SAM"),
        ("v5e:16x16", "16", "AdamW"),
        ("v6e:4x4", "16", "GAM"),
    ]
