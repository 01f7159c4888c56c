"""A study that takes its hyper-parameters over from another one: the trials of that one become its own records."""

from collections.abc import Sequence
from typing import Any

from experiments.common.errors import UserError, require
from experiments.common.store import Record, Store, differences, read_object, read_records
from experiments.optim.recipes import recipe
from experiments.study.config import CompareConfig
from experiments.study.plan import key

_MAY_DIFFER = frozenset(
    """
    tuned_in methods seeds epochs batch_size measure measure_examples k probes rho ascent_steps restarts data.train_size
    data.validation data.split_seed
    """.split()
)


def adopt(config: CompareConfig, store: Store, tasks: Sequence[Record]) -> None:
    """Copies the trials of ``config.tuned_in`` into the store, those that are not there yet.

    A recipe that was not in that study takes over the trials of its method.

    Args:
      config: of the study that takes over.
      store: its records.
      tasks: its trials.

    Raises:
      UserError: if that study has not finished them, or differs in what they depend on.
    """
    place = config.tuned_in
    if place is None:
        return
    there = _decisive(read_object(place / "config.json").get("config"))
    differing = differences(there, _decisive(config.identity()))
    require(not differing, f"--tuned-in {place} tuned something else:\n" + "\n".join(differing))
    found = {key(record): record for record in read_records(place / "results.jsonl") if record.get("kind") == "tune"}
    for task in tasks:
        method, _, _, averaging = recipe(task["method"])
        same = task["method"] if averaging != "none" else method
        trial = found.get(key(task)) or found.get(key(task | {"method": same}))
        if trial is None:
            raise UserError(f"--tuned-in {place} has not finished this run: {task}")
        scores = [trial.get(name) for name in ("validation_accuracy", "validation_loss")]
        require(
            trial.get("diverged") is True or all(isinstance(score, float | int) for score in scores),
            f"--tuned-in {place} has no scores of this run: {task}",
        )
        if task not in store:
            store.append(trial | {"method": task["method"]})


def _decisive(identity: Any, prefix: str = "") -> Any:
    """The fields of a study's identity that its trials may not differ in."""
    if not isinstance(identity, dict):
        return identity
    decisive = {name: value for name, value in identity.items() if prefix + name not in _MAY_DIFFER}
    return decisive if prefix else {**decisive, "data": _decisive(decisive.get("data"), "data.")}
