"""The training steps whose cost is measured: the trainer's own, with everything that may come before the optimizer."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

import gam_jax
from experiments.benchmarks.config import BenchmarkConfig, Network
from experiments.benchmarks.stand_in import set_up_without_data
from experiments.config import TrainConfig
from experiments.configs.methods import Radii, optimizer
from experiments.data import Batch
from experiments.optim import LABELS, Method, OptimConfig, build
from experiments.setup import Setup
from experiments.state import TrainState, initial_state
from experiments.step import LossFn, train_step

_RADII = Radii(accelerated=gam_jax.released_coefficients(rho=0.2, rho_prime=0.02, alpha=0.6, beta=0.5, gamma=0.03))
_PLAIN = OptimConfig(method="plain", learning_rate=0.01, weight_decay=5e-4, momentum=0.9)
RHO, ALPHA, SAM_RHO = _RADII.gam_rho, _RADII.gam_alpha, _RADII.sam_rho
Step = Callable[[TrainState, Batch], TrainState]


class Case(NamedTuple):
    """A training step.

    Attributes:
      name: as it stands in tables.
      interval: it acts on every so many-th step.
      step: one step; to be jitted.
      init: the state before the first step; to be jitted.
    """

    name: str
    interval: int
    step: Step
    init: Callable[[], TrainState]


def train_config(config: BenchmarkConfig, network: Network, method: Method = "plain", interval: int = 1) -> TrainConfig:
    """The training run whose step is measured."""
    optim = dataclasses.replace(optimizer(_PLAIN, method, _RADII), interval=interval)
    return TrainConfig(
        workdir=config.workdir,
        data=config.data_config(),
        model=getattr(config, network),
        optim=optim,
        epochs=100,
        batch_size=config.batch_size,
    )


def cases(config: BenchmarkConfig, network: Network) -> Iterator[Case]:
    """SGD first; then methods and GAM's other forms with each interval, GAM in microbatches, and optax's SAM."""
    plain = set_up_without_data(train_config(config, network))
    yield _case(LABELS["plain"], 1, plain)
    for interval in config.intervals:
        for method in config.methods:
            if method != "plain":
                setup = set_up_without_data(train_config(config, network, method, interval))
                yield _case(LABELS[method], interval, setup)
                if method == "gam":
                    yield from _other_forms(config, interval, setup, plain)
    if "gam" in config.methods:
        yield _value_and_grad_case(1, config.num_microbatches, plain)
    if config.peers and "sam" in config.methods:
        chain = plain.chain._replace(tx=_optax_sam(plain.loss_fn, plain.chain.tx))
        yield _case("optax.contrib.sam", 1, plain._replace(chain=chain))


def _other_forms(config: BenchmarkConfig, interval: int, gam: Setup, plain: Setup) -> Iterator[Case]:
    """GAM with other Hessian-vector products, and as ``gam_value_and_grad``."""
    for hvp in config.hvp:
        if hvp != "linearize":  # which GAM has by default
            chain = build(gam.config.optim, gam.loss_fn, gam.steps, has_aux=True, hvp=hvp)
            yield _case(f"GAM, hvp={hvp}", interval, gam._replace(chain=chain))
    yield _value_and_grad_case(interval, 1, plain)


def _case(name: str, interval: int, setup: Setup) -> Case:
    step = functools.partial(train_step, setup.config, setup.seen, setup.loss_fn, setup.chain.tx)
    init = functools.partial(initial_state, setup.model.init, setup.chain.tx.init, "none", setup.config.seed)
    return Case(name, interval, step, init)


def _value_and_grad_case(interval: int, num_microbatches: int, plain: Setup) -> Case:
    """The training step with ``gam_value_and_grad`` in place of ``jax.value_and_grad``."""
    name = "gam_value_and_grad" + (f", num_microbatches={num_microbatches}" if num_microbatches > 1 else "")
    options: Any = {"interval": interval, "num_microbatches": num_microbatches, "has_aux": True}
    value_and_grad = gam_jax.gam_value_and_grad(plain.loss_fn, RHO, ALPHA, **options)

    def step(state: TrainState, batch: Batch) -> TrainState:
        loss_fn = _loss_with_gradient(functools.partial(value_and_grad, count=state.step), num_microbatches)
        return train_step(plain.config, plain.seen, loss_fn, plain.chain.tx, state, batch)

    return Case(name, interval, step, _case(name, interval, plain).init)


def _loss_with_gradient(value_and_grad: Callable[..., Any], num_microbatches: int) -> LossFn:
    """A loss whose gradient, when it is differentiated, is the one that ``value_and_grad`` returns."""

    def forward(params: Any, batch: Batch, model_state: Any, key: jax.Array) -> tuple[Any, Any]:
        (loss, (logits, model_state)), grads = value_and_grad(params, batch, model_state, key)
        if num_microbatches > 1:  # row r of the batch was in microbatch r mod num_microbatches
            logits = jnp.swapaxes(logits, 0, 1).reshape(-1, logits.shape[-1])
            model_state = jax.tree.map(lambda leaf: leaf.mean(0), model_state)
        return (loss, (logits, model_state)), grads

    @jax.custom_vjp
    def loss_fn(params: Any, batch: Batch, model_state: Any, key: jax.Array) -> Any:
        return forward(params, batch, model_state, key)[0]

    def backward(grads: Any, cotangents: Any) -> tuple[Any, None, None, None]:
        return jax.tree.map(lambda leaf: cotangents[0] * leaf, grads), None, None, None

    loss_fn.defvjp(forward, backward)
    return loss_fn


def _optax_sam(loss_fn: LossFn, base: Any) -> optax.GradientTransformationExtraArgs:
    """SAM as optax has it, in its opaque mode, taking the arguments of the loss as the trainer passes them."""
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(SAM_RHO))
    sam = optax.contrib.sam(optax.with_extra_args_support(base), adversary, sync_period=2, opaque_mode=True)

    def update(updates: Any, state: Any, params: Any = None, **arguments: Any) -> Any:
        gradient = jax.grad(loss_fn, has_aux=True)
        return sam.update(updates, state, params, grad_fn=lambda point, _: gradient(point, **arguments)[0])

    return optax.GradientTransformationExtraArgs(sam.init, update)
