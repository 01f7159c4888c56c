"""The seam to Equinox: ``filter_value_and_grad`` of a model, in place of ``eqx.filter_value_and_grad``."""

from collections.abc import Callable
from typing import Any

import jax

from gam_jax._loss import of_model
from gam_jax._types import LossFn, PyTree
from gam_jax.rules.gam import gam_value_and_grad

try:
    import equinox as eqx
except ImportError as error:
    raise ImportError("gam_jax.equinox needs Equinox: pip install 'gam-jax[equinox]'") from error

__all__ = ["filter_value_and_grad"]


def filter_value_and_grad(
    loss_fn: LossFn, *coefficients: Any, method: Callable[..., Any] = gam_value_and_grad, **options: Any
) -> Callable[..., tuple[Any, ...]]:
    r"""``eqx.filter_value_and_grad`` with the gradient of a method of the family in place of that of the loss.

    One line of a training step changes::

        loss, grads = eqx.filter_value_and_grad(loss_fn)(model, batch)
        loss, grads = gam_jax.equinox.filter_value_and_grad(loss_fn, rho=0.1, alpha=0.5)(model, batch)

    The function of the method is that of the inexact arrays :math:`w` of the model, with everything else in it held
    fixed: :math:`L(w) = \text{loss\_fn}(model_w, \ldots)`. All passes see the same random key and the same
    ``eqx.nn.State``; the new state that the loss returns as aux (``has_aux=True``) is that of the clean pass. Works
    outside and inside ``eqx.filter_jit``.

    Cost: that of the method, 6 gradient evaluations for GAM and 2 for SAM.

    Args:
      loss_fn: ``loss_fn(model, *args, **kwargs)``, returning a scalar, or ``(scalar, aux)`` with ``has_aux=True``.
      *coefficients: of the method, such as rho and alpha; by name or by position.
      method: the form of the method that takes the loss and returns a function like that of ``jax.value_and_grad``:
        :func:`gam_jax.gam_value_and_grad` (default) or one of its siblings.
      **options: of the method, ``has_diagnostics`` and those of :class:`gam_jax.Options`. ``rho`` and masks by leaf
        have the structure of ``eqx.filter(model, eqx.is_inexact_array)``. With ``num_microbatches`` or ``groups`` aux,
        a state too, is stacked along a new leading axis.

    Returns:
      A function ``(model, *args, **kwargs) -> (loss, grads)``, or ``((loss, aux), grads)``; what the method returns
      beyond these (diagnostics, a memory) comes after them. ``grads`` is a model with None in place of
      what is not trained.

    Raises:
      ValueError, TypeError: as the method does; ValueError for a model without inexact arrays.

    Example:
      >>> import equinox as eqx, gam_jax.equinox, jax, jax.numpy as jnp
      >>> def loss_fn(model, x, y):
      ...     return jnp.mean((jax.vmap(model)(x) - y) ** 2)
      >>> model = eqx.nn.MLP("scalar", "scalar", width_size=8, depth=1, key=jax.random.key(0))
      >>> x = jnp.linspace(-1, 1, 16)
      >>> fn = gam_jax.equinox.filter_value_and_grad(loss_fn, rho=0.1, alpha=0.5)
      >>> loss, grads = eqx.filter_jit(fn)(model, x, jnp.sin(x))
      >>> model = eqx.apply_updates(model, jax.tree.map(lambda g: -0.1 * g, grads))
      >>> bool(loss_fn(model, x, jnp.sin(x)) < loss)
      True

    References:
      Zhang, Xu, Yu, Zou, Cui: Gradient Norm Aware Minimization Seeks First-Order Flatness and Improves
      Generalization. CVPR 2023. https://arxiv.org/abs/2303.03108
    """
    method(loss_fn, *coefficients, **options)  # what is wrong with these is said here, not at the first step

    def value_and_grad_of_model(model: PyTree, /, *args: Any, **kwargs: Any) -> Any:
        params, static = eqx.partition(model, eqx.is_inexact_array)
        if not jax.tree.leaves(params):
            raise ValueError(f"the first argument must be a model with inexact arrays, got {model!r}")

        @of_model(loss_fn)
        def loss_of_arrays(params: PyTree, /, *args: Any, **kwargs: Any) -> Any:
            return loss_fn(eqx.combine(params, static), *args, **kwargs)

        return method(loss_of_arrays, *coefficients, **options)(params, *args, **kwargs)

    return value_and_grad_of_model
