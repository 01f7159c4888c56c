"""What a command does when nobody reads its output any more, as behind ``| head``."""

import os
import select
import signal
import sys
from collections.abc import Callable

CLOSED = 128 + signal.SIGPIPE
"""The status that a shell shows of a program which a closed pipe has ended."""


def until_closed(command: Callable[[], int]) -> int:
    """Runs a command; a closed pipe behind standard output ends it in silence.

    The signal itself stays ignored, as Python leaves it: it would also come of a worker that has died.

    Returns:
      The status of the command, or :data:`CLOSED`.
    """
    try:
        try:
            return command()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _closed(sys.stdout.fileno()):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
        return CLOSED


def _closed(output: int) -> bool:
    poll = select.poll()
    poll.register(output, 0)  # errors and hang-ups alone
    return bool(poll.poll(0))
