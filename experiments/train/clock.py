"""Where the time of a run goes, and how much of the hardware it uses."""

import time
from collections.abc import Iterator

from experiments.data import Batch


class Clock:
    """Counts steps, seconds and FLOPs between two records."""

    def __init__(self, batch_size: int, peak_flops: float | None):
        """Begins to count.

        Args:
          batch_size: images in a step.
          peak_flops: of a device, in a second; None if that is not known.
        """
        self._batch_size, self._peak = batch_size, peak_flops
        self.restart()

    def restart(self) -> None:
        """Begins anew."""
        self._start, self._waited, self._steps, self._flops = time.perf_counter(), 0.0, 0, 0.0

    def wait_for(self, batches: Iterator[Batch], flops: float | None) -> Batch:
        """The next batch, for a step of so many FLOPs on each device, if that is known."""
        before = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - before
        self._steps += 1
        self._flops += flops or 0.0
        return batch

    def times(self) -> dict[str, float]:
        """Since the last call: seconds, of them for the data, seconds of a step, images per second over all devices.

        And ``mfu``, where it can be told: the matrix products and convolutions of the compiled step on a device, over
        what that device could do at its peak. What remat computes again counts as well.
        """
        seconds = time.perf_counter() - self._start
        found = {
            "seconds": seconds,
            "input_seconds": self._waited,
            "step_seconds": seconds / self._steps,
            "images_per_second": self._steps * self._batch_size / seconds,
        }
        if self._peak is not None and self._flops > 0:
            found["mfu"] = self._flops / seconds / self._peak
        self.restart()
        return found
