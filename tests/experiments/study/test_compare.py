"""A whole comparison, small, and its report: every method has the same budget, and all numbers are as recorded."""

import contextlib
import csv
import dataclasses
import json
import math
from collections import Counter

import numpy as np
import pytest

from experiments.configs import load
from experiments.main import main
from experiments.optim.methods import METHODS
from experiments.study import compare, pool, search
from experiments.study.plan import key
from experiments.study.report.statistics import Estimate, difference, summarize
from experiments.study.report.study import Study
from experiments.study.report.tables import chosen_table, edges, result_table
from tests.experiments.study.comparisons import SMALL, records

FINAL = ["noise", "method", "seed", "diverged", "test_accuracy", "test_loss", "train_accuracy", "train_loss"]
FINAL += ["generalization_gap"]
EIGENVALUES = ["half_eigenvalues_1", "end_eigenvalues_1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A comparison of all four methods, computed here, and what it printed."""
    workdir = tmp_path_factory.mktemp("finished")
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *args, file=None, **_: file or printed.append(" ".join(map(str, args))))
        patch.setattr(compare, "open_pool", lambda workers: contextlib.nullcontext(pool._Here()))
        assert main([*SMALL, "--workdir", str(workdir)]) == 0
    return workdir, "\n".join(printed)


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
            assert sorted(record["seed"] for record in final) == [0, 1, 2]
            (used,) = {json.dumps(record["hyperparameters"]) for record in final}
            assert np.mean(scores[used]) == max(map(np.mean, scores.values()))


def test_csv_holds_the_recorded_numbers(finished):
    workdir, _ = finished
    with (workdir / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    final = [record for record in records(workdir) if record["kind"] == "test"]
    assert len(rows) == len(final) == 2 * 4 * 3
    recorded = {tuple(str(record[name]) for name in FINAL): record for record in final}
    for row in rows:
        record = recorded[tuple(row[name] for name in FINAL)]
        assert [[float(row[name])] for name in EIGENVALUES] == [record[s]["eigenvalues"] for s in ("half", "end")]
        tuned = {name: float(value) for name, value in row.items() if name not in FINAL + EIGENVALUES and value}
        assert tuned == record["hyperparameters"]


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
    for noise, label, accuracy, gain, loss, eigenvalue, step_time, flop in cells[2:]:
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
        assert eigenvalue == expected([r["end"]["eigenvalues"][0] for r in mine.values()], ".2f")
        gains = [100 * (mine[s]["test_accuracy"] - sgd[s]["test_accuracy"]) for s in mine]
        assert gain == ("" if label == "SGD" else expected(gains, "+.2f"))
        ratios = [
            a["seconds"] / b["seconds"]
            for a in final
            for b in final
            if (a["method"], b["method"]) == (labels[label], "plain")
            and (a["noise"], a["seed"]) == (b["noise"], b["seed"])
        ]
        assert step_time == f"{np.median(ratios):.1f} x"
        assert flop == f"{flops[labels[label]] / flops['plain']:.2f} x"


def test_report_says_what_a_sceptic_asks(finished):
    report = (finished[0] / "report.md").read_text()
    session = records(finished[0])[0]
    for fact in (
        *("comparison at small scale", "3 seeds (0 to 2)", "2 seeds (1000 to 1001)", "3 of 25", "3 of 1200"),
        *(session["hardware"], session["command"], session["started"], "jax 0.", "test set played no part"),
        *("digits, mlp, sgd", "None of the 24 runs diverged", "hours of tuning", "value of its grid"),
    ):
        assert fact in report
    assert report.count("- SGD |") + report.count("- SGD  ") == 2 * 3  # each method against SGD, at each noise level
    assert (finished[0] / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_costs_are_those_of_the_methods(finished):
    costs = {r["method"]: r["flops_per_step"] for r in records(finished[0]) if r["kind"] == "cost"}
    gradients = [costs[method] / costs["plain"] for method in load("digits").methods]
    assert gradients[0] == 1 and 1.5 < gradients[1] < 3 < gradients[2] < gradients[3]


def test_a_finished_run_prints_the_same_at_once(finished, capsys, monkeypatch):
    monkeypatch.setattr(compare, "open_pool", lambda *_: pytest.fail("trained again"))
    before = (finished[0] / "results.jsonl").read_bytes()
    assert main([*SMALL, "--workdir", str(finished[0])]) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == finished[1].strip()
    assert printed.err.startswith("Comparing SGD, SAM, GAM, SAM + GAM on digits. ") and printed.err.count("\n") == 1
    assert (finished[0] / "results.jsonl").read_bytes() == before


def test_a_test_waits_for_all_trials_of_its_method():
    config = dataclasses.replace(load("digits"), methods=("plain", "sam"), trials=2, tuning_seeds=1, seeds=2)
    tasks = compare.plan(config)
    assert [task["method"] for task in tasks] == ["plain", "sam"] * (len(tasks) // 2)  # they take turns
    done = [task for task in tasks if task["kind"] == "tune" and task["method"] == "sam" and task["noise"] == 0.3]
    tests = [task for task in tasks if task["kind"] == "test"]
    ready = {(task["noise"], task["method"]) for task in tests if compare.is_ready(config, task, done)}
    assert ready == {(0.3, "sam")} and not compare.is_ready(config, tests[-1], done[:-1])


def test_every_method_has_a_grid_of_values_that_it_takes():
    config = load("digits_family")
    for method in METHODS:
        optims = search.trials(config, method)
        assert len(optims) == len({json.dumps(optim.tuned()) for optim in optims}) == config.trials
        assert search.grid_size(config, method) >= config.trials
    shares = search.method_grid(config, "accelerated_gam")
    assert max(config.grid.gam_alpha) > 1 >= max(shares["gam_alpha"])


def run_of(method, seed, accuracy, **others):
    """A final run, as it is recorded."""
    scores = {"test_accuracy": accuracy, "train_loss": None if accuracy is None else 0.5}
    eigenvalues = None if accuracy is None else {"eigenvalues": [2.0]}
    about = {"kind": "test", "noise": 0.0, "method": method, "seed": seed, "seconds": 1.0}
    return about | scores | {"diverged": accuracy is None, "end": eigenvalues} | others


def test_a_diverged_run_is_counted_and_pairs_are_by_seed():
    config = dataclasses.replace(load("digits"), methods=("plain", "gam"), noise=(0.0,), seeds=3)
    runs = [run_of("plain", seed, 0.5 + 0.01 * seed) for seed in (2, 1, 0)]
    runs += [run_of("gam", 0, 0.52), run_of("gam", 2, 0.54), run_of("gam", 1, None, seconds=0.1)]
    costs = [{"kind": "cost", "method": method, "flops_per_step": cost} for method, cost in (("plain", 2), ("gam", 12))]
    sgd, gam = summarize(config, [*runs, *costs])
    assert sgd.diverged == 0 and gam.diverged == 1
    assert gam.test_accuracy == Estimate.of(np.array([52.0, np.nan, 54.0])) and math.isclose(gam.test_accuracy.mean, 53)
    assert gam.flop_ratio == 6 and gam.time_ratio == 1 and gam.gain == difference(runs, 0.0, "gam", "plain")
    assert math.isclose(gam.gain.estimate.mean, 2) and (gam.gain.wins, gam.gain.losses) == (2, 1)
    assert "53.00 ± 1.00 (1 of 3 diverged)" in result_table(Study(config, (), [sgd, gam], {}))


def test_the_report_names_choices_at_the_edge_and_trials_that_diverged():
    config = dataclasses.replace(load("digits"), methods=("plain",), noise=(0.0,), trials=2, tuning_seeds=1)
    chosen, other = ({"learning_rate": rate, "weight_decay": 0.0} for rate in (0.05, 0.2))
    runs = [run_of("plain", 0, 0.5, hyperparameters=chosen)]
    for trial, (values, accuracy) in enumerate([(chosen, 0.8), (other, None)]):
        about = {"kind": "tune", "noise": 0.0, "method": "plain", "trial": trial, "seed": 1000}
        scores = {"hyperparameters": values, "validation_accuracy": accuracy, "diverged": accuracy is None}
        runs.append(about | scores)
    study = Study(config, runs, (), {})
    assert edges(study) == ["SGD at 0%: weight_decay = 0 is the smallest value of its grid"]
    assert "| 80.00 " in chosen_table(study) and "| 1 of 2 " in chosen_table(Study(config, runs, (), {}))
