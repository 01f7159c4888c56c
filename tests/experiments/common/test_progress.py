"""What a person sees of long work with and without a terminal."""

import io
import re
import sys
import threading

import pytest
import rich.progress

from experiments.common import progress


class Stream(io.StringIO):
    """Stands in for stderr, a terminal or none; says when a line is there."""

    def __init__(self, terminal):
        super().__init__()
        self.terminal, self.written = terminal, threading.Event()

    def isatty(self):
        return self.terminal

    def write(self, text):
        count = super().write(text)
        if "\n" in text:
            self.written.set()
        return count


@pytest.fixture
def stream(monkeypatch):
    """Makes stderr a stream, whose lines come at once."""
    monkeypatch.setattr(progress, "_EVERY", 0.001)
    monkeypatch.setenv("TERM", "xterm")

    def make(terminal):
        found = Stream(terminal)
        monkeypatch.setattr(sys, "stderr", found)
        return found

    return make


def task(completed, total, **fields):
    """A task of which so much is done, one in a second."""
    now = [0.0]
    bar = rich.progress.Progress(disable=True, get_time=lambda: now[0])
    number = bar.add_task("tuning GAM", total=total, **fields)
    for _ in range(completed):
        now[0] += 1
        bar.advance(number)
    return bar.tasks[0]


@pytest.mark.parametrize(
    ("tasks", "seconds", "expected"),
    [
        ([], 10.2, "0:10  preparing"),
        ([task(0, None)], 20, "0:20  tuning GAM"),
        ([task(4, 50)], 61, "1:01  4 of 50, tuning GAM"),
        ([task(20, 100)], 61, "1:01  20 of 100, tuning GAM, about 1:20 to go"),
        ([task(1, 2), task(0, 600, numbers="compiling")], 3661, "1:01:01  0 of 600, tuning GAM, compiling"),
        ([task(2, 2)], 1, "0:01  2 of 2, tuning GAM"),
    ],
)
def test_a_line_says_how_far_it_is(tasks, seconds, expected):
    assert progress.line(tasks, seconds) == expected


def test_without_a_terminal_lines_come_also_before_there_is_a_bar(stream):
    found = stream(terminal=False)
    before = threading.active_count()
    with progress.bars() as bar:
        assert found.written.wait(60)
        found.written.clear()
        bar.add_task("compiling SAM", total=3)
        assert found.written.wait(60)
    assert threading.active_count() == before
    text = found.getvalue()
    assert re.fullmatch(r"(0:\d\d  (preparing|0 of 3, compiling SAM)\n)+", text) and text.startswith("0:00  preparing")


def test_on_a_terminal_there_is_a_bar_and_no_line_but_for_calm_work(stream):
    found = stream(terminal=True)
    with progress.bars() as bar:
        bar.add_task("compiling SAM", total=3)
        bar.refresh()
    assert "compiling SAM" in found.getvalue() and "\x1b[" in found.getvalue() and "0:00  " not in found.getvalue()
    found = stream(terminal=True)
    with progress.bars(calm=True):
        assert found.written.wait(60)
    assert "\x1b[" not in found.getvalue() and "0:00  preparing\n" in found.getvalue()


def test_a_process_that_is_not_the_first_is_silent(stream):
    found = stream(terminal=False)
    with progress.bars(silent=True) as bar:
        bar.add_task("compiling SAM", total=3)
        assert [thread for thread in threading.enumerate() if "write" in thread.name] == []
    assert found.getvalue() == ""


def test_compiling_is_said_until_the_first_step(stream):
    stream(terminal=False)
    with progress.open_progress() as shown:
        shown.begin("GAM", 10, 0)
        assert progress.line(shown._bar.tasks, 0) == "0:00  0 of 10, GAM, compiling"
        shown.advance(1)
        assert progress.line(shown._bar.tasks, 0).startswith("0:00  1 of 10, GAM")
        assert "compiling" not in progress.line(shown._bar.tasks, 0)
        shown.show({"loss": 0.5, "accuracy": 0.75, "images_per_second": 100.0})
        shown.advance(2)
        assert "loss 0.5000  accuracy 75.00%  100 images/s" in progress.line(shown._bar.tasks, 0)


def test_the_first_sentence(stream):
    found = stream(terminal=False)
    progress.announce("Comparing SGD, SAM on digits", "It takes 2 minutes", "runs/digits")
    assert found.getvalue() == "Comparing SGD, SAM on digits. It takes 2 minutes; results in runs/digits\n"
