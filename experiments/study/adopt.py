"""A study that takes its hyper-parameters over from another one: the trials of that one become its own records."""

from collections.abc import Sequence
from typing import Any

from experiments.common.errors import UserError, require
from experiments.common.store import Record, Store, differences, read_json, read_records
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
    there = read_json(place / "config.json")
    differing = differences(_decisive(there["config"]), _decisive(config.identity()))
    require(not differing, f"--tuned-in {place} tuned something else:\n" + "\n".join(differing))
    found = {key(record): record for record in read_records(place / "results.jsonl") if record["kind"] == "tune"}
    for task in tasks:
        method, _, _, averaging = recipe(task["method"])
        same = task["method"] if averaging != "none" else method
        trial = found.get(key(task)) or found.get(key(task | {"method": same}))
        if trial is None:
            raise UserError(f"--tuned-in {place} has not finished this run: {task}")
        if task not in store:
            store.append(trial | {"method": task["method"]})


def _decisive(identity: dict[str, Any]) -> dict[str, Any]:
    """The fields of a study's identity that its trials may not differ in."""
    data = {name: value for name, value in identity["data"].items() if f"data.{name}" not in _MAY_DIFFER}
    return {name: value for name, value in identity.items() if name not in _MAY_DIFFER} | {"data": data}
