"""The study: every method tuned with the same budget on validation images, then tested with fresh seeds."""

import contextlib
import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
import rich.progress

from experiments.common.errors import require
from experiments.common.provenance import provenance, session
from experiments.common.store import Record, Store, key, open_store, read_object, read_records, refuse_other
from experiments.data import DATA_SETS
from experiments.data.memory import Images, read
from experiments.few_shot.config import METHODS, FewShotConfig
from experiments.few_shot.episode import Episode, draw_episode, joined
from experiments.few_shot.learner import Learner, Trained
from experiments.optim.config import OptimConfig
from experiments.train.step import rank
from gam_jax import Prototypes, prototype_logits

KEY = ("kind", "method", "trial", "seed")
TUNING_SEED = 1000
"""The first of the seeds that hyper-parameters are chosen by."""
Numbers = dict[str, float]
"""Hyper-parameters by name."""


class Runner:
    """Does the runs of one study, one after the other; a base training that several share is done once."""

    def __init__(self, config: FewShotConfig):
        """Reads the data.

        Raises:
          UserError: if they are not there, or the network does not fit them.
        """
        self.config = config
        require(DATA_SETS[config.data.name].in_memory, f"{config.data.name} does not fit into memory")
        self.data_set = DATA_SETS[config.data.name].resized(config.data.image_size)
        self.sessions = self.data_set.num_classes - config.base_classes
        require(self.sessions > 0, f"base_classes={config.base_classes}, and {config.data.name} has no more classes")
        self._decoded = cast(Any, read(config.data))
        self._learner = Learner(config, self.data_set)
        self._train = functools.lru_cache(64)(self._trained)

    def run(self, method: str, numbers: Numbers, seed: int, part: str, sessions: Sequence[int]) -> Record:
        """Accuracies on a part of the data after each of these sessions, with the classes seen up to then.

        Over all these classes, over the base classes and over the new ones; None where there is none.
        """
        episode = self._episode(seed)
        images: Images = getattr(episode, part)
        scores: dict[str, list[float | None]] = {"accuracy": [], "base_accuracy": [], "new_accuracy": []}
        for number, net, prototypes in self._networks(method, numbers, seed, episode, sessions):
            features = self._learner.features(net, images.image)
            right = np.asarray(rank(prototype_logits(jnp.asarray(features), prototypes), images.label)) < 1
            seen, base = images.label < self.config.base_classes + number, images.label < self.config.base_classes
            for name, chosen in {"accuracy": seen, "base_accuracy": base, "new_accuracy": seen & ~base}.items():
                scores[name].append(float(right[chosen].mean()) if chosen.any() else None)
        return dict(scores)

    def _networks(
        self, method: str, numbers: Numbers, seed: int, episode: Episode, sessions: Sequence[int]
    ) -> Iterator[tuple[int, Trained, Prototypes]]:
        """The network and the prototypes after each session."""
        rates, bound = (numbers["learning_rate"], numbers["weight_decay"]), numbers.get("bound")
        learner = self._learner
        if method == "joint":
            for number in sessions:
                net = self._train(seed, *rates, None, number)
                yield number, net, learner.prototypes(net, episode.joint(number))
            return
        net = base = self._train(seed, *rates, bound, 0)
        prototypes = learner.prototypes(base, episode.base)
        for number in range(self.sessions + 1):
            if number > 0:
                new = episode.shots[number - 1]
                few = joined([episode.exemplars, *episode.shots[:number]])
                if method != "frozen":
                    net = learner.learn(method, net, base, few, prototypes, numbers)
                prototypes = learner.prototypes(net, new, prototypes)
            if number in sessions:
                yield number, net, prototypes

    def _trained(self, seed: int, rate: float, decay: float, bound: float | None, number: int) -> Trained:
        optim = OptimConfig(method="plain", learning_rate=rate, weight_decay=decay, momentum=self.config.momentum)
        return self._learner.train(self._episode(seed).joint(number), seed, optim, bound)

    def _episode(self, seed: int) -> Episode:
        size, classes = self.data_set.image_shape[0], self.data_set.num_classes
        return draw_episode(self.config, self._decoded, size, classes, seed)


def trials(config: FewShotConfig, method: str, base: Numbers) -> list[Numbers]:
    """The settings that a method tries: points of its grid, all or drawn at random, always the same; and the base's."""
    own = METHODS[method].own
    points = list(itertools.product(*(getattr(config, name) for name in own)))
    rng = np.random.default_rng([0, list(METHODS).index(method)])
    drawn = np.sort(rng.choice(len(points), config.trials, replace=False))
    return [base | dict(zip(own, points[i], strict=True)) for i in drawn]


def plan(config: FewShotConfig) -> list[Record]:
    """Every run, in order: the frozen base is tuned first, since the others take over what it chooses."""
    seeds = [TUNING_SEED + i for i in range(config.tuning_seeds)]
    return [
        {"kind": "tune", "method": method, "trial": trial, "seed": seed}
        for method in config.methods
        for trial in range(config.trials)
        for seed in seeds
    ] + [{"kind": "test", "method": method, "seed": seed} for seed in range(config.seeds) for method in config.methods]


def chosen(config: FewShotConfig, records: Sequence[Record], method: str) -> Numbers:
    """What a method is tested with: the trial with the best mean validation accuracy after the last session."""
    scores: dict[int, list[float]] = {}
    for record in records:
        if (record["kind"], record.get("method")) == ("tune", method):
            scores.setdefault(record["trial"], []).append(record["accuracy"][-1])
    best = max(sorted(scores), key=lambda trial: np.mean(scores[trial]))
    return candidates(config, records, method)[best]


def candidates(config: FewShotConfig, records: Sequence[Record], method: str) -> list[Numbers]:
    """The trials of a method, with what the frozen base chose."""
    return trials(config, method, {} if method == "frozen" else chosen(config, records, "frozen"))


def make_runner(config: FewShotConfig) -> Runner | None:
    """What does the runs; None for a finished study, which needs nothing. Call it before anything is written.

    Raises:
      UserError: if the data are not there, or something in the config does not fit the rest.
    """
    path = config.workdir / "results.jsonl"
    there = {key(record, KEY) for record in read_records(path)} if path.exists() else set()
    return None if all(key(task, KEY) in there for task in plan(config)) else Runner(config)


@contextlib.contextmanager
def open_study(config: FewShotConfig) -> Iterator[Store]:
    """The records of a study, in its folder.

    Raises:
      UserError: if the folder cannot be written, is in use, or holds another study.
    """
    about = {"made_with": provenance()}
    with open_store(config.workdir, {"config": config.identity()}, "results.jsonl", KEY, about=about) as store:
        yield store


def run_study(runner: Runner, store: Store, progress: rich.progress.Progress, command: str) -> None:
    """Does what the store does not hold yet, and appends each run as it ends.

    Raises:
      UserError: if other code made the runs that are there.
    """
    config = runner.config
    tasks = plan(config)
    waiting = [task for task in tasks if task not in store]
    refuse_other(config.workdir, {"made_with": store.about["made_with"]}, {"made_with": provenance()}, "--workdir")
    sessions = sum(record["kind"] == "session" for record in store.records)
    store.append({"kind": "session", "seed": sessions} | session(command))
    bar = progress.add_task("", total=len(tasks), completed=len(tasks) - len(waiting))
    for task in waiting:
        tunes, method = task["kind"] == "tune", task["method"]
        doing = "tuning" if tunes else "testing"
        progress.update(bar, description=f"{doing} {METHODS[method].label}, seed {task['seed']}")
        if tunes:
            numbers, last = candidates(config, store.records, method)[task["trial"]], runner.sessions
            scores = runner.run(method, numbers, task["seed"], "validation", [last])
        else:
            numbers = chosen(config, store.records, method)
            scores = runner.run(method, numbers, task["seed"], "test", range(runner.sessions + 1))
        store.append(task | {"hyperparameters": numbers} | scores)
        progress.advance(bar)


def read_study(folder: Path) -> tuple[FewShotConfig, list[Record]]:
    """A study and its records, from its folder."""
    config = FewShotConfig.of(folder, read_object(folder / "config.json")["config"])
    return config, read_records(folder / "results.jsonl")
