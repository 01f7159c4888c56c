"""A study of few-shot class-incremental learning as a config value."""

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

from experiments.common.errors import require, require_at_least, require_distinct, require_momentum
from experiments.common.identity import from_json, to_json
from experiments.data.config import DataConfig
from experiments.models.config import ModelConfig

MethodName = Literal["frozen", "fine_tuning", "f2m", "joint"]


class Method(NamedTuple):
    """A method.

    Attributes:
      label: as it stands in tables.
      color: in pictures.
      own: its hyper-parameters: fields of the config that hold the values to choose from.
    """

    label: str
    color: str
    own: tuple[str, ...]


METHODS: dict[str, Method] = {
    "frozen": Method("frozen base", "#555555", ("learning_rate", "weight_decay")),
    "fine_tuning": Method("fine-tuning", "#0072b2", ("session_learning_rate",)),
    "f2m": Method("F2M", "#d55e00", ("bound", "session_learning_rate")),
    "joint": Method("joint training", "#009e73", ("learning_rate", "weight_decay")),
}
"""In the order in which they are tuned: what the frozen base chooses for its training, the next two take over."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShotConfig:
    """Base classes with all their images, then one new class with a few images in every session."""

    workdir: Path = Path("runs", "few_shot")
    """Folder of the results. Started again on the same folder, the same command goes on where it stopped."""
    data: DataConfig = DataConfig(name="digits", validation=0.2, augment="none")
    """The data. Each seed draws its own validation images and order of the classes; the test set is always the same."""
    model: ModelConfig = ModelConfig(name="resnet20", depth=1, width=0.5)
    """The network below the features."""
    features: int = 32
    """Size of the features, of which class means are taken; the last layer of the network."""
    base_classes: int = 6
    """Classes of the base session; each later session has one more, until there are no others."""
    shots: int = 5
    """Images of a new class; as many are kept of each old one."""
    steps: int = 200
    """Training steps of the base session, and of each joint training; the rate falls to zero along a cosine."""
    batch_size: int = 60
    """Images in a step of these, every class alike."""
    momentum: float = 0.9
    """Momentum of SGD, everywhere."""
    session_steps: int = 6
    """Steps of a later session, each on all images that it has."""
    draws: int = 2
    """Draws of noise in a base step of F2M."""
    prototype_weight: float = 1.0
    """Weight of F2M's distance between the prototypes with noise and without."""
    spread: float = 0.0
    """Weight of the standard deviation over the draws; 2 in the released program, absent from the paper."""
    perturbed: tuple[str, ...] = ("blocks.1", "blocks.2")
    """Where the noise is, and what F2M trains later: the weights, of two axes or more, below these names."""
    learning_rate: tuple[float, ...] = (0.05, 0.1, 0.2)
    """Of the base session and of joint training; to choose from."""
    weight_decay: tuple[float, ...] = (5e-3, 2e-2, 5e-2)
    """Likewise."""
    bound: tuple[float, ...] = (0.003, 0.01, 0.05)
    """Of F2M's noise, whose entries are at most half of it; later sessions stay as near. To choose from."""
    session_learning_rate: tuple[float, ...] = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    """Of the later sessions; to choose from."""
    methods: tuple[MethodName, ...] = ("frozen", "fine_tuning", "f2m", "joint")
    """What to compare."""
    trials: int = 9
    """Hyper-parameter settings that each method may try, the same number for all."""
    tuning_seeds: int = 2
    """Seeds that each trial is judged on, by validation accuracy after the last session: 1000, 1001, ..."""
    seeds: int = 10
    """Seeds of the final runs: 0, 1, ..."""

    def __post_init__(self):
        require_at_least(self, 1, "features", "shots", "steps", "batch_size", "session_steps", "draws")
        require_at_least(self, 1, "trials", "tuning_seeds")
        require_at_least(self, 2, "base_classes")
        require(2 <= self.seeds <= 1000, f"seeds must be in 2 ... 1000 (a standard error needs 2), got {self.seeds}")
        require_momentum(self.momentum)
        require(self.data.validation > 0, "data.validation must be > 0, to choose hyper-parameters by, got 0")
        for name in ("noise", "split_seed"):
            require(getattr(self.data, name) == 0, f"data.{name} must be 0, got {getattr(self.data, name)}")
        require(self.data.augment == "none", f"data.augment must be none, got {self.data.augment}")
        for name in ("prototype_weight", "spread"):
            _require_numbers(name, (getattr(self, name),))
        require(self.spread == 0 or self.draws > 1, f"spread needs 2 draws or more, got draws={self.draws}")
        require_distinct("methods", self.methods)
        require(self.methods[0] == "frozen", f"methods must begin with frozen, got {self.methods}")
        for method in self.methods:
            for name in METHODS[method].own:
                require_distinct(name, getattr(self, name), "hold")
                _require_numbers(name, getattr(self, name))
            size = math.prod(len(getattr(self, name)) for name in METHODS[method].own)
            require(size >= self.trials, f"{method} has {size} settings for trials={self.trials}: widen its grid")

    def identity(self) -> dict[str, Any]:
        """Whatever decides the results, as JSON holds it: not where files lie."""
        return to_json(self, ("workdir", "data.folder", "data.workers"))

    @classmethod
    def of(cls, workdir: Path, identity: Any) -> "FewShotConfig":
        """The config with this identity, and for the rest the defaults."""
        return from_json(cls, identity, workdir=workdir)


def _require_numbers(name: str, values: tuple[float, ...]) -> None:
    require(all(math.isfinite(v) and v >= 0 for v in values), f"{name} must hold finite numbers >= 0, got {values}")
