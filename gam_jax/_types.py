"""Types shared by the whole library."""

from collections.abc import Callable
from typing import Any, Literal

import jax

PyTree = Any
LossFn = Callable[..., Any]
"""``loss_fn(params, ...) -> scalar``, or ``-> (scalar, aux)`` with ``has_aux=True``."""
ScalarOrSchedule = float | jax.Array | Callable[[jax.Array], Any]
"""A float, a traced scalar, or an optax schedule (step count -> scalar)."""
HvpMode = Literal["linearize", "jvp", "reverse", "finite_difference"]
Between = Literal["skip", "hold", "look"]
GroupsBy = Literal["scan", "vmap"]
