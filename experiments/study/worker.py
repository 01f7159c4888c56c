"""A worker of a study, ``python -m experiments.study.worker CORE``: jobs on stdin, answers on stdout, a line each.

It computes on one core in one thread, so that a result does not depend on the number of workers. It ends when stdin
does, also in the middle of a job: whatever has killed the process that started it, it does not stay behind.
"""

import json
import os
import queue
import sys
import threading
from typing import BinaryIO


def environment() -> dict[str, str]:
    """The environment that a worker needs, on top of ours."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    return {"XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)} | threads


def main() -> None:
    """Does jobs until stdin ends."""
    os.sched_setaffinity(0, {int(sys.argv[1])})  # before JAX counts the cores
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever else is printed is no answer
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    stdin = os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    threading.Thread(target=_read, args=(stdin, lines), daemon=True).start()

    from experiments.common.errors import UserError  # slow imports, for which the core must be chosen
    from experiments.study.job import Runner

    runner = Runner()
    while True:
        try:
            answer = {"record": runner.do(json.loads(lines.get()))}
        except UserError as error:
            answer = {"error": str(error)}
        answers.write(json.dumps(answer, allow_nan=False).encode() + b"\n")


def _read(stdin: BinaryIO, lines: "queue.SimpleQueue[bytes]") -> None:
    for line in stdin:
        lines.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
