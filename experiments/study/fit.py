"""A whole training run in memory, without a folder: the trainer's programs, compiled once per method.

On a device an epoch is one program: a scan over the indices of its batches, with the images on the device. On a CPU
that holds for networks without convolutions only; the others take each step as a call of its own. Measured on one core
(milliseconds a step, scan and single calls, batches of 50 digits and of 128 else): MLP 0.10 and 0.28, its GAM step 0.62
and 0.97; ResNet-20 of a quarter of the width 11.6 and 7.1 on digits, 480 and 195 on Fashion-MNIST, 1796 and 300 on
CIFAR-10. XLA's convolutions are slow in the body of a loop on the CPU.
"""

import time
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.data import Batch, Part
from experiments.data.batches import unpadded_batch
from experiments.data.memory import MemoryPipeline, read, whole
from experiments.optim.config import OptimConfig
from experiments.train.compiled import MethodPrograms, Step, TaskPrograms
from experiments.train.config import DevicesConfig, TrainConfig
from experiments.train.mesh import make_mesh
from experiments.train.programs import Programs
from experiments.train.setup import assemble
from experiments.train.state import TrainState
from experiments.train.step import make_measured_loss

_WITHOUT_CONVOLUTIONS = ("mlp", "vit")


class Fitted(NamedTuple):
    """A run that has ended.

    Attributes:
      pipeline: its data.
      programs: what it computed with.
      half: the state at half-time, at the end of the middle epoch; with weight averaging, as if the run ended there.
      end: the state at the end; of a run that diverged, at the end of the epoch in which it did.
      diverged: whether a training loss was not finite.
      seconds: that training took, compilation left out.
    """

    pipeline: MemoryPipeline
    programs: Programs
    half: TrainState
    end: TrainState
    diverged: bool
    seconds: float

    def evaluate(self, *parts: Part) -> dict[str, float]:
        """Loss and accuracies at the end over parts of the data."""
        return self.programs.evaluate(self.end.params, self.end.model_state, *parts)


class Trainer:
    """Trains networks on one task with any method, hyper-parameters and seed."""

    def __init__(self, config: TrainConfig):
        """Takes the task from a config; the runs may differ from it in optimizer, seed, label noise and split."""
        self._decoded = read(config.data)
        setup = assemble(config, self._pipeline(config))
        self._mesh = make_mesh(DevicesConfig(), config.batch_size, jax.devices()[:1])
        self._task = TaskPrograms(setup, self._mesh)
        loss_fn = make_measured_loss(setup.model, setup.pipeline.data_set)
        self.loss_fn = lambda params, batch: loss_fn(params, *batch)
        """``(params, (batch, model_state)) -> loss``, always the same object: what measures it is compiled once."""
        self._methods: dict[Any, MethodPrograms] = {}

    def fit(self, config: TrainConfig) -> Fitted:
        """Trains.

        The seed decides what it decides in ``train``: initial parameters, label noise, order and augmentation of the
        examples, the same for every method.
        """
        pipeline = self._pipeline(config)
        images = self._images(pipeline)
        programs = self._programs(config, pipeline, images)
        half = state = programs.create()
        diverged, step = False, 0
        start = time.perf_counter()
        for epoch in range(config.epochs):
            for rows in jax.device_put([*_calls(config, pipeline.order(epoch))], self._mesh.everywhere):
                state = programs.call(state, step, images, rows)
                step += len(rows)
            diverged = int(state.broken) >= 0
            if diverged:
                break
            if config.averaging != "none":
                loss = programs.evaluate(state.params, state.model_state, "validation")["validation_loss"]
                state = programs.validated(state, loss)
            half = state if epoch + 1 == config.epochs // 2 else half
        jax.block_until_ready(state)
        seconds = time.perf_counter() - start
        half, end = (_ended(programs, found) for found in (half, state))
        return Fitted(pipeline, programs, half, end, diverged, seconds)

    def flops_per_step(self, config: TrainConfig) -> float | None:
        """Floating-point operations of one step in matrix products and convolutions; the mean over the run.

        None where they cannot be told.
        """
        pipeline = self._pipeline(config)
        self._programs(config, pipeline, self._images(pipeline))
        found = self._methods[_kind(config)].flops()
        if found is None:
            return None
        (acting, between), steps = found, len(_calls(config, pipeline.order(0))[0])
        return (between + (acting - between) * config.optim.acting_share) / steps

    def _pipeline(self, config: TrainConfig) -> MemoryPipeline:
        return MemoryPipeline.of(self._decoded, config.data, seed=config.seed, batch_size=config.batch_size)

    def _images(self, pipeline: MemoryPipeline) -> Batch:
        return jax.device_put(whole(pipeline, "train"), self._mesh.everywhere)

    def _programs(self, config: TrainConfig, pipeline: MemoryPipeline, images: Batch) -> Programs:
        """The programs of the method, compiled if they have not been, for a run."""
        kind = _kind(config)
        if kind not in self._methods:
            method = MethodPrograms(assemble(config, pipeline), self._task)
            rows = self._mesh.copy(_calls(config, pipeline.order(0))[0])
            method.compile(images, rows, wrap=_on_rows, by_step=len(rows) == 1, donate=False)
            self._methods[kind] = method
        method = self._methods[kind]
        setup = method.setup._replace(config=config, pipeline=pipeline)
        return Programs(setup, self._mesh, method, resident=True)


def _kind(config: TrainConfig) -> Any:
    """What decides what is compiled; the numbers of the method do not."""
    return jax.tree.structure(config.optim), config.averaging


def _calls(config: TrainConfig, order: np.ndarray) -> np.ndarray:
    """The order of an epoch, divided among calls of the program: all steps in one, or one in each."""
    whole_epoch = jax.default_backend() != "cpu" or config.model.name in _WITHOUT_CONVOLUTIONS
    return (order[None] if whole_epoch else order[:, None]).astype(np.int32)


def _ended(programs: Programs, state: TrainState) -> TrainState:
    """With the parameters that the run would end with here, and their batch statistics."""
    params, model_state = programs.result(state)
    return state._replace(params=params, model_state=model_state)


def _on_rows(step: Step) -> Step:
    """Training steps on the images of each of some rows."""

    def program(optim: OptimConfig, seed: jax.Array, state: TrainState, images: Batch, rows: jax.Array) -> TrainState:
        def take(state: TrainState, chosen: jax.Array) -> tuple[TrainState, None]:
            batch = unpadded_batch(images.image[chosen], images.label[chosen], chosen)
            return step(optim, seed, state, batch), None

        if len(rows) == 1:  # XLA would keep the loop
            return take(state, rows[0])[0]
        return jax.lax.scan(take, state, rows)[0]

    return program
