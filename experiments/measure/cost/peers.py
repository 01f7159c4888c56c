"""PyTorch beside JAX, where it is installed: the same network, each method relative to PyTorch's own SGD step."""

import importlib.metadata
import importlib.util
from collections.abc import Iterator
from typing import Any

import jax

from experiments.data import Batch
from experiments.measure.cost.cases import train_config
from experiments.measure.cost.config import BenchmarkConfig, Network
from experiments.measure.cost.stand_in import set_up_without_data
from experiments.measure.cost.timing import Runner


def torch_version() -> str | None:
    """PyTorch's version; None where it is not installed."""
    return importlib.metadata.version("torch") if importlib.util.find_spec("torch") else None


def torch_cases(config: BenchmarkConfig, network: Network, batch: Batch) -> Iterator[tuple[dict[str, Any], Runner]]:
    """A record and a runner for every method; none where PyTorch or the network in PyTorch is missing."""
    if torch_version() is None:
        return
    from experiments.measure.cost import torch_networks, torch_peer  # slow imports of what may not be there

    setup = set_up_without_data(train_config(config, network))
    described = setup.config.model
    make = torch_networks.NETWORKS.get(described.name)
    if make is None:
        return
    model = make(described.width, setup.pipeline.data_set.image_shape, setup.pipeline.data_set.num_classes)
    params, _ = jax.eval_shape(setup.model.init, jax.random.key(0))
    sizes = sum(leaf.size for leaf in jax.tree.leaves(params)), sum(p.numel() for p in model.parameters())
    assert sizes[0] == sizes[1], f"{described.name} has {sizes[0]} parameters in JAX and {sizes[1]} in PyTorch"
    flops: dict[str, float] = {}
    for library in ("torch", "torch.compile") if config.torch_compile else ("torch",):
        for name, run in torch_peer.steps(model, batch, described.dtype, compiled=library == "torch.compile"):
            if library == "torch":
                flops[name] = torch_peer.flops(run)
            record = {"network": network, "library": library, "case": name, "intervals": (1,), "seconds": {}}
            yield record | {"flops": {"acting": flops[name]}}, Runner(lambda: None, run)
