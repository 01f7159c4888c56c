"""The numbers of a training run: JSON lines, TensorBoard files, and what the optimizer saw."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import tensorboardX

import gam_jax
from experiments.mesh import is_first
from experiments.provenance import provenance
from experiments.store import Record, Store, open_store

_ABOUT = ("kind", "step", "session")
"""What a record is about; there is at most one for each."""


class Metrics:
    """Writes each record to ``metrics.jsonl``, once and for all, and to TensorBoard.

    Only the first process has a store; in the others nothing is written.
    """

    def __init__(self, store: Store | None, board: tensorboardX.SummaryWriter | None):
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
        for name, value in record.items():
            if name != "epoch" and isinstance(value, float):
                self._board.add_scalar(f"{record['kind']}/{name}", value, record["step"])
        self._board.flush()

    def begin_session(self, step: int, session: Record, say: Callable[[str], None]) -> None:
        """Records with what, from which step on, the run goes on; says so if that is not what it was before."""
        sessions = [record for record in self.records if record["kind"] == "session"]
        made_with = provenance()
        before = sessions[-1]["made_with"] if sessions else made_with
        changed = [f"{k} {before.get(k)} -> {v}" for k, v in made_with.items() if before.get(k) != v]
        if changed:
            say(f"going on with other versions than before: {', '.join(changed)}")
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
    with open_store(workdir, {"config": config}, "metrics.jsonl", _ABOUT) as store:
        with tensorboardX.SummaryWriter(str(workdir / "tensorboard")) as board:
            yield Metrics(store, board)


def diagnostics(opt_state: Any, links: Sequence[str]) -> dict[str, float]:
    """What the optimizer saw on the last step that its method acted on; it costs nothing.

    Args:
      opt_state: the state of an optax chain.
      links: names of the chain's links that have diagnostics, in their order.
    """
    is_state = lambda leaf: isinstance(leaf, gam_jax.State)  # noqa: E731
    states = [leaf for leaf in jax.tree.leaves(opt_state, is_leaf=is_state) if is_state(leaf)]
    found = jax.device_get([state.diagnostics for state in states])
    return {
        f"{link}_{name}": float(value)
        for link, seen in zip(links, found, strict=True)
        for name, value in seen._asdict().items()
    }
