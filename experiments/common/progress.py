"""What a person sees of a long run: a bar on a terminal, and nothing but warnings where there is none."""

import contextlib
import sys
from collections.abc import Iterator

import jax
import rich.console
import rich.progress


class Progress:
    """A bar over the steps of a run, with its latest numbers."""

    def __init__(self, bar: rich.progress.Progress):
        self._bar = bar
        self._task = None

    def begin(self, label: str, total: int, done: int) -> None:
        """Shows the bar."""
        self._task = self._bar.add_task(label, total=total, completed=done, numbers="compiling")

    def advance(self, step: int) -> None:
        """Moves the bar."""
        if self._task is not None:
            self._bar.update(self._task, completed=step)

    def show(self, record: dict[str, float]) -> None:
        """Shows new numbers behind the bar."""
        if self._task is not None:
            text = "loss {loss:.4f}  accuracy {accuracy:.2%}  {images_per_second:.0f} images/s".format(**record)
            self._bar.update(self._task, numbers=text)

    def say(self, message: str) -> None:
        """Prints a line that the user should not miss, once for all processes."""
        if jax.process_index() == 0:
            self._bar.console.print(message, markup=False, highlight=False, soft_wrap=True)


def bars(*columns: rich.progress.ProgressColumn) -> rich.progress.Progress:
    """Bars in the house's style, with more columns at the end; silent where there is no terminal."""
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description:<36}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
        *columns,
        console=rich.console.Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    )


@contextlib.contextmanager
def open_progress() -> Iterator[Progress]:
    """A bar for one training run."""
    with bars(rich.progress.TextColumn("{task.fields[numbers]}")) as bar:
        yield Progress(bar)
