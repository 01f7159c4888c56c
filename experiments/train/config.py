"""One training run: data, network, optimizer, and everything around them."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from experiments.common.errors import require, require_at_least, require_seed
from experiments.common.identity import from_json, to_json
from experiments.data.config import DataConfig
from experiments.models.config import ModelConfig
from experiments.optim.config import Averaging as Averaging
from experiments.optim.config import OptimConfig, check_optim

LossName = Literal["softmax", "sigmoid"]
"""Of all classes together, or a yes or no for each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DevicesConfig:
    """Where a run computes; it changes how fast, not what (but for rounding)."""

    fsdp: int = 1
    """Above 1, parameters and optimizer state are divided: those of a ViT among all devices, which gather them layer by
    layer, along one side of a mesh with so many columns after the other (4 for a TPU slice of 4x4); those of other
    networks among so many devices, of which the others hold copies, and XLA moves them as it will."""
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
    loss: LossName = "softmax"
    """What is minimised: the cross-entropy of the softmax, or of a sigmoid for each class, summed over the classes.
    Evaluations always report the former."""
    mixup: float = 0.0
    """Mix each image of a batch with another one, by a share drawn from Beta(mixup, mixup); 0 mixes nothing."""
    averaging: Averaging = "none"
    """In place of the last iterates take: swad: the average of those that the validation loss chooses; ema: the
    exponential moving average."""
    ema_decay: float = 0.9999
    """Of the weight of an iterate in the moving average, in a step."""
    seed: int = 0
    """Decides label noise, initial parameters, the order of the examples and their augmentation."""
    eval_epochs: int = 1
    """Evaluate after every so many epochs, and at the end."""
    log_every: int = 100
    """Write the training loss every so many steps, and at the end of each epoch."""
    eigenvalue_every: int | None = None
    """Follow the top eigenvalue of the Hessian of the training loss, every so many steps, on the first batch_size
    training images without augmentation. Each time costs 9 gradients of a batch, the first time 45."""
    devices: DevicesConfig = DevicesConfig()
    """Where to compute."""
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    """When to save."""
    profile: bool = False
    """Write what the devices do in the 10th to 12th step of this start into the folder profile, for TensorBoard or
    xprof."""

    def __post_init__(self):
        require_at_least(self, 1, "epochs", "batch_size", "eval_epochs", "log_every")
        require_seed("seed", self.seed)
        if self.steps is not None:
            require_at_least(self, 1, "steps")
        if self.eigenvalue_every is not None:
            require_at_least(self, 1, "eigenvalue_every")
        require(
            0 <= self.label_smoothing < 1,
            f"label_smoothing must be a probability in [0, 1), got {self.label_smoothing}",
        )
        require(
            self.averaging != "swad" or self.data.validation > 0,
            "averaging='swad' chooses by the validation loss: data.validation must be above 0, got 0",
        )
        require(math.isfinite(self.mixup) and self.mixup >= 0, f"mixup must be a finite number >= 0, got {self.mixup}")
        require(0 <= self.ema_decay < 1, f"ema_decay must be in [0, 1), got {self.ema_decay}")
        require(
            self.averaging == "ema" or self.ema_decay == TrainConfig.ema_decay,
            f"averaging={self.averaging!r} has no ema_decay, got {self.ema_decay}",
        )
        check_optim(self.optim)

    @property
    def title(self) -> str:
        """Method, network and data, wrong labels included."""
        noise = f", {self.data.noise:.0%} of the training labels wrong" if self.data.noise else ""
        return f"{self.optim.label}, {self.model.name}, {self.data.name}{noise}"

    def identity(self) -> dict[str, Any]:
        """Whatever decides the results, as JSON holds it: not where files lie, nor where it is computed."""
        return to_json(self, ("workdir", "devices", "checkpoints", "profile", "data.folder", "data.workers"))

    @classmethod
    def of(cls, workdir: Path, identity: Any) -> "TrainConfig":
        """The config with this identity, and for the rest the defaults."""
        return from_json(cls, identity, workdir=workdir)
