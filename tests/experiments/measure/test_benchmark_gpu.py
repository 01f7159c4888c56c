"""What the benchmarks for GPUs need, as far as a CPU can tell."""

import dataclasses
import re
import sys
import types

import jax
import jax.numpy as jnp
import pytest

from experiments.common.hlo import parse
from experiments.common.hlo_cost import matmul_flops
from experiments.common.store import read_json
from experiments.configs.benchmarks import BENCHMARKS
from experiments.main import main
from experiments.measure.cost import benchmark, peers
from experiments.measure.cost.cases import cases, train_config
from experiments.measure.cost.config import BenchmarkConfig
from experiments.measure.cost.stand_in import random_batch, set_up_without_data
from experiments.models.config import ModelConfig

TINY = {
    "gpu_resnet18": "--methods plain --resnet.width 0.0625 --image-size 8",
    "gpu_vit_s16": "--methods sam --vit.width 0.1 --vit.depth 1 --image-size 32",
}
VIT = ModelConfig(name="vit_s16", width=0.1, depth=2, dtype="bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_benchmark_for_gpus_starts(name, tmp_path):
    sizes = "--batch-size 8 --rounds 1 --warmup 0 --no-peers --intervals 1".split()
    assert main(["benchmark", "--config", name, "--workdir", str(tmp_path), *sizes, *TINY[name].split()]) == 0
    records = read_json(tmp_path / "benchmark.json")["records"]
    assert {record["network"] for record in records} == set(BENCHMARKS[name].networks)
    assert all(len(record["seconds"]["acting"]) == 1 for record in records)


def test_they_are_of_the_sizes_that_they_say():
    assert set(BENCHMARKS) == {"cpu", *TINY}
    shapes = {}
    for name in TINY:
        config = BENCHMARKS[name]
        train = train_config(config, config.networks[0])
        assert train.model.dtype == "bfloat16" and config.torch_compile and config.batch_size == 128
        shapes[train.model.name] = set_up_without_data(train).pipeline.data_set.image_shape
    assert shapes == {"resnet18": (32, 32, 3), "vit_s16": (224, 224, 3)}


def small_case(name):
    config = BenchmarkConfig(vit=VIT, data="imagenet", image_size=32, batch_size=8, methods=("gam",), intervals=(1,))
    batch = random_batch(set_up_without_data(train_config(config, "vit")).pipeline.data_set, 8)
    return next(case for case in cases(config, "vit") if case.name == name), batch


def test_exact_gam_needs_no_kernel_of_a_gpu():
    """Fused attention has no second derivative: the step for CUDA is made of XLA's own operations alone."""
    case, batch = small_case("GAM")
    traced = jax.jit(case.steps["acting"]).trace(jax.eval_shape(case.init), batch)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    called = set(re.findall(r"custom_call @(\w+)", text))
    assert "stablehlo.dot_general" in text and called <= {"cu_threefry2x32_ffi", "cu_threefry2x32"}, called


class Hidden:
    """A program of a GPU."""

    def as_text(self):
        return '  %y = f32[8,8] custom-call(%x, %w), custom_call_target="__cublas$gemm"'


def test_products_that_libraries_hide_are_counted_in_the_program_for_the_cpu():
    step = lambda state, batch: state @ batch  # noqa: E731
    state, batch = jax.ShapeDtypeStruct((3, 5), jnp.float32), jnp.zeros((5, 5))
    text = benchmark._countable(step, Hidden(), state, batch)
    assert parse(text).total(matmul_flops) == 2 * 3 * 5 * 5


def test_what_nothing_hides_is_not_compiled_again():
    class Open(Hidden):
        def as_text(self):
            return "a program"

    assert benchmark._countable(None, Open(), None, None) == "a program"


def test_steps_of_torch_compile_are_records_of_their_own(monkeypatch):
    """With PyTorch's FLOPs, which cannot be counted in a compiled network."""
    made = []

    def steps(model, batch, dtype, *, compiled):
        made.append((dtype, compiled))
        yield from {name: (lambda: None) for name in (["SGD"] if compiled else ["SGD", "GAM"])}.items()

    config = BenchmarkConfig(vit=ModelConfig(name="mlp", hidden=(4,)), data="digits", torch_compile=True)
    params, _ = set_up_without_data(train_config(config, "vit")).model.init(jax.random.key(0))
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    network = types.SimpleNamespace(parameters=lambda: [types.SimpleNamespace(numel=lambda: size)])
    fakes = {
        "torch_networks": types.SimpleNamespace(NETWORKS={"mlp": lambda *sizes: network}),
        "torch_peer": types.SimpleNamespace(steps=steps, flops=lambda run: 7.0),
    }
    for name, fake in fakes.items():
        monkeypatch.setitem(sys.modules, f"experiments.measure.cost.{name}", fake)
        monkeypatch.setattr(sys.modules["experiments.measure.cost"], name, fake, raising=False)
    monkeypatch.setattr(peers, "torch_version", lambda: "0")
    found = [record for record, _ in peers.torch_cases(config, "vit", None)]
    assert [(record["library"], record["case"]) for record in found] == [
        ("torch", "SGD"),
        ("torch", "GAM"),
        ("torch.compile", "SGD"),
    ]
    assert all(record["flops"] == {"acting": 7.0} for record in found)
    assert made == [("float32", False), ("float32", True)]


@pytest.mark.torch
def test_pytorch_compiles_what_it_differentiates_once():
    pytest.importorskip("torch", reason="needs the extra 'peers'")
    network = dataclasses.replace(VIT, depth=None)  # PyTorch's has its twelve layers
    config = BenchmarkConfig(vit=network, data="imagenet", image_size=32, batch_size=8, torch_compile=True)
    batch = random_batch(set_up_without_data(train_config(config, "vit")).pipeline.data_set, 8)
    ran = []
    for record, runner in peers.torch_cases(config, "vit", batch):
        runner.run()
        ran.append((record["library"], record["case"]))
    names = ["SGD", "SAM", "GAM, double backward", "GAM, four gradients"]
    compiled = [("torch.compile", name) for name in names if name != "GAM, double backward"]
    assert ran == [("torch", name) for name in names] + compiled
