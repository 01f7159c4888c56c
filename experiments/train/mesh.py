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

        A network whose layers are ``stacked`` under that name gathers its parameters itself, so that they are divided
        over the rows as well. Of its layers matrices are divided along the first axis that can be, and vectors, each
        of which would take a message, are copied.
        """
        gathers = stacked is not None and self.devices.shape["fsdp"] > 1

        def place(path: Any, leaf: Any) -> NamedSharding:
            if gathers and any(getattr(entry, "key", None) == stacked for entry in path):
                return NamedSharding(self.devices, self._of_layers(leaf.shape))
            return NamedSharding(self.devices, self._spec(leaf.shape, AXES if gathers else "fsdp"))

        return jax.tree.map_with_path(place, tree)

    def _spec(self, shape: tuple[int, ...], over: str | tuple[str, ...]) -> PartitionSpec:
        divisible = self._divisible(shape, over)
        return _divided(shape, max(divisible, key=lambda axis: shape[axis]), over) if divisible else PartitionSpec()

    def _of_layers(self, shape: tuple[int, ...]) -> PartitionSpec:
        divisible = [axis for axis in self._divisible(shape, AXES) if axis > 0]
        return _divided(shape, divisible[0], AXES) if divisible and len(shape) > 2 else PartitionSpec()

    def _divisible(self, shape: tuple[int, ...], over: str | tuple[str, ...]) -> list[int]:
        """The axes of an array that can be divided, if that is worth it."""
        parts = int(np.prod([self.devices.shape[name] for name in ([over] if isinstance(over, str) else over)]))
        worth = parts > 1 and int(np.prod(shape)) >= _SMALL
        return [axis for axis, length in enumerate(shape) if worth and length % parts == 0]

    def put(self, batch: Any) -> Any:
        """Global arrays of a batch, of which every process has its own rows."""
        return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(self.batch, rows), batch)

    def copy(self, numbers: Any) -> Any:
        """Copies on every device of arrays that every process has."""
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(self.everywhere, leaf), numbers)


def _divided(shape: tuple[int, ...], axis: int, over: str | tuple[str, ...]) -> PartitionSpec:
    return PartitionSpec(*(over if i == axis else None for i in range(len(shape))))


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
