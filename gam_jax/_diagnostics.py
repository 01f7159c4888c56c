"""Reads what the methods saw out of the state of any chain."""

import collections
from typing import Any

import jax
import optax

from gam_jax._hold import Held
from gam_jax._signature import readable
from gam_jax._transform import State
from gam_jax._types import PyTree


@readable
def diagnostics(opt_state: PyTree) -> dict[str, jax.Array]:
    """What every method of a chain saw on the last step on which it acted, by method and name.

    A method is named like its function; ASAM and GSAM are "sam". A second one of the same function is "sam_2", in the
    order of the chain. Beside the fields of its diagnostics there are "mismatch" and, with ``drop_nonfinite``,
    "dropped" (:class:`gam_jax.State`), and with ``between="hold"`` or ``"look"`` "held_cosine" (:class:`gam_jax.Held`).

    Cost: none; inside jit as well.

    Args:
      opt_state: the state of a chain, however nested: in ``optax.MultiSteps``, ``optax.inject_hyperparams``,
        ``optax.apply_if_finite`` and so on, or a whole training state that holds one.

    Returns:
      A dict such as ``{"gam/grad_norm": ..., "sam/cosine": ...}`` of float32 scalars, with the leading axes of an
      ensemble if the state has any. Empty if no method of the family is in the chain.

    Raises:
      TypeError: for a transformation in place of its state.

    Example:
      >>> import jax, optax, gam_jax
      >>> import jax.numpy as jnp
      >>> loss_fn = lambda params: jnp.sum(params**2)
      >>> tx = optax.chain(gam_jax.sam(loss_fn, 0.1), gam_jax.gam(loss_fn, 0.1, 0.5), optax.sgd(0.1))
      >>> params = jnp.array([3.0, 4.0])
      >>> _, opt_state = tx.update(jax.grad(loss_fn)(params), tx.init(params), params)
      >>> seen = gam_jax.diagnostics(opt_state)
      >>> print(seen["sam/grad_norm"], seen["sam/perturbed_grad_norm"].round(2), seen["gam/grad_norm"])
      10.0 10.2 10.0
    """
    if isinstance(opt_state, optax.GradientTransformation):
        raise TypeError(f"opt_state must be what the transformation's init and update return, got {opt_state!r}")
    found, numbers = {}, collections.Counter()
    for state in jax.tree.leaves(opt_state, is_leaf=_is_state):
        if not _is_state(state):
            continue
        numbers[state.method] += 1
        number = numbers[state.method]
        prefix = state.method if number == 1 else f"{state.method}_{number}"
        found |= {f"{prefix}/{name}": value for name, value in _named(state).items()}
    return found


def _is_state(node: Any) -> bool:
    return isinstance(node, State)


def _named(state: State) -> dict[str, jax.Array]:
    held = {"held_cosine": state.held.held_cosine} if isinstance(state.held, Held) else {}
    return state.diagnostics._asdict() | held | dict(state.checks)
