"""The training steps whose cost is measured: the trainer's own, with everything that may come before the optimizer."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

import gam_jax
from experiments.data import Batch
from experiments.measure.cost.config import BenchmarkConfig, Network
from experiments.measure.cost.stand_in import set_up_without_data
from experiments.optim.chain import gradient_alone, make_chain, phases
from experiments.optim.config import OptimConfig, with_method
from experiments.optim.methods import METHODS, SHARED, Method, released
from experiments.train.config import TrainConfig
from experiments.train.setup import Setup
from experiments.train.state import TrainState, averaging, initial_state, initial_weights
from experiments.train.step import LossFn, train_step

_OWN = {"accelerated_gam": released(rho=0.2, rho_prime=0.02, alpha=0.6, beta=0.5, gamma=0.03)}
_PLAIN = OptimConfig(method="plain", learning_rate=0.01, weight_decay=5e-4, momentum=0.9)
RHO, ALPHA, SAM_RHO = SHARED["gam_rho"], SHARED["gam_alpha"], SHARED["sam_rho"]
Step = Callable[[TrainState, Batch], TrainState]
PHASES: dict[str, dict[str, Any]] = {
    {True: "acting", False: "skipped"}[acts]: options for acts, options in phases(rests=True).items()
}
"""Options of the steps on which a method acts, and of those between."""


class Case(NamedTuple):
    """A training step, or two: one on which the method acts, and one between, with the optimizer state of the method.

    Attributes:
      name: as it stands in tables.
      intervals: the method acts on every so many-th step; a row of the table for each.
      steps: by phase, "acting" and where it can be left out "skipped"; to be jitted. As in the trainer these are two
        programs, unless both are the same function: then the step count decides between branches of one program.
      init: the state before the first step; to be jitted.
    """

    name: str
    intervals: tuple[int, ...]
    steps: dict[str, Step]
    init: Callable[[], TrainState]


def train_config(config: BenchmarkConfig, network: Network, method: Method = "plain") -> TrainConfig:
    """The training run whose step is measured."""
    return TrainConfig(
        workdir=config.workdir,
        data=config.data_config(),
        model=getattr(config, network),
        optim=with_method(_PLAIN, method, own=_OWN),
        epochs=100,
        batch_size=config.batch_size,
    )


def cases(config: BenchmarkConfig, network: Network) -> Iterator[Case]:
    """SGD first; then the methods, GAM's other forms, GAM in microbatches, and optax's SAM."""
    plain = set_up_without_data(train_config(config, network))
    yield _case(METHODS["plain"].label, plain, {"acting": {}}, (1,))
    for method in config.methods:
        if method != "plain":
            setup = set_up_without_data(train_config(config, network, method))
            yield _case(METHODS[method].label, setup, PHASES, config.intervals)
            if method == "gam":
                yield from _other_forms(config, setup, plain)
    if config.peers and "sam" in config.methods:
        tx = _optax_sam(plain.loss_fn, plain.chain.tx)
        step = _step(plain, tx, gradient_alone(plain.loss_fn))
        yield Case("optax.contrib.sam", (1,), {"acting": step}, _init(plain, tx))


def _other_forms(config: BenchmarkConfig, gam: Setup, plain: Setup) -> Iterator[Case]:
    """GAM with other Hessian-vector products, as ``gam_value_and_grad``, and with an interval in one program."""
    for hvp in config.hvp:
        if hvp != "linearize":  # which GAM has by default
            yield _case(f"GAM, hvp={hvp}", gam, PHASES, config.intervals, hvp=hvp)
    yield _value_and_grad_case(gam.loss_fn, plain, 1)
    yield _value_and_grad_case(gam.loss_fn, plain, config.num_microbatches)
    longest = max(config.intervals)
    if longest > 1:
        case = _case("GAM, in one program with a branch", gam, {"acting": {"interval": longest}}, (longest,))
        yield case._replace(steps=dict.fromkeys(PHASES, case.steps["acting"]))


def _case(
    name: str, setup: Setup, of: Mapping[str, dict[str, Any]], intervals: tuple[int, ...], **options: Any
) -> Case:
    """The trainer's step with the options of each phase."""
    make = functools.partial(make_chain, setup.config.optim, setup.loss_fn, setup.steps, at_once=setup.scans)
    chains = {phase: make(**options, **more) for phase, more in of.items()}
    steps = {phase: _step(setup, chain.tx, chain.value_and_grad) for phase, chain in chains.items()}
    return Case(name, intervals, steps, _init(setup, chains["acting"].tx))


def _step(setup: Setup, tx: Any, value_and_grad: Callable[..., Any]) -> Step:
    return functools.partial(train_step, setup.config, setup.seen, value_and_grad, tx)


def _init(setup: Setup, tx: Any) -> Callable[[], TrainState]:
    return lambda: initial_state(
        tx.init, averaging(setup.config).init, initial_weights(setup.model.init, setup.config.seed)
    )


def _value_and_grad_case(loss_fn: LossFn, plain: Setup, num_microbatches: int) -> Case:
    """The training step with ``gam_value_and_grad`` in place of ``jax.value_and_grad``."""
    name = "gam_value_and_grad" + (f", num_microbatches={num_microbatches}" if num_microbatches > 1 else "")
    step = _step(plain, plain.chain.tx, gradient_alone(_loss_with_gradient(loss_fn, num_microbatches)))
    return Case(name, (1,), {"acting": step}, _init(plain, plain.chain.tx))


def _loss_with_gradient(inner: LossFn, num_microbatches: int) -> LossFn:
    """The loss, whose gradient, when it is differentiated, is that of ``gam_value_and_grad``."""

    def forward(params: Any, batch: Batch, model_state: Any, key: jax.Array) -> tuple[Any, Any]:
        options: Any = {"num_microbatches": num_microbatches, "has_aux": True}
        value_and_grad = gam_jax.gam_value_and_grad(inner, RHO, ALPHA, **options)
        (loss, (logits, new_state)), grads = value_and_grad(params, batch, model_state, key)
        if num_microbatches > 1:  # row r of the batch was in microbatch r mod num_microbatches
            logits = jnp.swapaxes(logits, 0, 1).reshape(-1, logits.shape[-1])
            new_state = jax.tree.map(lambda leaf: leaf.mean(0), new_state)
        return (loss, (logits, new_state)), grads

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
