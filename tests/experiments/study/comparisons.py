"""Small comparisons, what they leave behind, and a worker that stands in for one that trains."""

import json
import os
import subprocess
import sys
from pathlib import Path

from experiments.study.plan import key
from experiments.study.worker import environment

ROOT = Path(__file__).parents[3]
SMALL = [
    *("compare", "--config", "digits", "--epochs", "2", "--data.train-size", "40", "--batch-size", "20"),
    *("--model.hidden", "8", "--trials", "3", "--tuning-seeds", "2", "--seeds", "3", "--measure-examples", "40"),
]
SMALLER = [*SMALL, "--methods", "plain", "sam", "--noise", "0.3", "--trials", "2", "--seeds", "2", "--measure"]
"""Without measurements, which take long to compile."""


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
