"""A loss in two parts, the outputs of a network and a loss of these; and logits of one length."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gam_jax._checks import check_function
from gam_jax._signature import readable


@readable
@dataclasses.dataclass(frozen=True)
class SplitLoss:
    r"""A loss that knows its two parts, :math:`L(w) = \ell(f(w))`: what ``operator="ggn"`` needs.

    It is a loss function like any other, ``split(params, batch, ...)``, and has the arguments of ``outputs_fn``.

    Attributes:
      outputs_fn: f, ``(params, batch, ...) -> outputs``, a pytree of floating-point arrays; ``(params)`` for a loss
        without batches. The Gauss-Newton matrix needs its forward derivative: no custom_vjp inside.
      output_loss: the loss of the outputs, ``(outputs, batch) -> scalar``, the mean over the examples of the batch;
        ``(outputs)`` for a loss without batches.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gam_jax import flatness
      >>> loss_fn = flatness.SplitLoss(lambda w: jnp.sin(w), lambda outputs: jnp.sum(outputs**2) / 2)
      >>> options = dict(key=jax.random.key(0), num_probes=1)
      >>> for operator in ("hessian", "ggn"):  # cos(2 w) and cos(w)^2
      ...     print(f"{flatness.hessian_trace(loss_fn, jnp.ones(1), None, operator=operator, **options).value:.3f}")
      -0.416
      0.292
    """

    outputs_fn: Callable[..., Any]
    output_loss: Callable[..., Any]

    def __post_init__(self):
        check_function("outputs_fn", self.outputs_fn, " (params, batch) -> outputs")
        check_function("output_loss", self.output_loss, " (outputs, batch) -> scalar")
        try:
            object.__setattr__(self, "__signature__", inspect.signature(self.outputs_fn))
        except ValueError:  # of a builtin
            pass

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> Any:
        return self.output_loss(self.outputs_fn(params, *args, **kwargs), *args[:1])


@readable
def normalize_logits(logits: jax.Array) -> jax.Array:
    r"""Logits of mean 0 and length 1, example by example: a network cannot look flat by small, or sharp by large ones.

    .. math:: \tilde f = \frac{f - \bar f}{\|f - \bar f\|}

    Wrap the outputs of the network in it, and every measure of this module is one with logit normalisation:
    ``SplitLoss(lambda params, batch: normalize_logits(model(params, batch)), loss)``. It is that of the released
    program of Andriushchenko et al., which computes all of its measures with and without.

    Cost: one pass over the logits.

    Args:
      logits: [..., classes].

    Returns:
      Likewise, in float32 or wider; zero where all logits of an example are equal, and so is the derivative.

    Raises:
      TypeError: for logits that are not floating-point.

    Example:
      >>> import jax.numpy as jnp
      >>> from gam_jax import flatness
      >>> print(flatness.normalize_logits(jnp.array([[1.0, 3.0], [10.0, 30.0]])).round(3))
      [[-0.707  0.707]
       [-0.707  0.707]]

    References:
      Andriushchenko, Croce, Mueller, Hein, Flammarion: A Modern Look at the Relationship between Sharpness and
      Generalization. ICML 2023. https://arxiv.org/abs/2302.07011
    """
    dtype = getattr(logits, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"logits must be a floating-point array, got logits={logits!r}")
    wide = jnp.asarray(logits, jnp.promote_types(dtype, jnp.float32))
    centred = wide - jnp.mean(wide, -1, keepdims=True)
    squares = jnp.sum(centred**2, -1, keepdims=True)
    return jnp.where(squares > 0, centred / jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)
