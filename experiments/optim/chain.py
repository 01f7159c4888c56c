"""Optimizers as config values: from a method's name and its hyper-parameters to an optax chain."""

import dataclasses
import difflib
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

import gam_jax
from gam_jax._types import Between, HvpMode

Method = Literal[
    "plain", "sam", "gam", "sam+gam", "accelerated_gam", "asam", "gsam", "gradient_norm_penalty", "c_flat", "fad"
]
METHODS: tuple[Method, ...] = get_args(Method)
Base = Literal["sgd", "adamw"]
"""The optimizer at the end of the chain, under every method."""
Averaging = Literal["none", "swad"]
"""What to do with the iterates: take the last one, or average them (gam_jax.averaging.swad)."""
RhoSchedule = Literal["constant", "proportional", "inverse_sqrt"]
"""How the radii change with the step t: not at all; as the learning rate does; as 1 / sqrt(t) (Theorem 4.4)."""
LABELS: dict[str, str] = {
    "plain": "SGD",
    "sam": "SAM",
    "gam": "GAM",
    "sam+gam": "SAM + GAM",
    "accelerated_gam": "accelerated GAM",
    "asam": "ASAM",
    "gsam": "GSAM",
    "gradient_norm_penalty": "gradient-norm penalty",
    "c_flat": "C-Flat",
    "fad": "FAD",
}


def label(method: str, base: Base) -> str:
    """A method as people write it; plain has the name of its base optimizer."""
    return "AdamW" if (method, base) == ("plain", "adamw") else LABELS[method]


_BASE = ("learning_rate", "weight_decay")
HYPERPARAMETERS: dict[str, tuple[str, ...]] = {
    "plain": _BASE,
    "sam": (*_BASE, "sam_rho"),
    "gam": (*_BASE, "gam_rho", "gam_alpha"),
    "sam+gam": (*_BASE, "sam_rho", "gam_rho", "gam_alpha"),
    "accelerated_gam": (*_BASE, "sam_rho", "gam_rho", "gam_alpha", "beta", "gamma"),
    "asam": (*_BASE, "sam_rho"),
    "gsam": (*_BASE, "sam_rho", "gamma"),
    "gradient_norm_penalty": (*_BASE, "strength"),
    "c_flat": (*_BASE, "gam_rho", "strength"),
    "fad": (*_BASE, "gam_rho", "gam_alpha", "beta"),
}
"""What each method has to tune."""
TUNABLE = frozenset().union(*HYPERPARAMETERS.values())
_STATIC = ("method", "base", "warmup", "rho_schedule", "interval", "between", "ascent_hvp", "curvature_share")


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """A method and its hyper-parameters; those that the method does not have are None.

    It is a pytree in which the numbers to tune are leaves and the rest is static: a jitted function is compiled once
    per method, whatever the numbers.
    """

    method: Method
    """The method; plain is the base optimizer alone."""
    learning_rate: float
    """Peak learning rate; cosine to 0."""
    weight_decay: float
    """With sgd added to the gradient after the method, biases included; with adamw decoupled, of matrices only."""
    momentum: float
    """Momentum of sgd, or the first decay rate of adamw."""
    base: Base = "sgd"
    """The base optimizer."""
    warmup: float = 0.0
    """Fraction of the steps in which the learning rate rises linearly to its peak."""
    rho_schedule: RhoSchedule = "constant"
    """How the radii change: not at all, in proportion to the learning rate, or with the inverse root of the step."""
    interval: int = 1
    """Apply the method on every so many-th step, and the base optimizer alone on the others."""
    between: Between = "skip"
    """What the other steps add to the gradient: nothing, or (hold) what the method added last."""
    max_ratio: float | None = None
    """Bound of what the method adds, as a multiple of the norm of the gradient; none if not given."""
    ascent_hvp: HvpMode | None = None
    """How GAM's ascent direction is computed; finite_difference makes a step 5 gradients rather than 6."""
    curvature_share: int = 1
    """GAM's own passes see every so many-th image of the batch; the gradient sees all."""
    sam_rho: float | None = None
    """Radius of SAM and its kin: of the ascent of the loss. In accelerated GAM it is rho'."""
    gam_rho: float | None = None
    """Radius of GAM and its kin: of the ascent of the gradient norm."""
    gam_alpha: float | None = None
    """Weight of GAM's flatness term; in accelerated GAM alpha of Algorithm 2, in FAD the share of SAM's part."""
    beta: float | None = None
    """Weight beta of accelerated GAM, or of FAD."""
    gamma: float | None = None
    """Weight of the orthogonal component in accelerated GAM, or in GSAM."""
    strength: float | None = None
    """Weight of the gradient-norm penalty, or of C-Flat's term."""

    def tuned(self) -> dict[str, float]:
        """The method's hyper-parameters by name."""
        return {name: getattr(self, name) for name in HYPERPARAMETERS[self.method]}

    @property
    def label(self) -> str:
        """The method as people write it."""
        return label(self.method, self.base)


jax.tree_util.register_dataclass(
    OptimConfig,
    data_fields=[field.name for field in dataclasses.fields(OptimConfig) if field.name not in _STATIC],
    meta_fields=list(_STATIC),
)


class Chain(NamedTuple):
    """An optimizer and what belongs to it.

    Attributes:
      tx: takes the clean gradient of the loss, and the loss's other arguments as extra arguments by name.
      learning_rate: of each step.
      links: names of the links before the base optimizer, in their order.
    """

    tx: optax.GradientTransformationExtraArgs
    learning_rate: Callable[[Any], Any]
    links: tuple[str, ...]


def build(config: OptimConfig, loss_fn: Callable[..., Any], steps: int, **options: Any) -> Chain:
    """The optax chain: the method's links (SAM before GAM), then the base optimizer with its weight decay.

    Args:
      config: what to build.
      loss_fn: the loss of the parameters and of named arguments.
      steps: number of training steps, after which the learning rate is 0.
      **options: of the method's links, see :class:`gam_jax.Options`; has_aux, if the loss returns something beside its
        value.
    """
    relative = _warmup_cosine(config.warmup * steps, steps)

    def learning_rate(count: jax.typing.ArrayLike) -> Any:
        return config.learning_rate * relative(count)

    shared = {name: getattr(config, name) for name in ("interval", "between", "max_ratio")}
    options = {**shared, **options}
    links = _links(config, loss_fn, lambda rho: _radius(config.rho_schedule, rho, relative), options)
    if config.base == "sgd":
        base = [optax.add_decayed_weights(config.weight_decay), optax.sgd(learning_rate, config.momentum)]
    else:
        matrices = lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)  # noqa: E731
        base = [optax.adamw(learning_rate, config.momentum, weight_decay=config.weight_decay, mask=matrices)]
    return Chain(optax.chain(*links.values(), *base), learning_rate, tuple(links))


def _links(
    config: OptimConfig, loss_fn: Callable[..., Any], radius: Callable[[Any], Any], options: dict[str, Any]
) -> dict[str, optax.GradientTransformationExtraArgs]:
    """What comes before the base optimizer, by name."""
    own: Any = config  # a method's own numbers are there: the config was checked
    radii: Any = {name: radius(getattr(own, name)) for name in ("sam_rho", "gam_rho") if getattr(own, name) is not None}
    sam_rho, gam_rho = radii.get("sam_rho"), radii.get("gam_rho")
    make: dict[str, Callable[[], optax.GradientTransformationExtraArgs]] = {
        "sam": lambda: gam_jax.sam(loss_fn, sam_rho, **options),
        "gam": lambda: gam_jax.gam(
            _on_every_nth(config.curvature_share, loss_fn),
            gam_rho,
            own.gam_alpha,
            ascent_hvp=config.ascent_hvp,
            **options,
        ),
        "accelerated_gam": lambda: gam_jax.accelerated_gam(
            loss_fn, gam_rho, sam_rho, own.gam_alpha, own.beta, own.gamma, **options
        ),
        "asam": lambda: gam_jax.sam(loss_fn, sam_rho, adaptive=True, **options),
        "gsam": lambda: gam_jax.sam(loss_fn, sam_rho, gamma=own.gamma, **options),
        "gradient_norm_penalty": lambda: gam_jax.gradient_norm_penalty(loss_fn, own.strength, **options),
        "c_flat": lambda: gam_jax.c_flat(loss_fn, gam_rho, own.strength, **options),
        "fad": lambda: gam_jax.fad(loss_fn, gam_rho, own.gam_alpha, own.beta, **options),
    }
    names = {"plain": (), "sam+gam": ("sam", "gam")}.get(config.method, (config.method,))
    return {name: make[name]() for name in names}


def _on_every_nth(n: int, loss_fn: Callable[..., Any]) -> Callable[..., Any]:
    """The loss on every n-th row of the batch."""
    if n == 1:
        return loss_fn

    def on_rows(params: Any, batch: Any, **arguments: Any) -> Any:
        return loss_fn(params, batch=jax.tree.map(lambda rows: rows[::n], batch), **arguments)

    return on_rows


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


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name: the nearest known one, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {close[0]!r}?" if close else f": known are {', '.join(map(repr, known))}"
