"""Parameters kept near a reference: a projection as the last link of an optax chain."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gam_jax._check_trees import check_floating, check_like_params
from gam_jax._checks import check_number
from gam_jax._signature import readable
from gam_jax._tree import wide_dtype
from gam_jax._types import PyTree


class ClampState(NamedTuple):
    """The state of :func:`gam_jax.clamp_to`.

    Attributes:
      reference: the parameters that ``init`` was given.
    """

    reference: PyTree


@readable
def clamp_to(bound: float | jax.Array) -> optax.GradientTransformationExtraArgs:
    r"""Keeps every parameter within ``bound`` of where it was at ``init``: the last link of a chain.

    With the reference :math:`w^*` and the incoming updates u,

    .. math:: update = \min(\max(w + u,\; w^* - b),\; w^* + b) - w

    so that ``optax.apply_updates`` ends at the projection of w + u onto the box of half width b. A step that stays in
    the box is passed on bitwise; with b = 0 parameters at the reference never move. F2M (Shi et al. 2021) clamps so in
    its later sessions, with b half the bound of its noise: within the box in which the base session made the loss flat.

    * Some leaves alone: ``optax.masked(gam_jax.clamp_to(b), mask)``; the reference of the others is not kept.
    * Over several sessions the reference is that of the first: keep the state, or call ``init`` with the parameters
      of the base session.

    1. Where w + u is rounded out of the box, the update is moved by one floating-point number toward it: a second
       projection changes nothing. Parameters in bfloat16 end within their rounding of the box.

    Cost: one pass over the parameters. State: one copy of them.

    Args:
      bound: b, in units of the parameters, >= 0: a number, or a traced scalar, as ``optax.inject_hyperparams`` has it.

    Returns:
      An ``optax.GradientTransformationExtraArgs``, with :class:`gam_jax.ClampState`.

    Raises:
      ValueError, TypeError: for a bound out of range, parameters that are not floating-point, ``params=None``, a state
        or updates that are not those of the parameters.

    Example:
      >>> import optax, gam_jax
      >>> import jax.numpy as jnp
      >>> tx = optax.chain(optax.sgd(1.0), gam_jax.clamp_to(0.5))
      >>> params = jnp.array([1.0, 2.0])
      >>> state = tx.init(params)
      >>> for _ in range(3):
      ...     updates, state = tx.update(jnp.array([1.0, 0.125]), state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> print(params)
      [0.5   1.625]

    References:
      Shi, Chen, Zhang, Zhan, Wu: Overcoming Catastrophic Forgetting in Incremental Few-Shot Learning by Finding Flat
      Minima. NeurIPS 2021. https://arxiv.org/abs/2111.01549
    """
    check_number("bound", bound)

    def init(params: PyTree) -> ClampState:
        check_floating("parameters", "params", params, "mask what is not trained")
        # 1. Copies: a step that donates both its parameters and its state must not find one buffer in both.
        return ClampState(jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params))

    def update(updates: PyTree, state: Any, params: PyTree = None, **extra: Any) -> tuple[PyTree, ClampState]:
        del extra
        if params is None:
            raise ValueError(
                "the projection needs the parameters: call update(updates, state, params), got params=None"
            )
        if not isinstance(state, ClampState):
            raise TypeError(f"state must be what init returned, a ClampState, got {state!r}")
        check_like_params("updates", updates, params)
        check_like_params("the reference in the state", state.reference, params)
        return jax.tree.map(lambda u, p, r: _into_box(u, p, r, bound), updates, params, state.reference), state

    return optax.GradientTransformationExtraArgs(init, update)


def _into_box(update: jax.Array, param: jax.Array, reference: jax.Array, bound: Any) -> jax.Array:
    """The update that ends within the bound of the reference."""
    update, param = jnp.asarray(update), jnp.asarray(param)
    dtype = wide_dtype(update, param, reference)
    center, width = reference.astype(dtype), jnp.asarray(bound, dtype)
    low, high = center - width, center + width

    def landing(update: jax.Array) -> jax.Array:
        """Where ``optax.apply_updates`` ends."""
        return (param + update).astype(param.dtype).astype(dtype)

    there = landing(update)
    clamped = (jnp.clip(there, low, high) - param.astype(dtype)).astype(update.dtype)
    rounded = landing(clamped)
    inward = jnp.where(rounded > high, -jnp.inf, jnp.where(rounded < low, jnp.inf, clamped)).astype(update.dtype)
    inside = (there >= low) & (there <= high)
    return jnp.where(inside, update, jnp.nextafter(clamped, inward))
