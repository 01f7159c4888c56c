"""What is compiled to train. Numbers and seeds are arguments: a program serves every run of its kind.

What depends on the task alone is compiled once for all methods, what depends on the method once for all its runs.
"""

import functools
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from experiments.common.hlo import parse
from experiments.common.hlo_cost import matmul_flops
from experiments.data import Batch
from experiments.optim.chain import acts, make_chain, phases
from experiments.optim.config import OptimConfig
from experiments.train.mesh import Mesh
from experiments.train.setup import Setup, follow_init
from experiments.train.shards import gathers, loss_of_all, on_shards
from experiments.train.state import Sums, TrainState, averaging, initial_state, initial_weights
from experiments.train.step import LossFn, evaluation_step, running_statistics, train_step

HIDING = ("__cublas", "__cudnn", "__onednn")
"""Calls of libraries that compute products."""
Step = Callable[..., TrainState]
"""``(optim, seed, state, batch) -> state``, or with other data in the place of the batch."""


def make_step(setup: Setup, loss_fn: LossFn | None = None, **options: Any) -> Step:
    """The training step, of which the method's numbers and the seed are arguments; for the options see `make_chain`.

    Where layers are scanned over, gradient and method are computed at once if they can be.
    """

    def training_step(optim: OptimConfig, seed: jax.Array, state: TrainState, batch: Batch) -> TrainState:
        chain = make_chain(optim, loss_fn or setup.loss_fn, setup.steps, at_once=setup.scans, **options)
        return train_step(setup.config, setup.seen, chain.value_and_grad, chain.tx, state, batch, seed)

    return training_step


class TaskPrograms:
    """What data, network and mesh decide.

    Attributes:
      mesh: where everything lies.
      weights: ``seed -> (params, model_state)`` at initialisation.
      refresh: ``(params, model_state, batch, seed=seed) -> model_state`` after one more batch.
    """

    def __init__(self, setup: Setup, mesh: Mesh):
        self.mesh = mesh
        self._num_classes = setup.pipeline.data_set.num_classes
        weights = functools.partial(initial_weights, setup.model.init)
        layout = mesh.state(jax.eval_shape(weights, 0), setup.model.stacked)
        self.weights = jax.jit(weights, out_shardings=layout)
        refresh = functools.partial(running_statistics, setup.model, setup.seen)
        self.refresh = jax.jit(refresh, out_shardings=layout[1])
        self._add = jax.jit(functools.partial(evaluation_step, setup.model, setup.pipeline.data_set), donate_argnums=2)
        self.zero = jax.jit(Sums.zero, out_shardings=mesh.everywhere)

    def means(self, params: Any, model_state: Any, batches: Iterable[Batch]) -> dict[str, float]:
        """Loss and accuracies over batches that lie on the devices, every example counted once."""
        sums = self.zero()
        for batch in batches:
            sums = self._add(params, model_state, sums, batch)
        return sums.means(self._num_classes)


class MethodPrograms:
    """What a method decides beside the task, whatever its numbers.

    Attributes:
      setup: of the run that it was first needed for.
      task: its task.
      abstract: shapes and places of the state.
      initial: ``weights -> state`` before the first step; the weights are gone.
      validate: of the weight averaging.
      average: of the weight averaging.
      follow: of the top eigenvalue that is followed, if one is.
    """

    def __init__(self, setup: Setup, task: TaskPrograms):
        self.setup, self.task = setup, task
        shapes = jax.eval_shape(setup.init)
        self._layout = task.mesh.state(shapes, setup.model.stacked)
        self.abstract: TrainState = jax.tree.map(_lying, shapes, self._layout)
        mean = averaging(setup.config)
        initial = functools.partial(
            initial_state, setup.chain.tx.init, mean.init, follow_init=follow_init(setup.follow)
        )
        self.initial = jax.jit(initial, out_shardings=self._layout, donate_argnums=0)
        self.validate = jax.jit(mean.validate, out_shardings=self._layout.averaging)
        self.average = jax.jit(mean.average, out_shardings=self._layout.params)
        if setup.follow is not None:
            self.follow = jax.jit(setup.follow.update, out_shardings=self._layout.followed)
        self._compiled: dict[bool, Any] = {}

    def step(self, **options: Any) -> Step:
        """The training step as :func:`make_step` makes it; on shards, where the network gathers its parameters."""
        setup, mesh = self.setup, self.task.mesh
        if not gathers(setup, mesh):
            return make_step(setup, **options)
        return on_shards(make_step(setup, loss_of_all(setup.loss_fn), **options), mesh, self._layout)

    def lower(self, step: Step, *data: Any, donate: bool = True) -> Any:
        """Traces a step, for a batch if no data are given; the mesh may be of devices that do not exist."""
        setup, mesh = self.setup, self.task.mesh
        number = functools.partial(_lying, sharding=mesh.everywhere)
        optim = jax.tree.map(lambda _: number(jax.ShapeDtypeStruct((), np.float32)), setup.config.optim)
        seed = number(jax.ShapeDtypeStruct((), np.int32))
        data = data or (_batch(setup, mesh),)
        donated = (2,) if donate else ()
        compiled = jax.jit(step, out_shardings=self._layout, donate_argnums=donated)
        return compiled.lower(optim, seed, self.abstract, *data)

    def compile(
        self, *data: Any, wrap: Callable[[Step], Step] = lambda step: step, by_step: bool = True, donate: bool = True
    ) -> float:
        """Compiles the training step, the only expensive program; returns how many seconds it took.

        With an interval or a late phase there are two: one for the steps on which the method acts, one for the others.

        Args:
          *data: what a call takes beside numbers, seed and state; a batch if not given.
          wrap: makes a program of the step.
          by_step: whether a call is one step; if not, the choice is a branch inside the program.
          donate: whether the state before a call may be overwritten.
        """
        start = time.perf_counter()
        found: dict[bool, dict[str, Any]] = phases(self.setup.config.optim.rests) if by_step else {True: {}}
        steps = {acts: wrap(self.step(**options)) for acts, options in found.items()}
        self._compiled = {acts: self.lower(step, *data, donate=donate).compile() for acts, step in steps.items()}
        return time.perf_counter() - start

    def program(self, count: int) -> Any:
        """The compiled step when there were ``count`` before."""
        return self._compiled[len(self._compiled) == 1 or acts(self.setup.config.optim, self.setup.steps, count)]

    def flops(self) -> tuple[float, float] | None:
        """What a call computes in matrix products and convolutions on each device: when the method acts, and between.

        Loops count as often as they run, unlike in XLA's own count. None where that cannot be told: a loop may run as
        often as the data say, and a GPU's libraries hide products.
        """
        texts = {acts: compiled.as_text() for acts, compiled in self._compiled.items()}
        if any(library in text for text in texts.values() for library in HIDING):
            return None
        try:
            found = {acts: parse(text) for acts, text in texts.items()}
            return found[True].total(matmul_flops, max), found[min(found)].total(matmul_flops, min)
        except ValueError:
            return None

    @property
    def temporary_bytes(self) -> int | None:
        """Memory beside arguments and results of a call on which the method acts."""
        return getattr(self._compiled[True].memory_analysis(), "temp_size_in_bytes", None)

    @property
    def peak_bytes(self) -> int | None:
        """Memory of a call on which the method acts: arguments, results that are not among them, and the rest."""
        memory = self._compiled[True].memory_analysis()
        if memory is None:
            return None
        kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        return kept + memory.temp_size_in_bytes

    def looped(self, opcode: str) -> int:
        """How many instructions of a kind stand in loops or branches of the step on which the method acts."""
        return parse(self._compiled[True].as_text()).looped(opcode)


def _lying(leaf: jax.ShapeDtypeStruct, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _batch(setup: Setup, mesh: Mesh) -> Any:
    size, shape = setup.config.batch_size, setup.pipeline.data_set.image_shape
    of = functools.partial(jax.ShapeDtypeStruct, sharding=mesh.batch)
    columns: Any = (of((size,), dtype) for dtype in (np.int32, np.int32, np.float32))
    return Batch(of((size, *shape), np.uint8), *columns)  # pyright: ignore[reportArgumentType]
