"""Typed, frozen configurations. Wrong values are refused here, before any work is done."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from experiments.optim import HYPERPARAMETERS, METHODS, TUNABLE, Method, OptimConfig, nearest


class UserError(ValueError):
    """Something that the user can put right; printed without a traceback."""


class Stopped(Exception):
    """A run was asked to stop (SIGTERM), and its state is saved."""


def require(condition: bool, message: str) -> None:
    """Raises :class:`UserError` with the message unless the condition holds."""
    if not condition:
        raise UserError(message)


def require_distinct(name: str, values: tuple[Any, ...], verb: str = "name") -> None:
    """Raises :class:`UserError` unless there are values, and no two the same."""
    require(
        len(values) > 0 and len(set(values)) == len(values),
        f"{name} must {verb} distinct values, at least one, got {values}",
    )


def require_at_least(config: Any, least: int, *names: str, prefix: str = "") -> None:
    """Raises :class:`UserError` unless each of these fields is that large."""
    for name in names:
        value = getattr(config, name)
        require(value >= least, f"{prefix}{name} must be at least {least}, got {value}")


def _require_fraction(name: str, value: float) -> None:
    require(0 <= value <= 1, f"{name} must be a fraction in [0, 1], got {value} (30 % is 0.3)")


def _require_momentum(momentum: float) -> None:
    require(0 <= momentum < 1, f"momentum must be in [0, 1), got {momentum}")


@dataclasses.dataclass(frozen=True)
class DigitsConfig:
    """scikit-learn's handwritten digits: 1797 images of 8 x 8 pixels."""

    test_size: int = 797
    """Images of the fixed test set."""
    train_size: int = 400
    """Training images, drawn for each seed from the rest; what then remains is its validation set."""
    split_seed: int = 0
    """Which images are the test set."""


DataName = Literal["digits", "fashion_mnist", "cifar10", "cifar100", "imagenet", "cars", "pets", "food101"]
"""Data sets that a network can be trained on."""
Augmentation = Literal["none", "basic", "cutout", "randaugment", "autoaugment"]
"""Of training images: nothing; random crop and flip; and on top of these Cutout, RandAugment, AutoAugment."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """A data set, its split, its wrong labels, and its augmentation."""

    name: DataName
    """The data set."""
    folder: Path | None = None
    """Where tfds keeps its data sets; if not given, the environment variable TFDS_DATA_DIR, then tfds' own default."""
    validation: float = 0.1
    """Fraction of the training images that is set aside to choose by; with 0 nothing is, and the test set decides."""
    train_size: int | None = None
    """Train on only this many of the remaining training images."""
    noise: float = 0.0
    """Fraction of the training labels that is replaced by a wrong one, each other class equally likely."""
    augment: Augmentation = "basic"
    """Augmentation of training images."""
    image_size: int | None = None
    """Resize images to this height and width; if not given, the size that the data set has."""
    split_seed: int = 0
    """Which images are set aside, and which are trained on where train_size is given."""
    workers: int = 0
    """Processes that decode images, for data sets that do not fit into memory; with 0, threads of this one."""

    def __post_init__(self):
        _require_fraction("data.noise", self.noise)
        _require_fraction("data.validation", self.validation)
        require(self.validation < 1, f"data.validation must leave something to train on, got {self.validation}")
        require_at_least(self, 0, "split_seed", "workers", prefix="data.")
        for name in ("train_size", "image_size"):
            if getattr(self, name) is not None:
                require_at_least(self, 1, name, prefix="data.")


ModelName = Literal[
    "mlp",
    "resnet18",
    "resnet20",
    "resnet50",
    "resnet101",
    "wrn28_2",
    "wrn28_10",
    "pyramidnet110",
    "resnext",
    "vit",
    "vit_s32",
    "vit_b32",
    "efficientnet_b0",
    "swin_t",
]
"""Networks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A network. An option that a network does not have is refused."""

    name: ModelName
    """The network."""
    width: float = 1.0
    """Factor on the number of channels; 1 is the published network."""
    hidden: tuple[int, ...] = (128, 128)
    """Widths of the hidden layers of mlp."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the computation; parameters, statistics and logits are float32."""
    remat: bool = False
    """Compute the activations of each block anew in the backward pass, for less memory."""
    dropout: float = 0.0
    """Probability of dropping a feature before the classifier."""
    drop_path: float = 0.0
    """Probability of dropping the last residual branch; linearly less for the ones before it."""
    pretrained: Path | None = None
    """Start from the weights in this .safetensors file."""

    def __post_init__(self):
        require(math.isfinite(self.width) and self.width > 0, f"model.width must be a number > 0, got {self.width}")
        require(all(n >= 1 for n in self.hidden), f"model.hidden must hold widths >= 1, got {self.hidden}")
        for name in ("dropout", "drop_path"):
            value = getattr(self, name)
            require(0 <= value < 1, f"model.{name} must be a probability in [0, 1), got {value}")


@dataclasses.dataclass(frozen=True)
class GridConfig:
    """Values that the hyper-parameters are chosen from. Each method uses those that it has."""

    learning_rate: tuple[float, ...]
    """Peak learning rate; cosine to 0."""
    weight_decay: tuple[float, ...]
    """Added to the gradient after SAM and GAM, biases included."""
    sam_rho: tuple[float, ...]
    """Radius of SAM."""
    gam_rho: tuple[float, ...]
    """Radius of GAM."""
    gam_alpha: tuple[float, ...]
    """Weight of GAM's flatness term."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            values = getattr(self, field.name)
            require_distinct(f"grid.{field.name}", values, "hold")
            require(
                all(math.isfinite(v) and v >= 0 for v in values),
                f"grid.{field.name} must hold finite numbers >= 0, got {values}",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """A comparison of methods, each tuned with the same budget on validation data, then tested once."""

    workdir: Path
    """Folder of the results. Started again on the same folder, the same command goes on where it stopped."""
    grid: GridConfig
    """Values to choose the hyper-parameters from."""
    data: DigitsConfig = DigitsConfig()
    """The data and its split."""
    hidden: tuple[int, ...] = (128, 128)
    """Widths of the hidden layers."""
    epochs: int = 75
    """Passes over the training images."""
    batch_size: int = 50
    """Images in a step; must divide the number of training images."""
    methods: tuple[Method, ...] = ("plain", "sam", "gam", "sam+gam")
    """What to compare; plain is SGD alone."""
    noise: tuple[float, ...] = (0.0, 0.3)
    """Fractions of the training labels that are replaced by a wrong one."""
    momentum: float = 0.9
    """Momentum of SGD, under every method."""
    trials: int = 16
    """Hyper-parameter settings that each method may try, the same number for all."""
    tuning_seeds: int = 2
    """Seeds that each trial is judged on: 1000, 1001, ..."""
    seeds: int = 8
    """Seeds of the final runs: 0, 1, ..."""

    def __post_init__(self):
        require_at_least(self, 1, "epochs", "batch_size", "trials", "tuning_seeds")
        require(all(n >= 1 for n in self.hidden), f"hidden must hold widths >= 1, got {self.hidden}")
        require(
            self.data.train_size % self.batch_size == 0,
            f"batch_size must divide data.train_size, got batch_size={self.batch_size} and "
            f"train_size={self.data.train_size}",
        )
        require(2 <= self.seeds <= 1000, f"seeds must be in 2 ... 1000 (a standard error needs 2), got {self.seeds}")
        _require_momentum(self.momentum)
        for noise in self.noise:
            _require_fraction("noise", noise)
        for method in self.methods:
            require(method in METHODS, f"unknown method {method!r}{nearest(method, METHODS)}")
            for name in HYPERPARAMETERS[method]:
                require(hasattr(self.grid, name), f"the grid has no values of {name}, which {method!r} needs")
        require_distinct("methods", self.methods)
        require_distinct("noise", self.noise)

    @property
    def steps(self) -> int:
        """Training steps of one run."""
        return self.epochs * self.data.train_size // self.batch_size

    def identity(self) -> dict[str, Any]:
        """Whatever decides the results, as JSON holds it: everything but the folder."""
        fields = dataclasses.asdict(self)
        del fields["workdir"]
        return fields


Averaging = Literal["none", "swad"]
"""What to do with the iterates: take the last one, or average them (gam_jax.averaging.swad)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DevicesConfig:
    """Where a run computes; it changes how fast, not what (but for rounding)."""

    fsdp: int = 1
    """Devices among which parameters and optimizer state are divided; the others hold copies of them."""
    multihost: bool = False
    """This is one of several processes. TPU pods, Slurm and Open MPI are recognised; elsewhere set the environment
    variables JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID."""
    heartbeat_seconds: int = 100
    """After so long without a sign of life from one process, the others stop."""

    def __post_init__(self):
        require_at_least(self, 1, "fsdp", "heartbeat_seconds", prefix="devices.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointsConfig:
    """When to save, and what to keep. The state at half-time, at the end and at the best epoch is always kept."""

    every: int | None = None
    """Save every so many steps, beside the end of each evaluated epoch."""
    keep: int = 2
    """Number of latest checkpoints to keep."""

    def __post_init__(self):
        require_at_least(self, 1, "keep", prefix="checkpoints.")
        if self.every is not None:
            require_at_least(self, 1, "every", prefix="checkpoints.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run with one method."""

    workdir: Path
    """Folder of the results. Started again on the same folder, the same command goes on where it stopped."""
    data: DataConfig
    """The data."""
    model: ModelConfig
    """The network."""
    optim: Annotated[OptimConfig, tyro.conf.arg(name="")]
    """The method and its hyper-parameters."""
    epochs: int
    """Passes over the training images."""
    batch_size: int = 128
    """Images in a step, over all devices."""
    steps: int | None = None
    """Stop after so many steps, in place of epochs."""
    label_smoothing: float = 0.0
    """Probability that the target gives to the other classes, spread evenly over them."""
    averaging: Averaging = "none"
    """swad: take the average of the iterates that the validation loss chooses, in place of the last ones."""
    seed: int = 0
    """Decides label noise, initial parameters, the order of the examples and their augmentation."""
    eval_epochs: int = 1
    """Evaluate after every so many epochs, and at the end."""
    log_every: int = 100
    """Write the training loss every so many steps, and at the end of each epoch."""
    devices: DevicesConfig = DevicesConfig()
    """Where to compute."""
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    """When to save."""

    def __post_init__(self):
        require_at_least(self, 1, "epochs", "batch_size", "eval_epochs", "log_every")
        require_at_least(self, 0, "seed")
        if self.steps is not None:
            require_at_least(self, 1, "steps")
        require(
            0 <= self.label_smoothing < 1,
            f"label_smoothing must be a probability in [0, 1), got {self.label_smoothing}",
        )
        require(
            self.averaging == "none" or self.data.validation > 0,
            "averaging='swad' chooses by the validation loss: data.validation must be above 0, got 0",
        )
        _check_optim(self.optim)

    def identity(self) -> dict[str, Any]:
        """Whatever decides the results, as JSON holds it: not where files lie, nor where it is computed."""
        fields = json.loads(json.dumps(dataclasses.asdict(self), default=str))
        for name in ("workdir", "devices", "checkpoints"):
            del fields[name]
        for name in ("folder", "workers"):
            del fields["data"][name]
        return fields

    @classmethod
    def of(cls, workdir: Path, identity: dict[str, Any]) -> "TrainConfig":
        """The config with this identity, and for the rest the defaults."""
        model = dict(identity["model"])
        model["hidden"] = tuple(model["hidden"])
        model["pretrained"] = None if model["pretrained"] is None else Path(model["pretrained"])
        rebuilt: dict[str, Any] = {
            "data": DataConfig(**identity["data"]),
            "model": ModelConfig(**model),
            "optim": OptimConfig(**identity["optim"]),
        }
        return cls(**{**identity, **rebuilt, "workdir": workdir})


def _check_optim(optim: OptimConfig) -> None:
    names = HYPERPARAMETERS[optim.method]
    for field in dataclasses.fields(OptimConfig):
        name, value = field.name, getattr(optim, field.name)
        if name in names:
            require(value is not None, f"{optim.method!r} needs {name}")
            require(math.isfinite(value) and value >= 0, f"{name} must be a finite number >= 0, got {value}")
        elif name in TUNABLE:
            require(value is None, f"{optim.method!r} has no {name}: its hyper-parameters are {', '.join(names)}")
    _require_momentum(optim.momentum)
    require(0 <= optim.warmup < 1, f"warmup must be a fraction of the steps in [0, 1), got {optim.warmup}")
    require_at_least(optim, 1, "interval")
    require(
        optim.method != "plain" or (optim.interval, optim.rho_schedule) == (1, "constant"),
        f"'plain' has no interval and no rho_schedule, got {optim.interval} and {optim.rho_schedule!r}",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """What every measurement of trained networks has."""

    checkpoint: tuple[Path, ...]
    """Folders of training runs, for their last checkpoint, or of checkpoints (DIR/checkpoints/STEP)."""
    output: Path
    """Folder of the results. Started again on the same folder, the same command goes on where it stopped."""
    seed: int = 0
    """Of the random directions and probes; every checkpoint gets the same."""

    def __post_init__(self):
        require_distinct("checkpoint", tuple(map(str, self.checkpoint)))
        require_at_least(self, 0, "seed")

    def identity(self) -> dict[str, Any]:
        """Whatever decides the numbers of one checkpoint, as JSON holds it."""
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if name not in ("checkpoint", "output")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlatnessConfig(MeasureConfig):
    """Measures of flatness, of the mean loss over the whole training set with the labels that were trained on."""

    rho: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    """Radii of R0, the largest increase of the loss, and R1, rho times the largest gradient norm."""
    ascent_steps: int = 100
    """Ascent steps from each start, at most."""
    restarts: int = 9
    """Random starts of the ascent, beside the one at the parameters; the largest maximum found counts."""
    k: int = 50
    """Number of top Hessian eigenvalues."""
    trace_probes: int = 100
    """Random vectors for the trace of the Hessian."""
    density_probes: int = 10
    """Random vectors for the spectral density."""
    density_steps: int = 80
    """Lanczos steps for each of them."""
    directions: int = 100
    """Random directions along which local minima are counted, in 10 steps of 0.01."""

    def __post_init__(self):
        super().__post_init__()
        require_distinct("rho", self.rho)
        require(all(math.isfinite(r) and r > 0 for r in self.rho), f"rho must hold finite numbers > 0, got {self.rho}")
        require_at_least(self, 1, "ascent_steps", "restarts", "k", "density_steps")
        require_at_least(self, 2, "trace_probes", "density_probes", "directions")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LandscapeConfig(MeasureConfig):
    """Slices of the training loss along random filter-normalised directions, the same for every checkpoint."""

    points: int = 51
    """Points along each axis; odd, so that the middle one is the network."""
    radius: float = 1.0
    """Where the axes end; at 1 a direction is as long as the weights, filter by filter."""
    directions: int = 10
    """Number of one-dimensional slices. The two-dimensional one is along the first two directions."""

    def __post_init__(self):
        super().__post_init__()
        require(self.points >= 3 and self.points % 2 == 1, f"points must be odd and at least 3, got {self.points}")
        require_at_least(self, 2, "directions")
        require(math.isfinite(self.radius) and self.radius > 0, f"radius must be > 0, got {self.radius}")
