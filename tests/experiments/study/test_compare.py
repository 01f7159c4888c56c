"""A whole comparison, small: reproducible, resumable after any kill, and reported as recorded."""

import contextlib
import csv
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from experiments.common.errors import UserError
from experiments.configs import load
from experiments.main import main
from experiments.optim.config import OptimConfig
from experiments.optim.methods import METHODS
from experiments.study import compare, pool, search
from experiments.study.job import Runner, Wanted, make_job
from experiments.study.plan import key
from experiments.study.pool import cores, open_pool
from experiments.study.report.statistics import Estimate, difference, summarize
from experiments.study.report.study import Study
from experiments.study.report.tables import chosen_table, edges, result_table
from experiments.study.worker import environment

ROOT = Path(__file__).parents[3]
SMALL = [
    *("compare", "--config", "digits", "--epochs", "2", "--data.train-size", "40", "--batch-size", "20"),
    *("--model.hidden", "8", "--trials", "3", "--tuning-seeds", "2", "--seeds", "3", "--measure-examples", "40"),
]
SMALLER = [*SMALL, "--methods", "plain", "sam", "--noise", "0.3", "--trials", "2", "--seeds", "2", "--measure"]
"""Without measurements, which take long to compile."""
FINAL = ["noise", "method", "seed", "diverged", "test_accuracy", "test_loss", "train_accuracy", "train_loss"]
FINAL += ["generalization_gap"]
EIGENVALUES = ["half_eigenvalues_1", "end_eigenvalues_1"]


def records(workdir):
    return [json.loads(line) for line in (workdir / "results.jsonl").read_text().splitlines()]


def numbers(workdir):
    """The records without what a clock decides, in the order of what they are about."""
    found = [
        {name: value for name, value in record.items() if name != "seconds"}
        for record in records(workdir)
        if record["kind"] != "session"
    ]
    return sorted(found, key=lambda record: json.dumps(key(record)))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A comparison of all four methods, computed here, and what it printed."""
    workdir = tmp_path_factory.mktemp("finished")
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *args, **_: printed.append(" ".join(map(str, args))))
        patch.setattr(compare, "open_pool", lambda workers: contextlib.nullcontext(pool._Here()))
        assert main([*SMALL, "--workdir", str(workdir)]) == 0
    return workdir, "\n".join(printed)


STAND_IN = """
import json, sys, types, zlib

class Runner:
    def do(self, job):
        if job["kind"] == "cost":
            return {"flops_per_step": 1.0}
        one = zlib.crc32(json.dumps(job, sort_keys=True).encode()) / 2**32
        parts = ("validation",) if job["kind"] == "tune" else ("test", "train")
        scores = {f"{part}_{name}": one for part in parts for name in ("loss", "accuracy")}
        return {"diverged": False, **scores, "generalization_gap": 0.0, "seconds": 1.0}

sys.modules["experiments.study.job"] = types.SimpleNamespace(Runner=Runner)
from experiments.study import worker
worker.main()
"""
"""The program of a worker that draws its numbers from the run, with nothing slow to import."""


def start_stand_in(core):
    return subprocess.Popen(
        [sys.executable, "-c", STAND_IN, str(core)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | environment(),
        process_group=0,
    )


@pytest.fixture
def stand_ins(monkeypatch):
    """Workers that stand in; those that were started."""
    started = []
    monkeypatch.setattr(pool, "_start", lambda core: started.append(start_stand_in(core)) or started[-1])
    return started


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Two methods, by one worker that stands in."""
    workdir = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "_start", start_stand_in)
        assert main([*SMALLER, "--workers", "1", "--workdir", str(workdir)]) == 0
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


DIE = """
import os, signal, sys
from experiments import main
from experiments.common import store
from experiments.study import pool
write, left = os.write, int(sys.argv[2])
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests themselves run in the background

def interrupted(descriptor, line):
    global left
    left -= 1
    if left == 0:
        print(open(f"/proc/self/task/{os.getpid()}/children").read(), flush=True)
        cut = len(line) // 2 if sys.argv[1] == "SIGKILL" else len(line)
        write(descriptor, line[:cut])
        os.kill(os.getpid(), signal.Signals[sys.argv[1]])
        return cut
    return write(descriptor, line)

store.os.write = interrupted
if sys.argv[3] == "stand-ins":
    from tests.experiments.study.test_compare import start_stand_in
    pool._start = start_stand_in
sys.exit(main.main(sys.argv[4:]))
"""
SIGKILL, SIGINT = (signal.SIGKILL, 7), (signal.SIGINT, 12)
"""The first comes in the middle of a line of the tuning, the other one behind a line of the final runs."""


def wait_for(condition):
    """Waits until it holds, a minute at most."""
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail("waited in vain")


def is_alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def killed(number, line, workers, command):
    """The bytes of the whole lines that a comparison leaves that is killed, and no worker that lives."""
    died = subprocess.run(
        [sys.executable, "-c", DIE, number.name, str(line), workers, *command, "--workers", "2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert died.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    assert "Traceback" not in died.stderr
    workdir = Path(command[-1])
    assert not (workdir / "results.csv").exists()
    kept = (workdir / "results.jsonl").read_bytes().rpartition(b"\n")[0]
    assert kept.count(b"\n") == line - (2 if number == signal.SIGKILL else 1)
    workers = died.stdout.split()
    assert len(workers) == 2
    wait_for(lambda: not any(map(is_alive, workers)))
    return kept


def assert_goes_on(uninterrupted, workdir, kept, command):
    """To the same numbers, with one worker."""
    assert main([*command, "--workers", "1"]) == 0
    assert (workdir / "results.jsonl").read_bytes().startswith(kept)
    assert numbers(workdir) == numbers(uninterrupted)
    assert (workdir / "results.csv").read_bytes() == (uninterrupted / "results.csv").read_bytes()
    assert (workdir / "report.md").read_text().count("- Command, ") == 2


def test_a_killed_comparison_leaves_no_worker_and_goes_on_to_the_same_numbers(uninterrupted, tmp_path, stand_ins):
    command = [*SMALLER, "--workdir", str(tmp_path)]
    assert_goes_on(uninterrupted, tmp_path, killed(*SIGKILL, "stand-ins", command), command)


def test_an_interrupted_comparison_leaves_no_worker(tmp_path, monkeypatch, stand_ins, capsys):
    write, lines = os.write, []

    def interrupted(descriptor, line):
        written = write(descriptor, line)
        lines.append(line)
        if len(lines) == 12:
            raise KeyboardInterrupt
        return written

    monkeypatch.setattr("experiments.common.store.os.write", interrupted)
    assert main([*SMALLER, "--workdir", str(tmp_path), "--workers", "2"]) == 130
    assert "Traceback" not in capsys.readouterr().err
    assert (tmp_path / "results.jsonl").read_bytes() == b"".join(lines) and not (tmp_path / "results.csv").exists()
    assert len(stand_ins) == 2 and all(worker.poll() is not None for worker in stand_ins)


@pytest.mark.slow
def test_a_comparison_killed_twice_ends_in_the_same_numbers(tmp_path):
    """With workers that train."""
    whole, command = tmp_path / "whole", [*SMALLER, "--workdir", str(tmp_path / "killed")]
    assert main([*SMALLER, "--workers", "1", "--workdir", str(whole)]) == 0
    killed(*SIGINT, "workers", [*SMALLER, "--workdir", str(tmp_path / "interrupted")])
    assert_goes_on(whole, tmp_path / "killed", killed(*SIGKILL, "workers", command), command)


def processor_time(process):
    """Of all its threads, in ticks."""
    return sum(map(int, Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]))


def test_a_worker_finds_the_numbers_of_this_process_and_ends_with_its_input_also_in_the_middle_of_a_run():
    config = dataclasses.replace(
        load("digits"), epochs=2, batch_size=20, data=dataclasses.replace(load("digits").data, train_size=40)
    )
    optim = OptimConfig(method="plain", learning_rate=0.1, weight_decay=0.0, momentum=0.9)

    def job(epochs):
        run = dataclasses.replace(config, epochs=epochs).run("plain", optim, 0.3, 0)
        return make_job("tune", run, Wanted.of(config))

    worker = pool._start(cores(1)[0])
    assert worker.stdin is not None and worker.stdout is not None

    def send(job):
        worker.stdin.write(json.dumps(job).encode() + b"\n")
        worker.stdin.flush()

    send(job(epochs=2))
    found, expected = json.loads(worker.stdout.readline())["record"], Runner().do(job(epochs=2))
    assert found | {"seconds": 0} == expected | {"seconds": 0} and found["seconds"] > 0
    idle = processor_time(worker)
    send(job(epochs=10**6))
    wait_for(lambda: processor_time(worker) > idle + 20)
    assert worker.poll() is None
    worker.stdin.close()
    assert worker.wait(timeout=30) == 0


def test_a_worker_that_dies_is_reported_with_its_run_and_what_is_finished_is_kept(monkeypatch, tmp_path, capsys):
    answers = """
import json, sys
for line, answer in zip(sys.stdin, range(2)):
    print(json.dumps({"record": {"flops_per_step": 1.0}}), flush=True)
sys.exit(3)
"""
    start = lambda core: subprocess.Popen(  # noqa: E731
        [sys.executable, "-c", answers], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    monkeypatch.setattr(pool, "_start", start)
    assert main([*SMALLER, "--workers", "1", "--workdir", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "a worker ended with status 3 in this run: tuning SGD, 30% wrong labels, seed 1000" in said
    assert [record["kind"] for record in records(tmp_path)] == ["session", "cost", "cost"]


def test_what_a_worker_refuses_is_an_error_of_the_user(monkeypatch):
    answer = """print('{"error": "the offending value"}', flush=True); input(); input()"""
    start = lambda core: subprocess.Popen(  # noqa: E731
        [sys.executable, "-c", answer], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    monkeypatch.setattr(pool, "_start", start)
    with open_pool(1) as workers:
        workers.send({}, "testing SAM", {})
        assert workers.is_busy and not workers.is_free
        with pytest.raises(UserError, match="^testing SAM: the offending value$"):
            workers.wait()


def test_workers_have_a_core_each_and_no_more_threads(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 1})
    assert cores(None) == [1, 3] and cores(1) == [1] and cores(3) == [1, 3, 1]
    assert "--xla_cpu_multi_thread_eigen=false" in environment()["XLA_FLAGS"].split()


def test_an_accelerator_computes_one_run_at_a_time(monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    with open_pool(None) as here:
        assert isinstance(here, pool._Here)
    with pytest.raises(UserError, match="workers must be 1, got 2"), open_pool(2):
        pass


def test_a_test_waits_for_all_trials_of_its_method():
    config = dataclasses.replace(load("digits"), methods=("plain", "sam"), trials=2, tuning_seeds=1, seeds=2)
    tasks = compare.plan(config)
    assert [task["method"] for task in tasks] == ["plain", "sam"] * (len(tasks) // 2)  # they take turns
    done = [task for task in tasks if task["kind"] == "tune" and task["method"] == "sam" and task["noise"] == 0.3]
    tests = [task for task in tasks if task["kind"] == "test"]
    ready = {(task["noise"], task["method"]) for task in tests if compare.is_ready(config, task, done)}
    assert ready == {(0.3, "sam")} and not compare.is_ready(config, tests[-1], done[:-1])


def test_another_config_in_the_same_folder_is_refused(uninterrupted, capsys):
    before = (uninterrupted / "results.jsonl").read_bytes()
    assert main([*SMALLER, "--workdir", str(uninterrupted), "--seeds", "5"]) == 2
    assert "config.seeds: 2 there, 5 now" in capsys.readouterr().err
    assert (uninterrupted / "results.jsonl").read_bytes() == before


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
