"""The state of a training run: all that changes from step to step, so that saving it loses nothing."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from experiments.optim.config import Averaging
from experiments.train.config import TrainConfig
from experiments.train.ema import ema
from gam_jax.averaging import Swad, swad

AVERAGING: dict[Averaging, Swad] = {
    "none": Swad(
        init=lambda params: cast(Any, ()),
        update=lambda state, params: state,
        validate=lambda state, loss: state,
        average=lambda state, params: params,
    ),
    "swad": swad(),
}
"""Those without numbers of their own."""


def averaging(config: TrainConfig) -> Swad:
    """The weight averaging of a run."""
    return {"ema": ema(config.ema_decay), **AVERAGING}[config.averaging]


class Sums(NamedTuple):
    """Sums over examples, of which means are made on the host.

    Attributes:
      loss: of the losses.
      correct: number of right predictions.
      correct_in_5: number of labels among the five largest logits.
      examples: their number.
    """

    loss: jax.Array
    correct: jax.Array
    correct_in_5: jax.Array
    examples: jax.Array

    @classmethod
    def zero(cls) -> "Sums":
        return cls(*(jnp.zeros((), jnp.float32) for _ in cls._fields))

    def means(self, num_classes: int) -> dict[str, float]:
        """Loss and accuracy per example, and where there are more than ten classes the accuracy of five guesses."""
        loss, correct, correct_in_5, examples = (float(value) for value in jax.device_get(self))
        top5 = {"top5_accuracy": correct_in_5 / examples} if num_classes > 10 else {}
        return {"loss": loss / examples, "accuracy": correct / examples} | top5


class TrainState(NamedTuple):
    """A pytree of arrays.

    Attributes:
      step: number of steps so far, int32.
      params: of the network.
      model_state: of the network: its batch statistics.
      opt_state: of the optimizer.
      averaging: of the weight averaging.
      sums: over the examples since the last record in the metrics.
      followed: of the top eigenvalue that is followed, or () if none is.
      broken: the first step with a loss that is not finite, or -1.
    """

    step: jax.Array
    params: Any
    model_state: Any
    opt_state: Any
    averaging: Any
    sums: Sums
    followed: Any
    broken: jax.Array


def initial_weights(init: Callable[[jax.Array], tuple[Any, Any]], seed: jax.typing.ArrayLike) -> tuple[Any, Any]:
    """Parameters and batch statistics of a network at initialisation."""
    return init(jax.random.fold_in(jax.random.key(seed), 0))


def initial_state(
    optimizer_init: Callable[[Any], Any],
    averaging_init: Callable[[Any], Any],
    weights: tuple[Any, Any],
    follow_init: Callable[[Any], Any] = lambda params: (),
) -> TrainState:
    """The state before the first step; to be jitted with the shardings that it should have."""
    params, model_state = weights
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=model_state,
        opt_state=optimizer_init(params),
        averaging=averaging_init(params),
        sums=Sums.zero(),
        followed=follow_init(params),
        broken=jnp.full((), -1, jnp.int32),
    )
