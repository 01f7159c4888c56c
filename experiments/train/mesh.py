"""Devices and processes: the mesh, where arrays lie on it, and how several processes agree."""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from experiments.common.errors import UserError, require
from experiments.models.shards import AXES
from experiments.train.config import DevicesConfig

T = TypeVar("T")
_SMALL = 2**12
"""Arrays of fewer elements are copied to every device, whatever the mesh: dividing them saves nothing."""


class Mesh(NamedTuple):
    """Devices in rows of data parallelism and columns of parameter sharding (FSDP)."""

    devices: jax.sharding.Mesh

    @property
    def batch(self) -> NamedSharding:
        """Examples, over all devices."""
        return NamedSharding(self.devices, PartitionSpec(AXES))

    @property
    def everywhere(self) -> NamedSharding:
        """A copy on every device."""
        return NamedSharding(self.devices, PartitionSpec())

    def state(self, tree: Any, stacked: str | None = None) -> Any:
        """Where each array of a state lies: its longest divisible axis is divided over the columns of the mesh.

        The leading axis of what is under the name ``stacked``, that of layers, is not divided.
        """

        def place(path: Any, leaf: Any) -> NamedSharding:
            is_stacked = stacked is not None and any(getattr(entry, "key", None) == stacked for entry in path)
            return NamedSharding(self.devices, self._spec(leaf.shape, first=int(is_stacked)))

        return jax.tree.map_with_path(place, tree)

    def _spec(self, shape: tuple[int, ...], first: int = 0) -> PartitionSpec:
        columns = self.devices.shape["fsdp"]
        divisible = [axis for axis, length in enumerate(shape) if axis >= first and length % columns == 0]
        if columns == 1 or int(np.prod(shape)) < _SMALL or not divisible:
            return PartitionSpec()
        longest = max(divisible, key=lambda axis: shape[axis])
        return PartitionSpec(*("fsdp" if axis == longest else None for axis in range(len(shape))))

    def put(self, batch: Any) -> Any:
        """Global arrays of a batch, of which every process has its own rows."""
        return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(self.batch, rows), batch)

    def copy(self, numbers: Any) -> Any:
        """Copies on every device of arrays that every process has."""
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(self.everywhere, leaf), numbers)


def start(config: DevicesConfig) -> None:
    """Joins the other processes, before anything else touches a device.

    Raises:
      UserError: if they cannot be found.
    """
    if not config.multihost:
        return
    numbers = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}
    try:
        given: Any = {name: int(os.environ[variable]) for name, variable in numbers.items() if variable in os.environ}
        jax.distributed.initialize(**given, heartbeat_timeout_seconds=config.heartbeat_seconds)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"--devices.multihost finds no other processes ({error}): set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES "
            "and JAX_PROCESS_ID, or leave it out"
        ) from error


def make_mesh(config: DevicesConfig, batch_size: int, devices: Sequence[Any] | None = None) -> Mesh:
    """Devices in rows of ``config.fsdp``; if none are given, all devices of all processes.

    Raises:
      UserError: if they cannot be divided so, or the batch cannot be divided among them.
    """
    count = jax.device_count() if devices is None else len(devices)
    require(
        count % config.fsdp == 0, f"devices.fsdp must divide the number of devices, {count}, got fsdp={config.fsdp}"
    )
    require(
        batch_size % count == 0, f"batch_size must be divisible by the number of devices, {count}, got {batch_size}"
    )
    shape = (count // config.fsdp, config.fsdp)
    return Mesh(jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto, AxisType.Auto), devices=devices))


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return jax.process_index() == 0


def all_succeed(action: Callable[[], T], elsewhere: type[UserError] = UserError) -> T:
    """Does something in every process, and fails in all of them if it fails in one.

    Args:
      action: what to do; it fails by a :class:`UserError`.
      elsewhere: the class of the error where this process has not failed but another has.
    """
    result, failure = None, None
    try:
        result = action()
    except UserError as error:
        failure = error
    if jax.process_count() > 1:
        failures = multihost_utils.process_allgather(np.array(failure is not None))
        if failure is None and failures.any():
            failure = elsewhere(f"stopped, because process {int(np.argmax(failures))} did")
    if failure is not None:
        raise failure
    return result  # pyright: ignore[reportReturnType]
