"""Where arrays lie, and how processes agree."""

import jax
import numpy as np
import pytest

from experiments.common.errors import UserError
from experiments.train import mesh
from experiments.train.config import DevicesConfig
from experiments.train.mesh import all_succeed, make_mesh, start


@pytest.mark.parametrize(
    "shape, divided",
    [
        ((64, 128), (64, 32)),  # the longest axis, by 4
        ((128, 64), (32, 64)),
        ((3, 3, 64, 64), (3, 3, 16, 64)),
        ((126, 64), (126, 16)),  # 126 is not divisible by 4
        ((4096,), (1024,)),
        ((4095, 1023), (4095, 1023)),  # nor is any of these
        ((63, 64), (63, 64)),  # too small to be worth it
        ((), ()),
    ],
)
def test_fsdp_divides_the_longest_divisible_axis_of_large_arrays(shape, divided):
    one, many = (make_mesh(DevicesConfig(fsdp=fsdp), 8) for fsdp in (1, 4))
    leaf = jax.ShapeDtypeStruct(shape, np.float32)
    assert many.state({"leaf": leaf})["leaf"].shard_shape(shape) == divided
    assert one.state(leaf).is_fully_replicated


@pytest.mark.parametrize("fsdp", [1, 2, 8])
def test_a_batch_is_divided_over_all_devices(fsdp):
    placed = make_mesh(DevicesConfig(fsdp=fsdp), 16).put({"label": np.arange(16)})["label"]
    assert sorted(tuple(shard.data.tolist()) for shard in placed.addressable_shards) == [
        (i, i + 1) for i in range(0, 16, 2)
    ]
    assert make_mesh(DevicesConfig(fsdp=fsdp), 16).devices.shape == {"data": 8 // fsdp, "fsdp": fsdp}


def test_one_process_has_nobody_to_wait_for():
    start(DevicesConfig())
    assert all_succeed(lambda: 3) == 3
    with pytest.raises(UserError, match="mine"):
        all_succeed(lambda: (_ for _ in ()).throw(UserError("mine")))


def test_what_fails_in_one_process_fails_in_all(monkeypatch):
    class Elsewhere(UserError):
        pass

    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(mesh.multihost_utils, "process_allgather", lambda mine: np.array([mine, False, True]))
    with pytest.raises(Elsewhere, match="stopped, because process 2 did"):
        all_succeed(lambda: 3, elsewhere=Elsewhere)
    monkeypatch.setattr(mesh.multihost_utils, "process_allgather", lambda mine: np.array([mine, False, False]))
    assert all_succeed(lambda: 3) == 3
