"""A whole comparison, small: reproducible, resumable after any kill, and reported as recorded."""

import csv
import dataclasses
import json
import math
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from experiments.configs import load
from experiments.main import main
from experiments.store import key
from experiments.summary import difference, summarize

ROOT = Path(__file__).parents[2]
SMALL = [
    *("compare", "--config", "digits", "--epochs", "2", "--data.train-size", "40", "--batch-size", "20"),
    *("--hidden", "8", "--trials", "3", "--tuning-seeds", "2", "--seeds", "3"),
]
SMALLER = [*SMALL, "--methods", "plain", "sam", "--noise", "0.3"]
FINAL = ["noise", "method", "seed", "test_accuracy", "train_accuracy", "train_loss", "top_eigenvalue"]


def records(workdir):
    return [json.loads(line) for line in (workdir / "results.jsonl").read_text().splitlines()]


def numbers(workdir):
    """The records without what a clock decides, in order."""
    return [
        {name: value for name, value in record.items() if name != "seconds"}
        for record in records(workdir)
        if record["kind"] != "session"
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A comparison of all four methods, and what it printed."""
    workdir = tmp_path_factory.mktemp("finished")
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *args, **_: printed.append(" ".join(map(str, args))))
        assert main([*SMALL, "--workdir", str(workdir)]) == 0
    return workdir, "\n".join(printed)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    assert main([*SMALLER, "--workdir", str(workdir)]) == 0
    return workdir


def test_every_method_has_the_same_budget(finished):
    tried = Counter()
    for record in records(finished[0]):
        if record["kind"] == "tune":
            assert record["seed"] >= 1000
            assert not any("test" in name for name in record)
            tried[record["noise"], record["method"], json.dumps(record["hyperparameters"])] += 1
    assert set(tried.values()) == {2}
    assert Counter(case[:2] for case in tried) == {(n, m): 3 for n in (0.0, 0.3) for m in load("digits").methods}


def test_final_runs_use_the_best_trial_and_every_seed(finished):
    everything = records(finished[0])
    assert len({key(record) for record in everything}) == len(everything)
    for noise in (0.0, 0.3):
        for method in load("digits").methods:
            mine = [r for r in everything if (r.get("noise"), r["method"] if "method" in r else 0) == (noise, method)]
            scores = {}
            for record in mine:
                if record["kind"] == "tune":
                    chosen = json.dumps(record["hyperparameters"])
                    scores.setdefault(chosen, []).append(record["validation_accuracy"])
            final = [record for record in mine if record["kind"] == "test"]
            assert [record["seed"] for record in final] == [0, 1, 2]
            (used,) = {json.dumps(record["hyperparameters"]) for record in final}
            assert np.mean(scores[used]) == max(map(np.mean, scores.values()))


def test_csv_holds_the_recorded_numbers(finished):
    workdir, _ = finished
    with (workdir / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    final = [record for record in records(workdir) if record["kind"] == "test"]
    assert len(rows) == len(final) == 2 * 4 * 3
    recorded = {tuple(str(record[name]) for name in FINAL): record["hyperparameters"] for record in final}
    for row in rows:
        hyperparameters = recorded[tuple(row[name] for name in FINAL)]
        tuned = {name: float(value) for name, value in row.items() if name not in FINAL and value}
        assert tuned == hyperparameters


def test_table_and_report_hold_the_recorded_numbers(finished):
    workdir, printed = finished
    report = (workdir / "report.md").read_text()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line[0] == "|"]
    labels = {"SGD": "plain", "SAM": "sam", "GAM": "gam", "SAM + GAM": "sam+gam"}
    everything = records(workdir)
    flops = {record["method"]: record["flops_per_step"] for record in everything if record["kind"] == "cost"}
    final = [record for record in everything if record["kind"] == "test"]
    assert len(cells) == 2 + 2 * 4
    for line in printed.splitlines()[: len(cells)]:
        assert line in report
    for noise, label, accuracy, gain, loss, eigenvalue, time, flop in cells[2:]:
        mine, sgd = (
            {
                r["seed"]: r
                for r in everything
                if r["kind"] == "test" and r["method"] == m and f"{r['noise']:.0%}" == noise
            }
            for m in (labels[label], "plain")
        )

        def expected(values, form):
            spread = math.sqrt(sum((v - np.mean(values)) ** 2 for v in values) / (len(values) - 1))
            return f"{np.mean(values):{form}} ± {spread / math.sqrt(len(values)):{form.lstrip('+')}}"

        assert accuracy == expected([100 * r["test_accuracy"] for r in mine.values()], ".2f")
        assert loss == expected([r["train_loss"] for r in mine.values()], ".3f")
        assert eigenvalue == expected([r["top_eigenvalue"] for r in mine.values()], ".2f")
        gains = [100 * (mine[s]["test_accuracy"] - sgd[s]["test_accuracy"]) for s in mine]
        assert gain == ("" if label == "SGD" else expected(gains, "+.2f"))
        ratios = [
            a["seconds"] / b["seconds"]
            for a in final
            for b in final
            if (a["method"], b["method"]) == (labels[label], "plain")
            and (a["noise"], a["seed"]) == (b["noise"], b["seed"])
        ]
        assert time == f"{np.median(ratios):.1f} x"
        assert flop == f"{flops[labels[label]] / flops['plain']:.2f} x"


def test_report_says_what_a_sceptic_asks(finished):
    report = (finished[0] / "report.md").read_text()
    session = records(finished[0])[0]
    for fact in (
        *("demonstration at small scale", "3 seeds (0 to 2)", "2 seeds (1000 to 1001)", "3 of 25", "3 of 1200"),
        *(session["hardware"], session["command"], session["started"], "jax 0.", "test set played no part"),
    ):
        assert fact in report
    assert report.count("- SGD |") + report.count("- SGD  ") == 2 * 3  # each method against SGD, at each noise level
    assert (finished[0] / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_costs_are_those_of_the_methods(finished):
    costs = {r["method"]: r["flops_per_step"] for r in records(finished[0]) if r["kind"] == "cost"}
    gradients = [costs[method] / costs["plain"] for method in load("digits").methods]
    assert gradients[0] == 1 and 1.5 < gradients[1] < 3 < gradients[2] < gradients[3]


def test_a_finished_run_prints_the_same_at_once(finished, capsys, monkeypatch):
    monkeypatch.setattr("experiments.fit.Trainer.fit", lambda *_: pytest.fail("trained again"))
    before = (finished[0] / "results.jsonl").read_bytes()
    assert main([*SMALL, "--workdir", str(finished[0])]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == finished[1].strip()
    assert printed.err == ""  # no progress bar, as this is no terminal
    assert (finished[0] / "results.jsonl").read_bytes() == before


def test_same_seeds_give_the_same_numbers(uninterrupted, tmp_path):
    assert main([*SMALLER, "--workdir", str(tmp_path)]) == 0
    assert numbers(tmp_path) == numbers(uninterrupted)
    assert (tmp_path / "results.csv").read_bytes() == (uninterrupted / "results.csv").read_bytes()


DIE = """
import os, signal, sys
from experiments import main, store
write, left = os.write, int(sys.argv[2])
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests themselves run in the background

def interrupted(descriptor, line):
    global left
    left -= 1
    if left == 0:
        cut = len(line) // 2 if sys.argv[1] == "SIGKILL" else len(line)
        write(descriptor, line[:cut])
        os.kill(os.getpid(), signal.Signals[sys.argv[1]])
        return cut
    return write(descriptor, line)

store.os.write = interrupted
sys.exit(main.main(sys.argv[3:]))
"""


@pytest.mark.parametrize("signal_name, line", [("SIGKILL", 7), ("SIGINT", 16)])
def test_a_killed_run_goes_on_and_ends_in_the_same_file(uninterrupted, tmp_path, signal_name, line):
    """SIGKILL comes in the middle of a line of the tuning, SIGINT behind one of the final runs."""
    command = [*SMALLER, "--workdir", str(tmp_path)]
    died = subprocess.run(
        [sys.executable, "-c", DIE, signal_name, str(line), *command], cwd=ROOT, capture_output=True, text=True
    )
    assert died.returncode == (-signal.SIGKILL if signal_name == "SIGKILL" else 130)
    assert "Traceback" not in died.stderr
    assert not (tmp_path / "results.csv").exists()
    kept = (tmp_path / "results.jsonl").read_bytes().rpartition(b"\n")[0]
    assert kept.count(b"\n") == line - (2 if signal_name == "SIGKILL" else 1)

    assert main(command) == 0
    assert (tmp_path / "results.jsonl").read_bytes().startswith(kept)
    assert numbers(tmp_path) == numbers(uninterrupted)
    assert (tmp_path / "results.csv").read_bytes() == (uninterrupted / "results.csv").read_bytes()
    assert (tmp_path / "report.md").read_text().count("- Command, ") == 2


def test_another_config_in_the_same_folder_is_refused(uninterrupted, capsys):
    before = (uninterrupted / "results.jsonl").read_bytes()
    assert main([*SMALLER, "--workdir", str(uninterrupted), "--seeds", "5"]) == 2
    assert "config.seeds: 3 there, 5 now" in capsys.readouterr().err
    assert (uninterrupted / "results.jsonl").read_bytes() == before


def test_a_diverged_run_is_shown_as_nan_and_pairs_are_by_seed():
    config = dataclasses.replace(load("digits"), methods=("plain", "gam"), noise=(0.0,))
    runs = [
        {
            **{"kind": "test", "noise": 0.0, "method": method, "seed": seed, "seconds": 1.0, "train_loss": loss},
            **{"test_accuracy": 0.5 + 0.01 * seed, "top_eigenvalue": 2.0},
        }
        for method, loss, seeds in (("plain", 0.5, (1, 0)), ("gam", None, (0, 1)))
        for seed in seeds
    ]
    costs = [{"kind": "cost", "method": method, "flops_per_step": cost} for method, cost in (("plain", 2), ("gam", 12))]
    sgd, gam = summarize(config, [*runs, *costs])
    assert sgd.train_loss.mean == 0.5 and math.isnan(gam.train_loss.mean)
    assert gam.flop_ratio == 6 and gam.gain == difference(runs, 0.0, "gam", "plain")
    assert (gam.gain.estimate.mean, gam.gain.wins, gam.gain.losses) == (0.0, 0, 0)
