"""Times steps side by side: each round runs every one of them, so that what disturbs one disturbs all.

A step runs twice in a row and the second counts: the first finds the memory and the caches as another step left them,
and on the CPU takes up to half as long again behind a step that needs much memory.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
import optax

from experiments.data import Batch
from experiments.measure.cost.cases import Case
from experiments.train.state import TrainState


class Runner(NamedTuple):
    """Something to time.

    Attributes:
      prepare: called before each run, not timed.
      run: what is timed; returns when it is done.
    """

    prepare: Callable[[], None]
    run: Callable[[], None]


class Ratio(NamedTuple):
    """A ratio of times: median and quartiles over the rounds."""

    median: float
    low: float
    high: float


def runner(case: Case, compiled: Callable[[TrainState, Batch], TrainState], batch: Batch, count: int) -> Runner:
    """A step of a case at a given step count, which decides whether the method acts."""
    state = [jax.jit(case.init)()]

    def prepare() -> None:
        counted = optax.tree.set(state[0].opt_state, count=np.int32(count))
        state[0] = jax.device_put(state[0]._replace(opt_state=counted, step=np.int32(count)))
        jax.block_until_ready(state[0])

    def run() -> None:
        state[0] = jax.block_until_ready(compiled(state[0], batch))

    return Runner(prepare, run)


def time_rounds(runners: Sequence[Runner], warmup: int, rounds: int, after: Callable[[np.ndarray], None]) -> np.ndarray:
    """Seconds of every run, shape (rounds, runners).

    Args:
      runners: what to time.
      warmup: rounds whose times are thrown away.
      rounds: rounds whose times count.
      after: called after each of them with the times so far.
    """
    seconds = np.zeros((0, len(runners)))
    for index in range(warmup + rounds):
        row = []
        for one in runners:
            one.prepare()
            one.run()
            one.prepare()
            start = time.perf_counter()
            one.run()
            row.append(time.perf_counter() - start)
        if index >= warmup:
            seconds = np.vstack([seconds, row])
            after(seconds)
    return seconds


def ratio(times: Sequence[float] | np.ndarray, base: Sequence[float]) -> Ratio:
    """Times relative to those of the base in the same round."""
    low, median, high = np.percentile(np.asarray(times) / np.asarray(base), (25, 50, 75))
    return Ratio(float(median), float(low), float(high))
