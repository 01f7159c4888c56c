"""A run as programs: what is compiled for its method, with its numbers, its seed and its data."""

import functools
from typing import Any

import jax
import numpy as np

from experiments.data import Batch, Part
from experiments.models import pretrained
from experiments.optim.chain import acts
from experiments.train.compiled import MethodPrograms, TaskPrograms
from experiments.train.mesh import Mesh
from experiments.train.setup import Setup
from experiments.train.state import TrainState
from experiments.train.step import REFRESHING_STEPS

_FIRST = 5
"""Measurements of an eigenvalue in the place of the first, which starts from a random vector."""


class Programs:
    """What a run computes. States lie as ``abstract`` says; batches are those of this process, in NumPy.

    Attributes:
      abstract: shapes and places of the state.
      inputs: the method's numbers and the seed, on the devices.
    """

    def __init__(self, setup: Setup, mesh: Mesh, method: MethodPrograms | None = None, resident: bool = False):
        """Binds programs to a run.

        Args:
          setup: of the run.
          mesh: where it computes.
          method: the programs of its method, if there are some already.
          resident: whether the batches of an evaluation stay on the devices for the next one.
        """
        self._setup, self._mesh = setup, mesh
        self._method = method or MethodPrograms(setup, TaskPrograms(setup, mesh))
        self.abstract = self._method.abstract
        seed = np.int64(setup.config.seed).astype(np.int32)  # JAX takes seeds modulo 2^32
        self.inputs = mesh.copy((jax.tree.map(np.float32, setup.config.optim), seed))
        self._batches = lambda part: map(mesh.put, setup.pipeline.evaluation(part))
        self._first = functools.cache(lambda: next(iter(self._batches("train"))))
        if resident:
            self._batches = functools.cache(lambda part: [*map(mesh.put, setup.pipeline.evaluation(part))])

    def compile(self) -> dict[str, Any]:
        """Compiles the training step; returns how long it took and what it needs on each device."""
        seconds = self._method.compile()
        self._flops = acting, between = self._method.flops() or (None, None)
        return {
            "compile_seconds": seconds,
            "flops_per_step": acting,
            **({"flops_per_step_between": between} if self._setup.config.optim.rests else {}),
            "temporary_bytes": self._method.temporary_bytes,
        }

    def flops(self, count: int) -> float | None:
        """What the compiled step computes on each device in matrix products, when there were ``count`` before."""
        acting, between = self._flops
        return acting if acts(self._setup.config.optim, self._setup.steps, count) else between

    def memory(self) -> dict[str, int]:
        """``peak_memory_bytes`` on a device of this process: measured so far, or else those of the compiled step."""
        measured = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
        peak = max(measured) or self._method.peak_bytes
        return {} if peak is None else {"peak_memory_bytes": peak}

    @property
    def looped_convolutions(self) -> int:
        """Convolutions of the compiled step in loops, where they are slow: on the CPU."""
        return self._method.looped("convolution") if jax.default_backend() == "cpu" else 0

    def create(self) -> TrainState:
        """The state before the first step, made where it is to lie; with pretrained weights if there are some."""
        weights, config = self._method.task.weights(self.inputs[1]), self._setup.config.model
        if config.pretrained is not None:
            weights = pretrained.load(config.pretrained, config, *weights)
        return self._method.initial(weights)

    def step(self, state: TrainState, batch: Batch, count: int) -> TrainState:
        """The state after one more step, when there were ``count`` before; the old one is gone."""
        return self.call(state, count, self._mesh.put(batch))

    def call(self, state: TrainState, count: int, *data: Any) -> TrainState:
        """Calls the compiled step on data that lie on the devices."""
        program = self._method.program(count)
        with jax.transfer_guard("disallow"):  # whatever moves between host and device here does so by mistake
            return program(*self.inputs, state, *data)

    def without_sums(self, state: TrainState) -> TrainState:
        """The state, to sum up losses from here on."""
        return state._replace(sums=self._method.task.zero())

    def validated(self, state: TrainState, loss: float) -> TrainState:
        """The state when the weight averaging has heard of a validation loss."""
        return state._replace(averaging=self._method.validate(state.averaging, np.float32(loss)))

    def followed(self, state: TrainState) -> TrainState:
        """The state after one more measurement of the top eigenvalue, on the first batch of training images."""
        found = state.followed
        for _ in range(1 if int(found.count) else _FIRST):
            found = self._method.follow(found, state.params, self._first(), model_state=state.model_state)
        return state._replace(followed=found)

    def evaluate(self, params: Any, model_state: Any, *parts: Part) -> dict[str, float]:
        """Loss and accuracies over parts of the data without augmentation, every example counted once."""
        found = {}
        for part in parts:
            means = self._method.task.means(params, model_state, self._batches(part))
            found |= {f"{part}_{name}": value for name, value in means.items()}
        return found

    def result(self, state: TrainState) -> tuple[Any, Any]:
        """The parameters that a run would end with here, and their batch statistics.

        Averaged parameters never saw a batch: their statistics are taken anew from the first training batches.
        """
        if self._setup.config.averaging == "none":
            return state.params, state.model_state
        params = self._method.average(state.averaging, state.params)
        model_state = state.model_state
        if jax.tree.leaves(model_state):
            for _, batch in zip(range(REFRESHING_STEPS), self._setup.pipeline.train(0), strict=False):
                batch, seed = self._mesh.put(batch), self.inputs[1]
                model_state = self._method.task.refresh(params, model_state, batch, seed=seed)
        return params, model_state
