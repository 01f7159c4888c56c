"""Optimizers as config values: from a method's name and its hyper-parameters to an optax chain."""

import dataclasses
import difflib
import functools
from collections.abc import Callable, Iterable
from typing import Any, Literal, get_args

import jax
import optax

import gam_jax

Method = Literal["sgd", "sam", "gam", "sam+gam"]
METHODS: tuple[Method, ...] = get_args(Method)
LABELS: dict[str, str] = {"sgd": "SGD", "sam": "SAM", "gam": "GAM", "sam+gam": "SAM + GAM"}
HYPERPARAMETERS: dict[str, tuple[str, ...]] = {
    "sgd": ("learning_rate", "weight_decay"),
    "sam": ("learning_rate", "weight_decay", "sam_rho"),
    "gam": ("learning_rate", "weight_decay", "gam_rho", "gam_alpha"),
    "sam+gam": ("learning_rate", "weight_decay", "sam_rho", "gam_rho", "gam_alpha"),
}
"""What each method has to tune."""


@functools.partial(
    jax.tree_util.register_dataclass,
    meta_fields=["method"],
    data_fields=["learning_rate", "weight_decay", "momentum", "sam_rho", "gam_rho", "gam_alpha"],
)
@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """A method and its hyper-parameters; those that the method does not have are None.

    It is a pytree in which the method is static: a jitted function is compiled once per method, whatever the numbers.
    """

    method: Method
    """The optimizer."""
    learning_rate: float
    """Peak learning rate; cosine to 0."""
    weight_decay: float
    """Added to the gradient after SAM and GAM, biases included."""
    momentum: float
    """Momentum of SGD, under every method."""
    sam_rho: float | None = None
    """Radius of SAM."""
    gam_rho: float | None = None
    """Radius of GAM."""
    gam_alpha: float | None = None
    """Weight of GAM's flatness term."""

    def tuned(self) -> dict[str, float]:
        """The method's hyper-parameters by name."""
        return {name: getattr(self, name) for name in HYPERPARAMETERS[self.method]}


def build(config: OptimConfig, loss_fn: Callable[..., Any], steps: int) -> optax.GradientTransformationExtraArgs:
    """The optax chain: SAM, then GAM, then weight decay (added to the gradient), then SGD with a cosine to 0.

    Its update takes the clean gradient of ``loss_fn``, and the batch as an extra argument.
    """
    links = []
    tuned = config.tuned()
    if "sam_rho" in tuned:
        links.append(gam_jax.sam(loss_fn, tuned["sam_rho"]))
    if "gam_rho" in tuned:
        links.append(gam_jax.gam(loss_fn, tuned["gam_rho"], tuned["gam_alpha"]))
    schedule = optax.cosine_decay_schedule(config.learning_rate, steps)
    return optax.chain(*links, optax.add_decayed_weights(config.weight_decay), optax.sgd(schedule, config.momentum))


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name: the nearest known one, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f": did you mean {close[0]!r}?" if close else f": known are {', '.join(map(repr, known))}"
