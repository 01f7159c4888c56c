"""A command whose output nobody reads any more ends in silence; other broken pipes are errors."""

import os
import pathlib
import subprocess
import sys

import pytest

from experiments.common.pipes import CLOSED, until_closed

ROOT = pathlib.Path(__file__).parents[3]


RESULT = """
from experiments.common.pipes import until_closed
raise SystemExit(until_closed(lambda: print("result") or 0))
"""


@pytest.mark.parametrize(
    "command", [("-m", "experiments.main", "benchmark", "--help"), ("-c", RESULT)], ids=["help", "result"]
)
def test_a_closed_pipe_ends_a_command_in_silence(command):
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run([sys.executable, *command], stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (CLOSED, "") and CLOSED == 141


def test_the_status_of_a_command_is_its_own(capfd):
    with capfd.disabled():
        assert until_closed(lambda: 2) == 2


def test_the_broken_pipe_of_another_is_an_error():
    """As that of a worker that has died."""
    code = """
from experiments.common.pipes import until_closed
def command(): raise BrokenPipeError("worker")
until_closed(command)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 1 and ended.stderr.endswith("BrokenPipeError: worker\n")
