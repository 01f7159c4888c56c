"""A comparison's workers: none outlives it, a kill loses nothing, and it goes on to the same numbers."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.common.errors import UserError
from experiments.configs import load
from experiments.main import main
from experiments.optim.config import OptimConfig
from experiments.study import pool
from experiments.study.job import Runner, Wanted, make_job
from experiments.study.pool import cores, open_pool
from experiments.study.worker import environment
from tests.experiments.study.comparisons import ROOT, SMALLER, numbers, records, start_stand_in


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
    from tests.experiments.study.comparisons import start_stand_in
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


def test_another_config_in_the_same_folder_is_refused(uninterrupted, capsys):
    before = (uninterrupted / "results.jsonl").read_bytes()
    assert main([*SMALLER, "--workdir", str(uninterrupted), "--seeds", "5"]) == 2
    assert "config.seeds: 2 there, 5 now" in capsys.readouterr().err
    assert (uninterrupted / "results.jsonl").read_bytes() == before
