"""What the benchmark and the ahead-of-time compilation are asked for."""

import dataclasses
from pathlib import Path
from typing import Literal, get_args

from experiments.common.errors import require, require_at_least, require_distinct
from experiments.data.config import DataConfig, DataName
from experiments.models.config import ModelConfig, ModelName
from experiments.optim.methods import METHODS, Method
from gam_jax import HvpMode

HVP_MODES: tuple[HvpMode, ...] = get_args(HvpMode)
Network = Literal["vit", "resnet"]
"""The two kinds of networks that costs are shown for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What a training step costs, for every method, beside SGD's."""

    workdir: Path = Path("runs/benchmark")
    """Folder of the results; those of an earlier benchmark are replaced."""
    networks: tuple[Network, ...] = ("vit", "resnet")
    """Networks."""
    vit: ModelConfig = ModelConfig(name="vit", width=1 / 3)
    """The transformer."""
    resnet: ModelConfig = ModelConfig(name="resnet20", width=0.5)
    """The convolutional network."""
    data: DataName = "cifar10"
    """The data set that the images are shaped like; their pixels are random."""
    image_size: int | None = None
    """Height and width of the images; if not given, those of the data set."""
    batch_size: int = 16
    """Images in a step."""
    methods: tuple[Method, ...] = tuple(METHODS)
    """Methods; SGD is measured in any case."""
    hvp: tuple[HvpMode, ...] = HVP_MODES
    """Ways to compute GAM's Hessian-vector products."""
    intervals: tuple[int, ...] = (1, 10)
    """A method acts on every so many-th step."""
    num_microbatches: int = 8
    """Parts of the batch in the case of gam_value_and_grad that accumulates."""
    rounds: int = 8
    """Rounds of timing; each runs a step of every case, after one that does not count. With 0 there are counts only."""
    warmup: int = 1
    """Rounds before these, which do not count."""
    peers: bool = True
    """Also measure optax.contrib.sam, and PyTorch where it is installed (extra `peers`)."""
    torch_compile: bool = False
    """Also measure PyTorch's steps with the network compiled by torch.compile, which cannot be differentiated twice."""

    def __post_init__(self):
        require_distinct("networks", self.networks)
        require_distinct("intervals", self.intervals, "hold")
        require(all(k >= 1 for k in self.intervals), f"intervals must hold numbers >= 1, got {self.intervals}")
        require_at_least(self, 1, "batch_size", "num_microbatches")
        require_at_least(self, 0, "rounds", "warmup")
        require(
            self.batch_size % self.num_microbatches == 0,
            f"num_microbatches must divide batch_size, got {self.num_microbatches} and {self.batch_size}",
        )

    def data_config(self) -> DataConfig:
        """The data whose shapes are taken."""
        return DataConfig(name=self.data, image_size=self.image_size, augment="none")


Perturbation = Literal["global", "per_replica"]
"""With the gradient of the whole batch, or on each device with that of its own examples."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AotConfig:
    """The step of a training run, compiled for a TPU slice."""

    config: str
    """The training run."""
    model: ModelConfig
    """Its network."""
    batch_size: int
    """Images in a step, over all chips."""
    topology: str = "v5e:16x16"
    """Generation and shape of the slice."""
    methods: tuple[Method, ...] = ("plain", "sam", "gam")
    """Methods."""
    perturbation: tuple[Perturbation, ...] = ("global", "per_replica")
    """How methods perturb where parameters are copied to all chips; where they are divided it is global."""
    hvp: HvpMode = "linearize"
    """How GAM's Hessian-vector products are computed."""
    fsdp: tuple[int, ...] = (1,)
    """As devices.fsdp; 1 copies parameters and optimizer state to all chips."""
    workdir: Path = Path("runs/aot")
    """Folder of the report; an earlier one is replaced."""

    def __post_init__(self):
        for name in ("methods", "perturbation", "fsdp"):
            require_distinct(name, getattr(self, name))
        require(all(n >= 1 for n in self.fsdp), f"fsdp must hold numbers >= 1, got {self.fsdp}")
        require_at_least(self, 1, "batch_size")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AotGridConfig:
    """The step of a training run over a grid, each cell compiled for a TPU slice. The first list changes slowest."""

    config: str = "imagenet_vit_b32"
    """The training run, whose network is replaced by each of the following."""
    networks: tuple[ModelName, ...] = ("vit_b32", "vit_b16", "vit_l16")
    """Networks."""
    topologies: tuple[str, ...] = ("v5e:4x4", "v5e:16x16", "v6e:16x16")
    """Generations and shapes of the slices."""
    images: tuple[int, ...] = (16, 64, 128)
    """Images in a step, on each chip."""
    methods: tuple[Method, ...] = ("plain", "sam", "accelerated_gam", "gam")
    """Methods."""
    fsdp: tuple[int, ...] = (1,)
    """Chips among which parameters and optimizer state are divided; 1 copies them to all."""
    hvp: HvpMode = "linearize"
    """How GAM's Hessian-vector products are computed."""
    workdir: Path = Path("runs/aot_grid")
    """Folder of the records and the report. Cells that have a record there are not compiled again."""

    def __post_init__(self):
        for name in ("networks", "topologies", "images", "methods", "fsdp"):
            require_distinct(name, getattr(self, name))
        for name in ("images", "fsdp"):
            numbers = getattr(self, name)
            require(all(n >= 1 for n in numbers), f"{name} must hold numbers >= 1, got {numbers}")
