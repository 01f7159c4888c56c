"""Checkpoints of a training run: the whole state, written whole or not at all, and checked when it is read."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import absl.logging
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, CustomSteps, LatestN

from experiments.common.errors import UserError, require
from experiments.train.mesh import all_succeed, is_first

FOLDER = "checkpoints"
Scores = dict[str, Any]
State = TypeVar("State")


class Damaged(UserError):
    """A checkpoint that cannot be read, or does not hold what was saved."""


class Checkpoints:
    """The checkpoints of one run, in ``workdir/checkpoints/STEP``."""

    def __init__(self, manager: ocp.CheckpointManager):
        self._manager = manager
        self._checksums = jax.jit(checksums)

    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, in order."""
        return sorted(self._manager.all_steps())

    def last(self) -> str:
        """Where the last one is, in words."""
        steps = self.steps()
        return f"The last good checkpoint is {self._place(steps[-1])}" if steps else "No checkpoint was saved"

    def save(self, step: int, state: Any, scores: Scores, accuracy: float | None) -> None:
        """Begins to write a checkpoint. It is written while training goes on; :meth:`wait` waits for it.

        Args:
          step: of the state.
          state: a pytree of arrays; may be donated at once.
          scores: what was measured of it, as JSON holds it.
          accuracy: what decides which checkpoint is the best one; None if it was not measured.

        Raises:
          UserError: if the disk refuses this one or refused the one before.
        """
        record = {"checksums": jax.device_get(self._checksums(state)).tolist(), "scores": scores}
        parts = ocp.args.Composite(state=ocp.args.StandardSave(_by_name(state)), record=ocp.args.JsonSave(record))
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
          Damaged: if it cannot be read, or a checksum is wrong.
          UserError: if it holds other arrays.
        """
        return all_succeed(functools.partial(self._restore, step, expected), elsewhere=Damaged)

    def restore_last(self, expected: State, say: Callable[[str], None]) -> tuple[State, Scores] | None:
        """The last checkpoint that is whole; damaged ones after it are set aside and named to ``say``."""
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
            arrays, record = found["state"], found["record"]
            state = jax.tree.unflatten(jax.tree.structure(expected), [arrays[name] for name in names])
            seen, scores = np.array(self._checksums(state)), record["scores"]
            wrong = [name for name, a, b in zip(names, seen, record["checksums"], strict=True) if a != b]
        except UserError:
            raise
        except Exception as error:  # orbax and tensorstore raise whatever they stumble over
            raise Damaged(f"checkpoint {place} is damaged ({type(error).__name__}: {_first_line(error)})") from error
        if wrong:
            raise Damaged(f"checkpoint {place} is damaged: {', '.join(wrong[:3])} are not what was saved")
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
            raise UserError(f"{what}: {_first_line(error)}. {self.last()}") from error


@contextlib.contextmanager
def open_checkpoints(workdir: Path, *, keep: int = 1, always: tuple[int, ...] = ()) -> Iterator[Checkpoints]:
    """The checkpoints of a run.

    Args:
      workdir: the folder of the run.
      keep: number of latest ones to keep, beside the best one.
      always: steps to keep, too.
    """
    best = BestN(get_metric_fn=_accuracy, n=1, keep_checkpoints_without_metrics=False)
    policy = AnyPreservationPolicy([LatestN(keep), CustomSteps(list(always)), best])
    options = ocp.CheckpointManagerOptions(preservation_policy=policy, cleanup_tmp_directories=True)
    with contextlib.closing(Checkpoints(_manager(workdir, options))) as checkpoints:
        yield checkpoints


@contextlib.contextmanager
def read_checkpoints(workdir: Path) -> Iterator[Checkpoints]:
    """The checkpoints of a run that another process may still be writing."""
    options = ocp.CheckpointManagerOptions(create=False, read_only=True)
    with contextlib.closing(Checkpoints(_manager(workdir, options))) as checkpoints:
        yield checkpoints


def _manager(workdir: Path, options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManager:
    """Orbax on a folder. What it reads is arrays and JSON: nothing in a checkpoint is ever run."""
    absl.logging.set_verbosity(absl.logging.FATAL)  # orbax raises what it logs
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


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:300]


def checksums(tree: Any) -> jax.Array:
    """One number per array, uint32, that any flipped bit changes; the same however the arrays are divided.

    It is the sum of the array's 32-bit words, each times an odd number that depends on its place, modulo 2^32.
    """
    return jnp.stack([_checksum(leaf) for leaf in jax.tree.leaves(tree)])


def _checksum(leaf: jax.Array) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jnp.bool_):
        leaf = leaf.astype(jnp.uint8)
    width = 8 * leaf.dtype.itemsize
    word = jnp.uint32 if width >= 32 else {16: jnp.uint16, 8: jnp.uint8}[width]
    words = jax.lax.bitcast_convert_type(leaf, word).astype(jnp.uint32)
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis in range(words.ndim):
        place = place * jnp.uint32(words.shape[axis]) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)
