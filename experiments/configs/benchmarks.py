"""Benchmarks by name: what is measured where.

Command: python -m experiments.main benchmark --config gpu_resnet18 --workdir runs/gpu_resnet18

gpu_resnet18 and gpu_vit_s16 are of sizes that fill one GPU, in bfloat16, beside PyTorch with and without torch.compile.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from experiments.measure.cost.config import BenchmarkConfig
from experiments.models.config import ModelConfig

_GPU = BenchmarkConfig(batch_size=128, rounds=20, warmup=3, torch_compile=True)
BENCHMARKS = {
    "cpu": BenchmarkConfig(),
    "gpu_resnet18": dataclasses.replace(
        _GPU,
        workdir=Path("runs/benchmark_gpu_resnet18"),
        networks=("resnet",),
        resnet=ModelConfig(name="resnet18", dtype="bfloat16"),
    ),
    "gpu_vit_s16": dataclasses.replace(
        _GPU,
        workdir=Path("runs/benchmark_gpu_vit_s16"),
        networks=("vit",),
        vit=ModelConfig(name="vit_s16", dtype="bfloat16"),
        data="imagenet",
    ),
}
"""By name."""

if TYPE_CHECKING:
    BenchmarkName = str
else:
    BenchmarkName = Literal[tuple(BENCHMARKS)]  # what ``benchmark --config`` takes
