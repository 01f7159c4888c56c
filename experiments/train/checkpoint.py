"""Checkpoints of a training run: the whole state, written whole or not at all, and checked on both ways."""

import contextlib
import functools
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import absl.logging
import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, CustomSteps, LatestN

from experiments.common.errors import UserError, require
from experiments.train.integrity import inspect, make_record, not_finite, read_record
from experiments.train.mesh import all_succeed, is_first

FOLDER = "checkpoints"
_PATIENCE = 10**8
"""Seconds; orbax takes them from the wall clock, which may be set while it writes."""
Scores = dict[str, Any]
State = TypeVar("State")


class Damaged(UserError):
    """A checkpoint that cannot be read, does not hold what was saved, or holds what is not finite."""


class Checkpoints:
    """The checkpoints of one run, in ``workdir/checkpoints/STEP``."""

    def __init__(self, manager: ocp.CheckpointManager):
        self._manager = manager
        self._inspect = jax.jit(inspect)

    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, in order."""
        return sorted(self._manager.all_steps())

    def last(self) -> str:
        """Where the last one is, in words."""
        steps = self.steps()
        return f"The last good checkpoint is {self._place(steps[-1])}" if steps else "No checkpoint was saved"

    def diverged(self, what: str) -> UserError:
        """The error of a run whose numbers are not finite any more; names the last checkpoint when it is on disk."""
        self.wait()
        return UserError(f"{what}, and training stopped: try a smaller --learning-rate. {self.last()}")

    def save(self, step: int, state: Any, scores: Scores, accuracy: float | None) -> None:
        """Begins to write a checkpoint. It is written while training goes on; :meth:`wait` waits for it.

        Args:
          step: of the state.
          state: a pytree of arrays; may be donated at once.
          scores: what was measured of it, as JSON holds it.
          accuracy: what decides which checkpoint is the best one; None if it was not measured.

        Raises:
          UserError: if the parameters or the optimizer's state are not finite, and then nothing is written; if the
            disk refuses this one or refused the one before.
        """
        arrays = _by_name(state)
        sums, finite = jax.device_get(self._inspect(state))
        if wrong := not_finite([*arrays], finite):
            raise self.diverged(f"{', '.join(wrong[:3])} not finite after step {step}")
        record = make_record(sums, scores)
        parts = ocp.args.Composite(state=ocp.args.StandardSave(arrays), record=ocp.args.JsonSave(record))
        with self._explained(f"cannot write checkpoint {self._place(step)}"):
            self._manager.save(step, args=parts, metrics=None if accuracy is None else {"accuracy": accuracy})

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
          UserError: if the disk refused.
        """
        with self._explained(f"cannot write a checkpoint to {self._manager.directory}"):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and lets go of the folder.

        Raises:
          UserError: if the disk refused.
        """
        with self._explained(f"cannot write a checkpoint to {self._manager.directory}"):
            self._manager.close()

    def restore(self, step: int, expected: State) -> tuple[State, Scores]:
        """Reads one checkpoint.

        Args:
          step: of the state.
          expected: a pytree of ``jax.ShapeDtypeStruct``; with shardings, if the arrays are to be divided.

        Raises:
          Damaged: if it cannot be read, a checksum is wrong, or it is of a run that had diverged.
          UserError: if it holds other arrays.
        """
        return all_succeed(functools.partial(self._restore, step, expected), elsewhere=Damaged)

    def restore_last(self, expected: State, say: Callable[[str], None]) -> tuple[State, Scores] | None:
        """The last checkpoint that is good; damaged ones after it are set aside and named to ``say``."""
        for step in reversed(self.steps()):
            try:
                return self.restore(step, expected)
            except Damaged as error:
                say(f"{error}; set aside, and going on from the one before")
                self._set_aside(step)
        return None

    def _restore(self, step: int, expected: State) -> tuple[State, Scores]:
        place = self._place(step)
        names = _by_name(expected)
        try:
            _check_same(place, self._manager.item_metadata(step)["state"].tree, names)
            parts = ocp.args.Composite(state=ocp.args.StandardRestore(names), record=ocp.args.JsonRestore())
            found = self._manager.restore(step, args=parts)
            state = jax.tree.unflatten(jax.tree.structure(expected), [found["state"][name] for name in names])
            seen, finite = jax.device_get(self._inspect(state))
        except UserError:
            raise
        except Exception as error:  # orbax and tensorstore raise whatever they stumble over
            raise Damaged(f"checkpoint {place} is damaged ({type(error).__name__}: {_first_line(error)})") from error
        try:
            sums, scores = read_record(found["record"], len(names))
        except UserError as error:
            raise Damaged(f"checkpoint {place} is damaged: {error}") from error
        if wrong := [name for name, a, b in zip(names, seen, sums, strict=True) if a != b]:
            raise Damaged(f"checkpoint {place} is damaged: {', '.join(wrong[:3])} are not what was saved")
        if wrong := not_finite([*names], finite):
            raise Damaged(f"checkpoint {place} is of a run that had diverged: {', '.join(wrong[:3])} not finite")
        return state, scores

    def _set_aside(self, step: int) -> None:
        aside = Path(self._manager.directory).parent / "damaged"
        if is_first():
            aside.mkdir(exist_ok=True)
            number = sum(path.name.split("-")[0] == str(step) for path in aside.iterdir())
            Path(self._place(step)).rename(aside / (f"{step}-{number}" if number else str(step)))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("a damaged checkpoint was set aside")
        self._manager.reload()

    def _place(self, step: int) -> Path:
        return Path(self._manager.directory) / str(step)

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:  # tensorstore reports a full disk as a ValueError
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)  # as orbax gave up
            raise UserError(f"{what}: {_reason(error)}. {self.last()}") from error


@contextlib.contextmanager
def open_checkpoints(workdir: Path, *, keep: int = 1, always: tuple[int, ...] = ()) -> Iterator[Checkpoints]:
    """The checkpoints of a run.

    Args:
      workdir: the folder of the run.
      keep: number of latest ones to keep, beside the best one.
      always: steps to keep, too.

    Raises:
      UserError: if orbax cannot read what it would write there.
    """
    best = BestN(get_metric_fn=_accuracy, n=1, keep_checkpoints_without_metrics=False)
    policy = AnyPreservationPolicy([LatestN(keep), CustomSteps(list(always)), best])
    patience = ocp.AsyncOptions(timeout_secs=_PATIENCE)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy, cleanup_tmp_directories=True, async_options=patience
    )
    with _quiet(), contextlib.closing(Checkpoints(_manager(workdir, options))) as checkpoints:
        yield checkpoints


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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


@contextlib.contextmanager
def read_checkpoints(workdir: Path) -> Iterator[Checkpoints]:
    """The checkpoints of a run that another process may still be writing."""
    options = ocp.CheckpointManagerOptions(create=False, read_only=True)
    with contextlib.closing(Checkpoints(_manager(workdir, options))) as checkpoints:
        yield checkpoints


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


def _manager(workdir: Path, options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManager:
    """Orbax on a folder. What it reads is arrays and JSON: nothing in a checkpoint is ever run."""
    check_place(workdir)
    absl.logging.set_verbosity(absl.logging.FATAL)  # orbax raises what it logs
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # and what its futures log
    handlers: Any = {"state": ocp.StandardCheckpointHandler(), "record": ocp.JsonCheckpointHandler()}
    try:
        return ocp.CheckpointManager(workdir.absolute() / FOLDER, options=options, item_handlers=handlers)
    except (OSError, RecursionError, TypeError, ValueError) as error:
        raise UserError(f"the checkpoints in {workdir} cannot be opened: {_first_line(error)}") from error


def _accuracy(metrics: Any) -> float:
    return metrics["accuracy"]


def _by_name(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by their paths: what lies on the disk, without the classes of the tree."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _check_same(place: Path, stored: Any, expected: dict[str, Any]) -> None:
    """Names the arrays in which a checkpoint and a run differ."""
    there, here = (
        {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in leaves.items()} for leaves in (stored, expected)
    )
    differing = [
        f"  {name}: {there.get(name, 'absent')} in the checkpoint, {here.get(name, 'absent')} in the run"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]
    require(not differing, f"checkpoint {place} does not fit the run of its config:\n" + "\n".join(differing[:10]))


def _reason(error: Exception) -> str:
    """In one line; what the system said, if tensorstore quotes it."""
    if isinstance(error, TimeoutError):
        return f"{_first_line(error)} (was the clock of this machine set meanwhile? The same command goes on)"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    quoted = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(quoted[1])) if quoted else _first_line(error)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:300]
