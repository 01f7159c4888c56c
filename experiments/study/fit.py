"""A whole training run with the trainer's pieces and without its folder: compiled once per method, whatever the seed.

On a device an epoch is one program: a scan over the indices of its batches, with the images on the device. On a CPU
that holds for networks without convolutions only; the others take each step as a call of its own. Measured on one core
(milliseconds a step, scan and single calls, batches of 50 digits and of 128 else): MLP 0.10 and 0.28, its GAM step 0.62
and 0.97; ResNet-20 of a quarter of the width 11.6 and 7.1 on digits, 480 and 195 on Fashion-MNIST, 1796 and 300 on
CIFAR-10. XLA's convolutions are slow in the body of a loop on the CPU.
"""

import functools
import itertools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.hlo import parse
from experiments.common.hlo_cost import matmul_flops
from experiments.data import Array, Batch, Part
from experiments.data.batches import evaluation_rows
from experiments.data.images import resize_all
from experiments.data.memory import MemoryPipeline, read
from experiments.optim.chain import make_chain, phases
from experiments.optim.config import Averaging, OptimConfig
from experiments.train.config import TrainConfig
from experiments.train.setup import Setup, assemble
from experiments.train.state import AVERAGING, Sums, TrainState, initial_state
from experiments.train.step import REFRESHING_STEPS, evaluation_step, make_measured_loss, running_statistics, train_step

_WITHOUT_CONVOLUTIONS = ("mlp", "vit")
_VALIDATE = {name: jax.jit(averaging.validate) for name, averaging in AVERAGING.items()}
_AVERAGE = {name: jax.jit(averaging.average) for name, averaging in AVERAGING.items()}


class Scores(NamedTuple):
    """Mean cross-entropy, and the fraction of right predictions."""

    loss: float
    accuracy: float


class Fitted(NamedTuple):
    """A run that has ended.

    Attributes:
      pipeline: its data.
      half: the state at half-time, at the end of the middle epoch; with weight averaging, as if the run ended there.
      end: the state at the end; of a run that diverged, at the end of the epoch in which it did.
      diverged: whether a training loss was not finite.
      seconds: that training took, compilation left out.
    """

    pipeline: MemoryPipeline
    half: TrainState
    end: TrainState
    diverged: bool
    seconds: float


class _Ready(NamedTuple):
    """A run that can start: the compiled ``program(optim, seed, state, images, rows) -> state`` and its arguments.

    There is one program, or with an interval and single steps two: for those on which the method acts, and the others.
    """

    pipeline: MemoryPipeline
    programs: dict[bool, Any]
    optim: OptimConfig
    seed: jax.Array
    state: TrainState
    images: Batch


class Trainer:
    """Trains networks on one task with any method, hyper-parameters and seed."""

    def __init__(self, config: TrainConfig):
        """Takes the task from a config; the runs may differ from it in optimizer, seed, label noise and split."""
        self._decoded = read(config.data)
        setup = assemble(config, self._pipeline(config))
        data_set = setup.pipeline.data_set
        loss_fn = make_measured_loss(setup.model, data_set)
        self.loss_fn = lambda params, batch: loss_fn(params, *batch)
        """``(params, (batch, model_state)) -> loss``, always the same object: what measures it is compiled once."""
        self._weights = jax.jit(lambda seed: setup.model.init(jax.random.fold_in(jax.random.key(seed), 0)))
        self._add = jax.jit(functools.partial(_evaluate, functools.partial(evaluation_step, setup.model, data_set)))
        self._refresh = jax.jit(functools.partial(_refresh, setup))
        self._methods: dict[Any, tuple[Any, dict[bool, Any]]] = {}

    def fit(self, config: TrainConfig) -> Fitted:
        """Trains.

        The seed decides what it decides in ``train``: initial parameters, label noise, order and augmentation of the
        examples, the same for every method.
        """
        run = self._prepare(config)
        half = state = run.state
        diverged, step = False, 0
        start = time.perf_counter()
        for epoch in range(config.epochs):
            for rows in _calls(config, run.pipeline.order(epoch)):
                program = run.programs[len(run.programs) == 1 or step % config.optim.interval == 0]
                state = program(run.optim, run.seed, state, run.images, rows)
                step += len(rows)
            diverged = int(state.broken) >= 0
            if diverged:
                break
            if config.averaging != "none":
                state = self._validated(config, run, state)
            half = state if epoch + 1 == config.epochs // 2 else half
        jax.block_until_ready(state)
        seconds = time.perf_counter() - start
        half, end = (self._result(config, run, found) for found in (half, state))
        return Fitted(run.pipeline, half, end, diverged, seconds)

    def evaluate(self, pipeline: MemoryPipeline, state: TrainState, part: Part) -> Scores:
        """Loss and accuracy over a part of the data without augmentation, every example counted once."""
        images, batch = whole(pipeline, part), pipeline.batch_size
        sums = Sums.zero()
        for rows in np.arange(evaluation_rows(len(images.label), batch), dtype=np.int32).reshape(-1, batch):
            sums = self._add(state.params, state.model_state, sums, images, rows)
        means = sums.means(pipeline.data_set.num_classes)
        return Scores(means["loss"], means["accuracy"])

    def flops_per_step(self, config: TrainConfig) -> float:
        """Floating-point operations of one step in matrix products and convolutions; the mean over an interval."""
        run = self._prepare(config)
        steps = len(_calls(config, run.pipeline.order(0))[0])
        acting = parse(run.programs[True].as_text()).total(matmul_flops, max)
        between = parse(run.programs[min(run.programs)].as_text()).total(matmul_flops, min)
        return (between + (acting - between) / config.optim.interval) / steps

    def _validated(self, config: TrainConfig, run: _Ready, state: TrainState) -> TrainState:
        """The state when the weight averaging has heard of the validation loss."""
        loss = self.evaluate(run.pipeline, state, "validation").loss
        return state._replace(averaging=_VALIDATE[config.averaging](state.averaging, np.float32(loss)))

    def _result(self, config: TrainConfig, run: _Ready, state: TrainState) -> TrainState:
        """With the parameters that the run would end with here, and their batch statistics."""
        if config.averaging == "none":
            return state
        params, model_state = _AVERAGE[config.averaging](state.averaging, state.params), state.model_state
        if jax.tree.leaves(model_state):
            orders = itertools.chain.from_iterable(map(run.pipeline.order, itertools.count()))
            for rows in itertools.islice(orders, REFRESHING_STEPS):
                model_state = self._refresh(run.seed, params, model_state, run.images, rows.astype(np.int32))
        return state._replace(params=params, model_state=model_state)

    def _pipeline(self, config: TrainConfig) -> MemoryPipeline:
        return MemoryPipeline.of(self._decoded, config.data, seed=config.seed, batch_size=config.batch_size)

    def _prepare(self, config: TrainConfig) -> _Ready:
        pipeline = self._pipeline(config)
        seed, images = jnp.asarray(config.seed, jnp.int32), whole(pipeline, "train")
        optim = jax.tree.map(jnp.float32, config.optim)
        weights = self._weights(seed)
        method = jax.tree.structure(config.optim), config.averaging
        if method not in self._methods:
            setup = assemble(config, pipeline)
            initial = jax.jit(functools.partial(_initial, setup.chain.tx.init, config.averaging))
            rows = _calls(config, pipeline.order(0))[0]
            found: dict[bool, dict[str, Any]] = phases(config.optim.interval) if len(rows) == 1 else {True: {}}
            arguments = (optim, seed, initial(weights), images, rows)
            self._methods[method] = (
                initial,
                {
                    acts: jax.jit(functools.partial(_train, setup, options)).lower(*arguments).compile()
                    for acts, options in found.items()
                },
            )
        initial, programs = self._methods[method]
        return _Ready(pipeline, programs, optim, seed, initial(weights), images)


def whole(pipeline: MemoryPipeline, part: Part) -> Batch:
    """A part of the data, on the device."""
    images, labels = pipeline.parts[part]
    images = resize_all(images, pipeline.data_set.image_shape[0])
    return jax.device_put(_batch(images, labels, np.arange(len(labels), dtype=np.int32)))


def _calls(config: TrainConfig, order: np.ndarray) -> np.ndarray:
    """The order of an epoch, divided among calls of the program: all steps in one, or one in each."""
    whole_epoch = jax.default_backend() != "cpu" or config.model.name in _WITHOUT_CONVOLUTIONS
    return (order[None] if whole_epoch else order[:, None]).astype(np.int32)


def _initial(optimizer_init: Callable[[Any], Any], averaging: Averaging, weights: tuple[Any, Any]) -> TrainState:
    """The state before the first step, of which the seed has decided the weights alone."""
    return initial_state(lambda key: weights, optimizer_init, averaging, seed=0)


def _train(
    setup: Setup,
    options: dict[str, Any],
    optim: OptimConfig,
    seed: jax.Array,
    state: TrainState,
    images: Batch,
    rows: jax.Array,
) -> TrainState:
    """Training steps on the images of each of these rows."""
    tx = make_chain(optim, setup.loss_fn, setup.steps, **options).tx
    step = functools.partial(train_step, setup.config, setup.seen, setup.loss_fn, tx, seed=seed)

    def take(state: TrainState, chosen: jax.Array) -> tuple[TrainState, None]:
        return step(state, _batch(images.image[chosen], images.label[chosen], chosen)), None

    if len(rows) == 1:  # XLA would keep the loop
        return take(state, rows[0])[0]
    return jax.lax.scan(take, state, rows)[0]


def _refresh(setup: Setup, seed: jax.Array, params: Any, model_state: Any, images: Batch, rows: jax.Array) -> Any:
    """Batch statistics after one more batch, of these rows."""
    batch = _batch(images.image[rows], images.label[rows], rows)
    return running_statistics(setup.model, setup.seen, params, model_state, batch, seed)


def _evaluate(step: Any, params: Any, model_state: Any, sums: Sums, images: Batch, rows: jax.Array) -> Sums:
    """Adds the scores of the images of these rows, of which those past the last one do not count."""
    size = len(images.label)
    chosen = jnp.minimum(rows, size - 1)
    batch = Batch(images.image[chosen], images.label[chosen], chosen, (rows < size).astype(jnp.float32))
    return step(params, model_state, sums, batch)


def _batch(image: Array, label: Array, index: Array) -> Batch:
    return Batch(image, label, index, np.ones(len(label), np.float32))
