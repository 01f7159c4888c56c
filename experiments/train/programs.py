"""The compiled programs of a training run: made once, for arrays that lie on a mesh."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from experiments.data import Batch, Part
from experiments.models import pretrained
from experiments.optim.chain import make_chain, phases
from experiments.train.mesh import Mesh
from experiments.train.setup import Setup
from experiments.train.state import AVERAGING, Sums, TrainState
from experiments.train.step import REFRESHING_STEPS, evaluation_step, running_statistics, train_step


class Programs:
    """What a run computes. States lie as ``abstract`` says; batches are those of this process, in NumPy."""

    def __init__(self, setup: Setup, mesh: Mesh):
        self._setup, self._mesh = setup, mesh
        shapes = jax.eval_shape(setup.init)
        self._layout = mesh.state(shapes)
        place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)  # noqa: E731
        self.abstract: TrainState = jax.tree.map(place, shapes, self._layout)
        averaging = AVERAGING[setup.config.averaging]
        data_set = setup.pipeline.data_set
        layout = self._layout
        self._create = jax.jit(setup.init, out_shardings=layout)
        self._add = jax.jit(functools.partial(evaluation_step, setup.model, data_set), donate_argnums=2)
        self._zero = jax.jit(Sums.zero, out_shardings=mesh.everywhere)
        self._validate = jax.jit(averaging.validate, out_shardings=layout.averaging)
        self._average = jax.jit(averaging.average, out_shardings=layout.params)
        refresh = functools.partial(running_statistics, setup.model, setup.seen, seed=setup.config.seed)
        self._refresh = jax.jit(refresh, out_shardings=layout.model_state)

    def lower(self, step: Callable[[TrainState, Batch], TrainState] | None = None) -> Any:
        """Traces the training step, or another one in its place; the mesh may be of devices that do not exist."""
        setup = self._setup
        step = step or self._train_step(setup.chain.tx)
        size, shape = setup.config.batch_size, setup.pipeline.data_set.image_shape
        of: Any = functools.partial(jax.ShapeDtypeStruct, sharding=self._mesh.batch)
        columns = (of((size,), dtype) for dtype in (np.int32, np.int32, np.float32))
        batch: Any = Batch(of((size, *shape), np.uint8), *columns)
        shardings: Any = {"in_shardings": (self._layout, self._mesh.batch), "out_shardings": self._layout}
        return jax.jit(step, **shardings, donate_argnums=0).lower(self.abstract, batch)

    def compile(self) -> dict[str, Any]:
        """Compiles the training step, the only expensive program; returns what XLA says of it.

        With an interval there are two: one for the steps on which the method acts and one for those between.
        """
        start = time.perf_counter()
        found = phases(self._setup.config.optim.interval)
        self._compiled = {acts: self._lower_phase(options).compile() for acts, options in found.items()}
        memory = self._compiled[True].memory_analysis()
        flops = {acts: (compiled.cost_analysis() or {}).get("flops") for acts, compiled in self._compiled.items()}
        return {
            "compile_seconds": time.perf_counter() - start,
            "flops_per_step": flops[True],
            **({"flops_per_step_between": flops[False]} if False in flops else {}),
            "temporary_bytes": getattr(memory, "temp_size_in_bytes", None),
        }

    def _lower_phase(self, options: dict[str, Any]) -> Any:
        """Traces the step on which the method acts, or that between."""
        setup = self._setup
        chain = make_chain(setup.config.optim, setup.loss_fn, setup.steps, **options)
        return self.lower(self._train_step(chain.tx))

    def _train_step(self, tx: optax.GradientTransformationExtraArgs) -> Callable[[TrainState, Batch], TrainState]:
        setup = self._setup
        return functools.partial(train_step, setup.config, setup.seen, setup.loss_fn, tx)

    def create(self) -> TrainState:
        """The state before the first step, made where it is to lie; with pretrained weights if there are some."""
        state, config = self._create(), self._setup.config.model
        if config.pretrained is None:
            return state
        params, model_state = pretrained.load(config.pretrained, config, state.params, state.model_state)
        return state._replace(params=params, model_state=model_state)

    def step(self, state: TrainState, batch: Batch, count: int) -> TrainState:
        """The state after one more step, when there were ``count`` before; the old one is gone."""
        on_devices = self._mesh.put(batch)
        compiled = self._compiled[count % self._setup.config.optim.interval == 0]
        with jax.transfer_guard("disallow"):  # whatever moves between host and device here does so by mistake
            return compiled(state, on_devices)

    def without_sums(self, state: TrainState) -> TrainState:
        """The state, to sum up losses from here on."""
        return state._replace(sums=self._zero())

    def validated(self, state: TrainState, loss: float) -> TrainState:
        """The state when the weight averaging has heard of a validation loss."""
        return state._replace(averaging=self._validate(state.averaging, np.float32(loss)))

    def evaluate(self, params: Any, model_state: Any, *parts: Part) -> dict[str, float]:
        """Loss and accuracies over parts of the data, every example counted once."""
        found, num_classes = {}, self._setup.pipeline.data_set.num_classes
        for part in parts:
            sums = self._zero()
            for batch in self._setup.pipeline.evaluation(part):
                sums = self._add(params, model_state, sums, self._mesh.put(batch))
            found |= {f"{part}_{name}": value for name, value in sums.means(num_classes).items()}
        return found

    def result(self, state: TrainState) -> tuple[Any, Any]:
        """The parameters that a run would end with here, and their batch statistics.

        Averaged parameters never saw a batch: their statistics are taken anew from the first training batches.
        """
        if self._setup.config.averaging == "none":
            return state.params, state.model_state
        params = self._average(state.averaging, state.params)
        model_state = state.model_state
        if jax.tree.leaves(model_state):
            for _, batch in zip(range(REFRESHING_STEPS), self._setup.pipeline.train(0), strict=False):
                model_state = self._refresh(params, model_state, self._mesh.put(batch))
        return params, model_state
