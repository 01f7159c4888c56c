"""Where the runs of a study are computed: on a CPU in a process for each core, on an accelerator in this one."""

import contextlib
import json
import os
import selectors
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Protocol

import jax

from experiments.common.errors import UserError, require
from experiments.common.store import Record
from experiments.study.job import Runner
from experiments.study.worker import environment


class Pool(Protocol):
    """Does jobs. Each comes with a label, which a user understands, and comes back with it."""

    @property
    def is_free(self) -> bool:
        """Whether it can take another job now."""
        ...

    @property
    def is_busy(self) -> bool:
        """Whether there are answers to wait for."""
        ...

    def send(self, task: Record, label: str, job: Record) -> None:
        """Begins a job."""
        ...

    def wait(self) -> tuple[Record, Record]:
        """The next task that is done, in any order, and its record."""
        ...


def cores(workers: int | None) -> list[int]:
    """One core for each worker: those that this process may use, in turn."""
    usable = sorted(os.sched_getaffinity(0))
    return [usable[i % len(usable)] for i in range(workers or len(usable))]


@contextlib.contextmanager
def open_pool(workers: int | None) -> Iterator[Pool]:
    """The pool for this machine; whatever happens inside, its processes end with it.

    Args:
      workers: how many; None for as many as there are cores to use.

    Raises:
      UserError: for several workers on an accelerator.
    """
    if jax.default_backend() != "cpu":
        require(workers in (None, 1), f"on an accelerator one run computes at a time: workers must be 1, got {workers}")
        yield _Here()
        return
    processes = [_start(core) for core in cores(workers)]
    try:
        yield _Processes(processes)
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _start(core: int) -> subprocess.Popen[bytes]:
    """A worker, in a group of its own so that Ctrl-C does not reach it."""
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.study.worker", str(core)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | environment(),
        process_group=0,
    )


class _Here:
    """One job at a time, in this process."""

    def __init__(self):
        self._runner, self._done = Runner(), list[tuple[Record, Record]]()

    @property
    def is_free(self) -> bool:
        return not self._done

    @property
    def is_busy(self) -> bool:
        return bool(self._done)

    def send(self, task: Record, label: str, job: Record) -> None:
        self._done.append((task, self._runner.do(job)))

    def wait(self) -> tuple[Record, Record]:
        return self._done.pop()


class _Processes:
    """One job at a time in each of several processes."""

    def __init__(self, processes: list[subprocess.Popen[bytes]]):
        self._free = list(processes)
        self._busy: dict[Any, tuple[subprocess.Popen[bytes], Record, str]] = {}

    @property
    def is_free(self) -> bool:
        return bool(self._free)

    @property
    def is_busy(self) -> bool:
        return bool(self._busy)

    def send(self, task: Record, label: str, job: Record) -> None:
        process = self._free.pop(0)
        self._busy[process.stdout] = (process, task, label)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died: found when its answer is waited for
            process.stdin.write(json.dumps(job, allow_nan=False).encode() + b"\n")
            process.stdin.flush()

    def wait(self) -> tuple[Record, Record]:
        with selectors.DefaultSelector() as selector:
            for stdout in self._busy:
                selector.register(stdout, selectors.EVENT_READ)
            stdout = selector.select()[0][0].fileobj
        process, task, label = self._busy.pop(stdout)
        line = process.stdout.readline() if process.stdout is not None else b""
        if not line.endswith(b"\n"):
            raise UserError(
                f"a worker ended with status {process.wait()} in this run: {label}. What is finished is kept; the same "
                "command goes on from there"
            )
        self._free.append(process)
        answer = json.loads(line)
        if "error" in answer:
            raise UserError(f"{label}: {answer['error']}")
        return task, answer["record"]
