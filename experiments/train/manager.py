"""Orbax, as checkpoints use it: quiet, by a clock that nobody sets, and its errors in one line."""

import contextlib
import logging
import os
import re
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import absl.logging
import orbax.checkpoint as ocp

from experiments.common.errors import UserError, require

FOLDER = "checkpoints"
_WAITING = "orbax.checkpoint._src.futures.signaling_client"
"""Where one thread of orbax waits for another, by ``time.time``."""
PATIENCE = 10**8
"""Seconds for a whole checkpoint; orbax takes them from the wall clock, which may be set while it writes."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Tensorstore prints no traceback for each array that a refused write has left behind.

    It also prints them later, from its threads: after an error it stays so, as the run is over.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            before(unraisable)

    sys.unraisablehook = hook
    yield
    sys.unraisablehook = before


def check_place(workdir: Path) -> None:
    """Refuses a folder whose name orbax would take for a pattern, and so not find again.

    Raises:
      UserError: if there is such a character in its path.
    """
    for character in "[*?":
        require(
            character not in str(workdir.absolute()),
            f"checkpoints cannot lie in a folder with {character!r} in its path, got --workdir {workdir.absolute()}",
        )


def open_manager(workdir: Path, options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManager:
    """Orbax on a folder. What it reads is arrays and JSON: nothing in a checkpoint is ever run."""
    check_place(workdir)
    if _WAITING in sys.modules:  # the wall clock may be set while it waits
        vars(sys.modules[_WAITING])["time"] = types.SimpleNamespace(time=time.monotonic)
    absl.logging.set_verbosity(absl.logging.FATAL)  # orbax raises what it logs
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # and what its futures log
    handlers: Any = {"state": ocp.StandardCheckpointHandler(), "record": ocp.JsonCheckpointHandler()}
    try:
        return ocp.CheckpointManager(workdir.absolute() / FOLDER, options=options, item_handlers=handlers)
    except (OSError, RecursionError, TypeError, ValueError) as error:
        raise UserError(f"the checkpoints in {workdir} cannot be opened: {first_line(error)}") from error


def reason(error: Exception) -> str:
    """In one line; what the system said, if tensorstore quotes it."""
    if isinstance(error, TimeoutError):
        return f"{first_line(error)} (was the clock of this machine set meanwhile? The same command goes on)"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    quoted = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(quoted[1])) if quoted else first_line(error)


def first_line(error: Exception) -> str:
    """The first line of what it says, not too long."""
    return (str(error).splitlines() or [""])[0][:300]
