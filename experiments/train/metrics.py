"""The numbers of a training run: JSON lines, TensorBoard files, and what the optimizer saw."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]  (generated)
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]  (generated)

import gam_jax
from experiments.common.errors import UserError, require
from experiments.common.provenance import changes, provenance
from experiments.common.store import Record, Store, open_store
from experiments.train.config import TrainConfig
from experiments.train.mesh import is_first

_ABOUT = ("kind", "step", "session")
"""What a record is about; there is at most one for each."""


class Metrics:
    """Writes each record to ``metrics.jsonl``, once and for all, and to TensorBoard.

    Only the first process has a store; in the others nothing is written. For TensorBoard there is an event for each
    record, written at once: tensorboardX's own SummaryWriter writes later, in a thread, and loses what a kill or a full
    disk keeps it from writing.
    """

    def __init__(self, store: Store | None, board: EventsWriter | None):
        self._store, self._board = store, board

    @property
    def records(self) -> list[Record]:
        """All records so far, those of earlier sessions included."""
        return self._store.records if self._store else []

    def write(self, record: Record) -> None:
        """Adds a record, unless there is one about the same: from before a kill, and then equal to this one."""
        if self._store is None or self._board is None or record in self._store:
            return
        self._store.append(record)
        scalars = [
            Summary.Value(tag=f"{record['kind']}/{name}", simple_value=value)
            for name, value in record.items()
            if name != "epoch" and isinstance(value, float)
        ]
        try:
            self._board.write_event(Event(wall_time=time.time(), step=record["step"], summary=Summary(value=scalars)))
            self._board.flush()
        except OSError as error:
            raise UserError(f"cannot write for TensorBoard: {error}; the same command goes on from there") from error

    def begin_session(self, step: int, session: Record, say: Callable[[str], None]) -> None:
        """Records with what, from which step on, the run goes on; says so if that is not what it was before."""
        sessions = [record for record in self.records if record["kind"] == "session"]
        made_with = provenance()
        before = sessions[-1]["made_with"] if sessions else made_with
        changed = changes(before, made_with)
        if changed:
            say(f"going on with other versions than before: {changed}")
        self.write({"kind": "session", "step": step, "session": len(sessions), "made_with": made_with} | session)

    def best_epoch(self, score: str) -> Record:
        """The epoch of the highest score, the first of them, and its accuracies."""
        evaluations = [record for record in self.records if record["kind"] == "evaluation"]
        if not evaluations:
            return {}
        best = max(evaluations, key=lambda record: record[score])
        accuracies = {f"best_epoch_{name}": value for name, value in best.items() if name.endswith("accuracy")}
        return {"best_epoch": best["epoch"]} | accuracies


@contextlib.contextmanager
def open_metrics(workdir: Path, config: dict[str, Any]) -> Iterator[Metrics]:
    """The metrics of a run: ``metrics.jsonl`` with ``config.json`` beside it, and the folder ``tensorboard``.

    Raises:
      UserError: if the folder cannot be written, is in use, or holds another config's run.
    """
    if not is_first():
        yield Metrics(None, None)
        return
    checked = functools.partial(_with_config, workdir)
    with open_store(workdir, {"config": config}, "metrics.jsonl", _ABOUT, complete=checked) as store:
        with _open_board(workdir / "tensorboard") as board:
            yield Metrics(store, board)


def _with_config(workdir: Path, there: Any) -> Any:
    """What ``config.json`` holds, if it can be compared with a config; fields that came later get their defaults."""
    config = there.get("config", {}) if isinstance(there, dict) else there
    wanted = f"expected an object with a config: choose another --workdir, or delete {workdir}"
    require(isinstance(config, dict), f"{workdir / 'config.json'} holds {repr(there)[:40]}, {wanted}")
    try:
        return there | {"config": TrainConfig.of(workdir, config).identity()}
    except (UserError, KeyError, ValueError):
        return there


@contextlib.contextmanager
def _open_board(folder: Path) -> Iterator[EventsWriter]:
    try:
        folder.mkdir(exist_ok=True)
        board = EventsWriter(str(folder / "events"))
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error}") from error
    try:
        yield board
    finally:
        with contextlib.suppress(OSError):  # all is written, or it was said that it is not
            board.close()


def diagnostics(opt_state: Any, links: Sequence[str]) -> dict[str, float]:
    """What the optimizer saw on the last step that its method acted on; it costs nothing.

    Args:
      opt_state: the state of an optax chain.
      links: names of the chain's links that have diagnostics, in their order.
    """
    found = gam_jax.diagnostics(opt_state)
    values = jax.device_get(list(found.values()))
    names = [key.split("/") for key in found]
    link_of = dict(zip(dict.fromkeys(method for method, _ in names), links, strict=True))
    return {f"{link_of[method]}_{name}": float(value) for (method, name), value in zip(names, values, strict=True)}
