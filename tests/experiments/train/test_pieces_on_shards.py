"""Clipping, Mixup, the moving average and the sigmoid loss where parameters are divided: as on one device."""

from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.data import Batch
from experiments.data.config import DataConfig
from experiments.measure.cost.stand_in import random_batch, set_up_without_data
from experiments.models.config import ModelConfig
from experiments.optim.config import OptimConfig
from experiments.train.compiled import MethodPrograms, TaskPrograms
from experiments.train.config import DevicesConfig, TrainConfig
from experiments.train.mesh import make_mesh
from experiments.train.programs import Programs

CONFIG = TrainConfig(
    workdir=Path(),
    data=DataConfig(name="cifar10", augment="none"),
    model=ModelConfig(name="vit", width=0.25, depth=2),
    optim=OptimConfig(method="sam", learning_rate=0.1, weight_decay=1e-3, momentum=0.9, sam_rho=0.05, clip=0.1),
    epochs=1,
    batch_size=16,
    mixup=0.2,
    loss="sigmoid",
    averaging="ema",
    ema_decay=0.4,
)


def trained(devices):
    """The state after two steps, divided among so many devices."""
    setup = set_up_without_data(CONFIG)
    mesh = make_mesh(DevicesConfig(fsdp=devices), 16, jax.devices()[:devices])
    programs = Programs(setup, mesh, MethodPrograms(setup, TaskPrograms(setup, mesh)))
    programs.compile()
    image, *columns = jax.device_get(random_batch(setup.pipeline.data_set, 16))
    kinds = (np.int32, np.int32, np.float32)
    batch = Batch(image, *(np.asarray(column, kind) for column, kind in zip(columns, kinds, strict=True)))
    state = programs.create()
    for count in range(2):
        state = programs.step(state, batch, count)
    return state


@pytest.mark.slow
def test_eight_devices_are_one():
    """The bound is below the norm of the gradient, and below that of the part of a device."""
    many, one = trained(8), trained(1)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)  # noqa: E731
    for part in ("params", "averaging", "sums"):
        jax.tree.map(close, *jax.device_get((getattr(many, part), getattr(one, part))))
    assert many.averaging.iterates == 2
    mean, params = (tree["blocks"]["up"]["kernel"] for tree in (many.averaging.mean, many.params))
    assert mean.sharding == params.sharding and not mean.is_fully_replicated
