"""Checkpoints of a training run: the whole state, written whole or not at all, and checked on both ways."""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, CustomSteps, LatestN

from experiments.common.errors import UserError, require
from experiments.train.integrity import inspect, make_record, not_finite, read_record
from experiments.train.manager import PATIENCE, first_line, open_manager, quiet, reason
from experiments.train.mesh import all_succeed, is_first

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
            raise Damaged(f"checkpoint {place} is damaged ({type(error).__name__}: {first_line(error)})") from error
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
            raise UserError(f"{what}: {reason(error)}. {self.last()}") from error


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
    patience = ocp.AsyncOptions(timeout_secs=PATIENCE)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy, cleanup_tmp_directories=True, async_options=patience
    )
    with quiet(), contextlib.closing(Checkpoints(open_manager(workdir, options))) as checkpoints:
        yield checkpoints


@contextlib.contextmanager
def read_checkpoints(workdir: Path) -> Iterator[Checkpoints]:
    """The checkpoints of a run that another process may still be writing."""
    options = ocp.CheckpointManagerOptions(create=False, read_only=True)
    with contextlib.closing(Checkpoints(open_manager(workdir, options))) as checkpoints:
        yield checkpoints


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
