"""A trace of what the devices do in three steps, for TensorBoard's profiler or xprof."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

FIRST, LAST = 10, 12
"""The calls that are traced: the first ones wait for data and allocate memory."""


@contextlib.contextmanager
def profiled(step: Callable[..., Any], folder: Path | None) -> Iterator[Callable[..., Any]]:
    """The same function, whose 10th to 12th call are traced; every process writes a file of its own.

    Args:
      step: what to trace.
      folder: of the trace; None traces nothing.
    """
    if folder is None:
        yield step
        return
    with contextlib.ExitStack() as tracing:
        calls = 0

        def traced(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == FIRST:
                jax.block_until_ready(arguments)
                tracing.enter_context(jax.profiler.trace(folder))
            with jax.profiler.StepTraceAnnotation("train", step_num=calls):
                result = step(*arguments)
            if calls == LAST:
                jax.block_until_ready(result)
                tracing.close()
            return result

        yield traced
