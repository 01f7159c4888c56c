"""What a person sees of long work: a first sentence, then a bar on a terminal, or a line every 10 s without one."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

import jax
import rich.console
import rich.progress
import rich.text

_EVERY = 10.0
"""Seconds between two lines."""


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
            numbers = self._bar.tasks[self._task].fields["numbers"].removeprefix("compiling")
            self._bar.update(self._task, completed=step, numbers=numbers)

    def show(self, record: dict[str, float]) -> None:
        """Shows new numbers behind the bar."""
        if self._task is not None:
            text = "loss {loss:.4f}  accuracy {accuracy:.2%}  {images_per_second:.0f} images/s".format(**record)
            self._bar.update(self._task, numbers=text)

    def say(self, message: str) -> None:
        """Prints a line that the user should not miss, once for all processes."""
        if jax.process_index() == 0:
            self._bar.console.print(message, markup=False, highlight=False, soft_wrap=True)


def announce(what: str, how_long: str, where: object) -> None:
    """The first sentence: what is done, how long that takes, and where the results go."""
    print(f"{what}. {how_long}; results in {where}", file=sys.stderr, flush=True)


class _Remaining(rich.progress.ProgressColumn):
    def render(self, task: rich.progress.Task) -> rich.text.Text:
        return rich.text.Text(remaining(task))


@contextlib.contextmanager
def bars(
    *columns: rich.progress.ProgressColumn, calm: bool = False, silent: bool = False
) -> Iterator[rich.progress.Progress]:
    """Bars in the house's style, or lines where there is no terminal.

    Args:
      *columns: more columns, at the end of each bar.
      calm: lines on a terminal, too, where a bar would disturb what is timed.
      silent: neither of them.
    """
    console = rich.console.Console(stderr=True)
    live = sys.stderr.isatty() and not console.is_dumb_terminal and not calm and not silent
    bar = rich.progress.Progress(
        rich.progress.TextColumn("{task.description:<36}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        _Remaining(),
        *columns,
        console=console,
        disable=not live,
        redirect_stdout=sys.stdout.isatty(),  # else the results in a file would go to the terminal
        speed_estimate_period=60,
        transient=True,
    )
    with bar, contextlib.nullcontext() if live or silent else _lines(bar):
        yield bar


@contextlib.contextmanager
def open_progress() -> Iterator[Progress]:
    """A bar for one training run, in the first of its processes."""
    numbers = rich.progress.TextColumn("{task.fields[numbers]}")
    with bars(numbers, silent=jax.process_index() > 0) as bar:
        yield Progress(bar)


@contextlib.contextmanager
def _lines(bar: rich.progress.Progress) -> Iterator[None]:
    """A line every 10 s, also while something compiles."""
    start, ended = time.monotonic(), threading.Event()

    def write() -> None:
        while not ended.wait(_EVERY):
            print(line(bar.tasks, time.monotonic() - start), file=sys.stderr, flush=True)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def line(tasks: list[rich.progress.Task], seconds: float) -> str:
    """How far the latest of the tasks is, after so many seconds."""
    if not tasks:
        return f"{_clock(seconds)}  preparing"
    task = tasks[-1]
    parts = [] if task.total is None else [f"{task.completed:.0f} of {task.total:.0f}"]
    parts += [text for text in (task.description, task.fields.get("numbers")) if text]
    return f"{_clock(seconds)}  {', '.join([*parts, remaining(task)]).removesuffix(', ')}"


def remaining(task: rich.progress.Task) -> str:
    """An estimate, when a tenth is done; before that it would be one of compiling."""
    if task.total is None or task.completed < task.total / 10 or not task.time_remaining:
        return ""
    return f"about {_clock(task.time_remaining)} to go"


def _clock(seconds: float) -> str:
    """Minutes and seconds, hours before them where there are any."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
