"""A whole training run of a small network as one compiled program, and the measurements at its end."""

import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.data import NUM_CLASSES, Examples
from experiments.models import mlp
from experiments.optim import OptimConfig, build


class Scores(NamedTuple):
    """Mean cross-entropy, and the fraction of right predictions."""

    loss: float
    accuracy: float


def loss_fn(params: mlp.Params, batch: Examples) -> jax.Array:
    """Mean cross-entropy over the batch."""
    logits = mlp.apply(params, batch.x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch.y).mean()


def evaluate(params: mlp.Params, examples: Examples) -> Scores:
    """Loss and accuracy on all examples."""
    loss, right = _loss_and_right(params, examples)
    return Scores(float(loss), int(right) / len(examples.y))


@jax.jit
def _loss_and_right(params: mlp.Params, examples: Examples) -> tuple[jax.Array, jax.Array]:
    right = mlp.apply(params, examples.x).argmax(axis=-1) == examples.y
    return loss_fn(params, examples), right.sum()


@functools.partial(jax.jit, static_argnames=("num_examples", "batch_size", "epochs"))
def batch_order(key: jax.Array, *, num_examples: int, batch_size: int, epochs: int) -> jax.Array:
    """Which examples each step sees, shape (steps, batch_size): every epoch a new order of all examples."""
    shuffle = lambda epoch: jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)  # noqa: E731
    return jax.vmap(shuffle)(jnp.arange(epochs)).reshape(-1, batch_size)


@functools.partial(jax.jit, static_argnames="sizes")
def _initialize(key: jax.Array, sizes: tuple[int, ...]) -> mlp.Params:
    return mlp.init(key, sizes)


def layer_sizes(hidden: tuple[int, ...], examples: Examples) -> tuple[int, ...]:
    """Widths of all layers, from the features to the classes."""
    return (examples.x.shape[1], *hidden, NUM_CLASSES)


def prepare(
    seed: int, examples: Examples, *, hidden: tuple[int, ...], batch_size: int, epochs: int
) -> tuple[mlp.Params, jax.Array]:
    """What the seed decides: the initial parameters, and the order of the examples."""
    key = jax.random.key(seed)
    params = _initialize(jax.random.fold_in(key, 0), layer_sizes(hidden, examples))
    order = batch_order(jax.random.fold_in(key, 1), num_examples=len(examples.y), batch_size=batch_size, epochs=epochs)
    return params, order


def train_step(
    tx: optax.GradientTransformationExtraArgs,
    params: mlp.Params,
    opt_state: Any,
    examples: Examples,
    chosen: jax.Array,
) -> tuple[Any, Any]:
    """One step on the chosen examples: the new parameters and the new state of the optimizer."""
    batch = Examples(examples.x[chosen], examples.y[chosen])
    grads = jax.grad(loss_fn)(params, batch)
    updates, opt_state = tx.update(grads, opt_state, params, batch=batch)
    return optax.apply_updates(params, updates), opt_state


@jax.jit
def _train(optim: OptimConfig, params: mlp.Params, examples: Examples, order: jax.Array) -> mlp.Params:
    tx = build(optim, loss_fn, len(order)).tx

    def step(carry: tuple[Any, Any], chosen: jax.Array) -> tuple[tuple[Any, Any], None]:
        return train_step(tx, *carry, examples, chosen), None

    return jax.lax.scan(step, (params, tx.init(params)), order)[0][0]


class Trainer:
    """Trains networks of one shape; compiles one program per method, on its first run."""

    def __init__(self, hidden: tuple[int, ...], batch_size: int, epochs: int):
        self._sizes: Any = {"hidden": hidden, "batch_size": batch_size, "epochs": epochs}
        self._programs: dict[str, jax.stages.Compiled] = {}

    def fit(self, optim: OptimConfig, seed: int, examples: Examples) -> tuple[mlp.Params, float]:
        """Trained parameters, and the seconds that training took, compilation left out.

        The seed decides the initial parameters and the order of the examples, which are the same for every method.
        """
        program, arguments = self._prepare(optim, seed, examples)
        start = time.perf_counter()
        params = jax.block_until_ready(program(*arguments))
        return params, time.perf_counter() - start

    def flops_per_step(self, optim: OptimConfig, examples: Examples) -> float:
        """Floating-point operations of one step as XLA counts them, which counts the body of a loop once."""
        program, _ = self._prepare(optim, 0, examples)
        return float((program.cost_analysis() or {}).get("flops", float("nan")))

    def _prepare(self, optim: OptimConfig, seed: int, examples: Examples) -> tuple[jax.stages.Compiled, Any]:
        params, order = prepare(seed, examples, **self._sizes)
        arguments = (jax.tree.map(jnp.float32, optim), params, jax.device_put(examples), order)
        if optim.method not in self._programs:
            self._programs[optim.method] = _train.lower(*arguments).compile()
        return self._programs[optim.method], arguments
