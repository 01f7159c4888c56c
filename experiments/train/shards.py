"""The training step of a network whose parameters are divided among devices, which gathers them layer by layer.

Under shard_map, that is, rather than left to XLA's partitioner, which moves activations about (collective-permutes by
the thousand) where it should gather weights. Networks with different layers are left to it all the same.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from experiments.data import Batch
from experiments.models.shards import AXES
from experiments.optim.config import OptimConfig
from experiments.train.mesh import Mesh
from experiments.train.setup import Setup
from experiments.train.state import TrainState
from experiments.train.step import LossFn


def gathers(setup: Setup, mesh: Mesh) -> bool:
    """Whether the step is computed here."""
    return mesh.devices.shape["fsdp"] > 1 and setup.model.stacked is not None


def loss_of_all(loss_fn: LossFn) -> LossFn:
    """The mean loss over all devices, each of which has its part of the batch. What is dropped differs between them."""

    def loss(params: Any, batch: Batch, model_state: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        value, aux = loss_fn(params, batch, model_state, jax.random.fold_in(key, jax.lax.axis_index(AXES)))
        return jax.lax.pmean(value, AXES), aux

    return loss


def on_shards(one: Callable[..., TrainState], mesh: Mesh, layout: Any) -> Callable[..., TrainState]:
    """A training step of :func:`loss_of_all`, on all devices.

    Args:
      one: the step on a device, on its shards of the state and its part of the batch.
      mesh: the devices.
      layout: where the state lies.
    """

    def training_step(optim: OptimConfig, seed: jax.Array, state: TrainState, batch: Batch) -> TrainState:
        new = one(optim, seed, state, batch)
        added = jax.tree.map(lambda after, before: jax.lax.psum(after - before, AXES), new.sums, state.sums)
        return new._replace(sums=jax.tree.map(lambda before, more: before + more, state.sums, added))

    state, whole = jax.tree.map(lambda place: place.spec, layout), PartitionSpec()
    return jax.shard_map(
        training_step, mesh=mesh.devices, in_specs=(whole, whole, state, PartitionSpec(AXES)), out_specs=state
    )
