"""A study: a comparison of methods on one task, each tuned with the same budget."""

import dataclasses
import math
from pathlib import Path
from typing import Any, Literal

from experiments.common.errors import nearest, require, require_at_least, require_distinct, require_fraction
from experiments.common.identity import from_json, to_json
from experiments.data.config import SPLIT_PER_SEED, DataConfig
from experiments.models.config import ModelConfig
from experiments.optim.config import OptimConfig
from experiments.optim.methods import Base, Method
from experiments.optim.recipes import ENTRANTS, RecipeName, hyperparameters, recipe
from experiments.train.config import TrainConfig

Quantity = Literal["eigenvalues", "trace", "flatness"]
"""What can be measured of a trained network beside its accuracy: of the Hessian; R0 and R1."""


@dataclasses.dataclass(frozen=True)
class GridConfig:
    """Values that the hyper-parameters are chosen from. Each method uses those that it has."""

    learning_rate: tuple[float, ...]
    """Peak learning rate; cosine to 0."""
    weight_decay: tuple[float, ...]
    """With sgd added to the gradient after the method, biases included; with adamw decoupled, of matrices only."""
    sam_rho: tuple[float, ...] = ()
    """Radius of SAM and its kin."""
    gam_rho: tuple[float, ...] = ()
    """Radius of GAM and its kin."""
    gam_alpha: tuple[float, ...] = ()
    """Weight of GAM's flatness term; alpha of accelerated GAM and of FAD."""
    beta: tuple[float, ...] = ()
    """Weight beta of accelerated GAM and of FAD."""
    gamma: tuple[float, ...] = ()
    """Weight of the orthogonal component in accelerated GAM and in GSAM."""
    strength: tuple[float, ...] = ()
    """Weight of the gradient-norm penalty, and of C-Flat's term."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            values = getattr(self, field.name)
            if values or field.default is dataclasses.MISSING:
                require_distinct(f"grid.{field.name}", values, "hold")
            require(
                all(math.isfinite(v) and v >= 0 for v in values),
                f"grid.{field.name} must hold finite numbers >= 0, got {values}",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """A comparison of methods, each tuned with the same budget on validation data, then tested once.

    Data, network and base optimizer are those of ``train``: with the same numbers and seed it trains the same network.
    """

    workdir: Path
    """Folder of the results. Started again on the same folder, the same command goes on where it stopped."""
    data: DataConfig
    """The data and its split; of the digits each seed draws its own split, of pacs it holds another domain out in
    turn, of the others it is always the same."""
    model: ModelConfig
    """The network."""
    grid: GridConfig
    """Values to choose the hyper-parameters from."""
    epochs: int
    """Passes over the training images."""
    batch_size: int = 128
    """Images in a step."""
    label_smoothing: float = 0.0
    """Probability that the target gives to the other classes, spread evenly over them."""
    base: Base = "sgd"
    """The base optimizer, under every method; the method plain is the base optimizer alone."""
    momentum: float = 0.9
    """Momentum of sgd, or the first decay rate of adamw."""
    warmup: float = 0.0
    """Fraction of the steps in which the learning rate rises linearly to its peak."""
    methods: tuple[Method | RecipeName, ...] = ("plain", "sam", "gam", "sam+gam")
    """What to compare: methods, and recipes that make them cheaper."""
    noise: tuple[float, ...] = (0.0,)
    """Fractions of the training labels that are replaced by a wrong one."""
    trials: int = 16
    """Hyper-parameter settings that each method may try, the same number for all."""
    base_first: bool = False
    """Tune learning rate and weight decay with the first method alone, which tries all of its grid; the others take
    them over, and spend their trials on what is their own. If not, every method tunes all that it has."""
    tuned_in: Path | None = None
    """Folder of a finished study that chooses the hyper-parameters in place of trials of this one. The studies may
    differ in the size and split of the data, the epochs, the seeds and what is measured. A recipe that was not
    compared there takes over the trials of its method."""
    tuning_seeds: int = 2
    """Seeds that each trial is judged on: 1000, 1001, ..."""
    seeds: int = 8
    """Seeds of the final runs: 0, 1, ..."""
    measure: tuple[Quantity, ...] = ()
    """What to measure of each final run, at half-time and at the end."""
    measure_examples: int = 1000
    """The first so many training images are what is measured on, without augmentation."""
    k: int = 1
    """Number of top Hessian eigenvalues."""
    probes: int = 100
    """Random vectors for the trace of the Hessian."""
    rho: tuple[float, ...] = (0.05, 0.1, 0.2)
    """Radii of R0 and R1."""
    ascent_steps: int = 20
    """Ascent steps of R0 and R1 from each start, at most."""
    restarts: int = 3
    """Random starts of the ascent, beside the one at the parameters."""
    workers: int | None = None
    """Processes that train at the same time, one on each core; if not given, as many as there are cores to use."""

    def __post_init__(self):
        require_at_least(self, 1, "trials", "tuning_seeds", "measure_examples", "k", "ascent_steps", "restarts")
        require_at_least(self, 2, "probes")
        if self.workers is not None:
            require_at_least(self, 1, "workers")
        require(2 <= self.seeds <= 1000, f"seeds must be in 2 ... 1000 (a standard error needs 2), got {self.seeds}")
        require(
            self.data.noise == 0, f"a comparison takes its levels in noise: data.noise must be 0, got {self.data.noise}"
        )
        require(self.data.validation > 0, "data.validation must be > 0, to choose hyper-parameters by, got 0")
        require(
            self.model.pretrained is None,
            f"a comparison trains from random weights: model.pretrained must not be given, got {self.model.pretrained}",
        )
        for noise in self.noise:
            require_fraction("noise", noise)
        for method in self.methods:
            require(method in ENTRANTS, f"unknown method {method!r}{nearest(method, ENTRANTS)}")
            for name in hyperparameters(method):
                require(len(getattr(self.grid, name)) > 0, f"grid.{name} has no values, and {method!r} needs some")
        require_distinct("methods", self.methods)
        require_distinct("noise", self.noise)
        if self.measure:
            require_distinct("measure", self.measure)
        require_distinct("rho", self.rho, "hold")
        require(all(math.isfinite(r) and r > 0 for r in self.rho), f"rho must hold finite numbers > 0, got {self.rho}")

    def run(self, name: str, optim: OptimConfig, noise: float, seed: int) -> TrainConfig:
        """The training run of a method with these hyper-parameters, this share of wrong labels and this seed."""
        split_seed = seed if self.data.name in SPLIT_PER_SEED else self.data.split_seed
        return TrainConfig(
            workdir=self.workdir,
            data=dataclasses.replace(self.data, noise=noise, split_seed=split_seed),
            model=self.model,
            optim=optim,
            epochs=self.epochs,
            batch_size=self.batch_size,
            label_smoothing=self.label_smoothing,
            averaging=recipe(name).averaging,
            seed=seed,
        )

    def identity(self) -> dict[str, Any]:
        """Whatever decides the results, as JSON holds it: not where files lie, nor on how many cores it runs."""
        fields = to_json(self, ("workdir", "workers", "data.folder", "data.workers"))
        return fields if self.tuned_in is None else fields | {"tuned_in": self.tuned_in.name}

    @classmethod
    def of(cls, workdir: Path, identity: Any) -> "CompareConfig":
        """The config with this identity, and for the rest the defaults."""
        return from_json(cls, identity, workdir=workdir)
