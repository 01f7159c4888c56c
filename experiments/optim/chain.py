"""Optimizers as config values: from a method's name and its hyper-parameters to an optax chain."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import gam_jax
from experiments.common.errors import UserError
from experiments.optim.clip import clip
from experiments.optim.config import STATIC, OptimConfig, RhoSchedule
from experiments.optim.methods import METHODS

jax.tree_util.register_dataclass(
    OptimConfig,
    data_fields=[field.name for field in dataclasses.fields(OptimConfig) if field.name not in STATIC],
    meta_fields=list(STATIC),
)


class Chain(NamedTuple):
    """An optimizer and what belongs to it.

    Attributes:
      tx: takes the clean gradient of the loss, and the loss's other arguments as extra arguments by name.
      learning_rate: of each step.
      links: names of the links before the base optimizer, in their order.
      value_and_grad: ``(params, count, **arguments) -> ((loss, aux), gradient, saw)``, of which ``tx`` takes the
        gradient and, by name, ``saw``, what the method saw if it acted at once.
    """

    tx: optax.GradientTransformationExtraArgs
    learning_rate: Callable[[Any], Any]
    links: tuple[str, ...]
    value_and_grad: Callable[..., Any]


def build(
    config: OptimConfig, loss_fn: Callable[..., Any], steps: int, *, at_once: bool = False, **options: Any
) -> Chain:
    """The optax chain: the method's links (SAM before GAM), clipping, then the base optimizer with its weight decay.

    Args:
      config: what to build.
      loss_fn: the loss of the parameters and of named arguments.
      steps: number of training steps, after which the learning rate is 0.
      at_once: compute gradient and link in one function, if the method and its options allow it. The state is the same.
      **options: of the method's links, see :class:`gam_jax.Options`; has_aux, if the loss returns something beside its
        value.
    """
    relative = _warmup_cosine(config.warmup * steps, steps)

    def learning_rate(count: jax.typing.ArrayLike) -> Any:
        return config.learning_rate * relative(count)

    shared = {name: getattr(config, name) for name in ("between", "look_ratio", "max_ratio", "groups")}
    options = {**shared, "interval": acting(config, steps), "share": config.curvature_share, **options}
    numbers = {name: getattr(config, name) for name in METHODS[config.method].own}
    for name in numbers:
        if name.endswith("rho"):
            numbers[name] = _radius(config.rho_schedule, numbers[name], relative)
    links = _links(config, loss_fn, numbers, options)
    if config.base == "sgd":
        base = [optax.add_decayed_weights(config.weight_decay), optax.sgd(learning_rate, config.momentum)]
    else:
        matrices = lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)  # noqa: E731
        base = [optax.adamw(learning_rate, config.momentum, weight_decay=config.weight_decay, mask=matrices)]
    value_and_grad = gradient_alone(loss_fn)
    if at_once and METHODS[config.method].at_once and _acts_alone(options):
        value_and_grad, links = _at_once(config, loss_fn, numbers, options, links)
    clipped = [] if config.clip is None else [clip(config.clip)]
    return Chain(optax.chain(*links.values(), *clipped, *base), learning_rate, tuple(links), value_and_grad)


def gradient_alone(loss_fn: Callable[..., Any]) -> Callable[..., Any]:
    """``(params, count, **arguments) -> ((loss, aux), gradient, None)``: the links see to the rest."""

    def value_and_grad(params: Any, count: Any, **arguments: Any) -> Any:
        del count
        return *jax.value_and_grad(loss_fn, has_aux=True)(params, **arguments), None

    return value_and_grad


def _links(
    config: OptimConfig, loss_fn: Callable[..., Any], numbers: dict[str, Any], options: dict[str, Any]
) -> dict[str, optax.GradientTransformationExtraArgs]:
    """What comes before the base optimizer, by name."""
    links = {}
    for name, link in METHODS[config.method].links.items():
        links[name] = link(loss_fn, numbers, {**_of_gam(config, name), **options})
    return links


def _of_gam(config: OptimConfig, link: str) -> dict[str, Any]:
    return {"ascent_hvp": config.ascent_hvp} if link == "gam" else {}


def _acts_alone(options: dict[str, Any]) -> bool:
    """Whether the method acts on every step of a program, with nothing to keep for others, on the batch as a whole."""
    parts = (options["groups"], options["share"], options.get("num_microbatches", 1))
    return options["interval"] in (1, always) and options["between"] == "skip" and parts == (1, 1, 1)


def _at_once(
    config: OptimConfig, loss_fn: Callable[..., Any], numbers: Any, options: dict[str, Any], links: dict[str, Any]
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Gradient and link in one function, and a link that keeps what it saw.

    1. A link cannot share the caller's gradient where the loss scans over layers; the function need not.
    """
    ((name, link),) = links.items()
    absent = ("interval", "between", "look_ratio", "groups", "share")
    given = {key: value for key, value in options.items() if key not in absent}
    make = METHODS[config.method].at_once
    assert make is not None
    function = make(loss_fn, numbers, {**_of_gam(config, name), **given, "has_diagnostics": True})

    def update(updates: Any, state: Any, params: Any = None, *, saw: Any = None, **arguments: Any) -> tuple[Any, Any]:
        del params, arguments
        kept = jax.tree.map(lambda new, old: jnp.where(jnp.isfinite(new), new, old), saw, state.diagnostics)
        kept = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), kept)
        return updates, state._replace(count=optax.safe_increment(state.count), diagnostics=kept)

    def value_and_grad(params: Any, count: Any, **arguments: Any) -> Any:
        return function(params, count=count, **arguments)

    return value_and_grad, {name: optax.GradientTransformationExtraArgs(link.init, update)}


def acting(config: OptimConfig, steps: int) -> int | Callable[[Any], Any]:
    """The steps on which the method acts, as ``interval`` of its links."""
    if config.late == 1:
        return config.interval
    return gam_jax.late_phase(steps, config.late, interval=config.interval)


def acts(config: OptimConfig, steps: int, count: int) -> bool:
    """Whether the method acts on the step before which there were ``count``."""
    interval = acting(config, steps)
    return bool(interval(count)) if callable(interval) else count % interval == 0


def _warmup_cosine(warmup: float, steps: int) -> optax.Schedule:
    """Linear from 0 to 1 in ``warmup`` steps, then half a cosine to 0."""

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.minimum(jnp.asarray(count, float), steps)
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * (step - warmup) / (steps - warmup)))
        return jnp.where(step < warmup, step / max(warmup, 1.0), cosine)

    return schedule


def _radius(schedule: RhoSchedule, rho: Any, relative: optax.Schedule) -> Any:
    """A radius, or the schedule of one; never negative, whatever rounding does at the end of a cosine."""
    if schedule == "proportional":
        return lambda count: rho * jnp.maximum(relative(count), 0.0)
    if schedule == "inverse_sqrt":
        return lambda count: rho / jnp.sqrt(jnp.asarray(count, float) + 1)
    return rho


def phases(rests: bool) -> dict[bool, dict[str, Any]]:
    """Options of :func:`make_chain` by whether the method acts: for two programs, or for one if it acts on every step.

    A branch inside one program would cost more: it cannot share the gradient outside, and XLA's convolutions are up to
    25 times slower in a branch on the CPU (jax issue 12868).
    """
    every = {True: {"interval": always}, False: {"interval": never}}
    return every if rests else {True: every[True]}


def always(count: Any) -> bool:
    """The interval of a program whose steps all act."""
    del count
    return True


def never(count: Any) -> bool:
    """The interval of a program on whose steps nothing acts."""
    del count
    return False


def make_chain(optim: OptimConfig, loss_fn: Callable[..., Any], steps: int, **options: Any) -> Chain:
    """The optimizer; for the options see :func:`build`.

    Raises:
      UserError: if a number does not suit the method.
    """
    try:
        return build(optim, loss_fn, steps, has_aux=True, **options)
    except ValueError as error:  # of gam_jax or optax
        raise UserError(f"{optim.method!r}: {error}") from error
