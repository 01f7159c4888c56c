"""The seam to Flax NNX: ``value_and_grad`` of a model, in place of ``nnx.value_and_grad``."""

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gam_jax._loss import of_model
from gam_jax._replicas import mean_over
from gam_jax._tree import wide_dtype
from gam_jax._types import LossFn, PyTree
from gam_jax.rules.gam import gam_value_and_grad

try:
    from flax import nnx
except ImportError as error:
    raise ImportError("gam_jax.nnx needs Flax: pip install 'gam-jax[nnx]'") from error

__all__ = ["value_and_grad"]


def value_and_grad(
    loss_fn: LossFn,
    *coefficients: Any,
    method: Callable[..., Any] = gam_value_and_grad,
    wrt: Any = nnx.Param,
    has_aux: bool = False,
    **options: Any,
) -> Callable[..., tuple[Any, ...]]:
    r"""``nnx.value_and_grad`` with the gradient of a method of the family in place of that of the loss.

    One line of a training step changes::

        loss, grads = nnx.value_and_grad(loss_fn)(model, batch)
        loss, grads = gam_jax.nnx.value_and_grad(loss_fn, rho=0.1, alpha=0.5)(model, batch)

    The function of the method is that of the trained variables :math:`w` of the model, with everything else in it held
    fixed: :math:`L(w) = \text{loss\_fn}(model_w, \ldots)`. Every pass runs a copy of the model as it was before the
    step, so that all of them draw the same dropout masks. The model itself moves once, as the clean pass moves it:
    running statistics, counters of random keys and what a layer sows, whatever the number of passes. So do modules,
    ``nnx.Rngs`` and metrics among the other arguments. Works outside and inside ``nnx.jit``.

    With ``num_microbatches`` or ``groups`` every part starts from the same statistics and keys, and draws the same
    masks. Floating-point variables become the mean over the parts (for BatchNorm: the mean of the updated statistics),
    others those of the first part, and what a layer sows anew is stacked along a new leading axis. With ``axis_name``
    floating-point variables are averaged over the replicas too.

    Cost: that of the method, 6 gradient evaluations for GAM and 2 for SAM.

    Args:
      loss_fn: ``loss_fn(model, *args, **kwargs)``, returning a scalar, or ``(scalar, aux)`` with ``has_aux=True``.
      *coefficients: of the method, such as rho and alpha; by name or by position.
      method: the form of the method that takes the loss and returns a function like that of ``jax.value_and_grad``:
        :func:`gam_jax.gam_value_and_grad` (default) or one of its siblings.
      wrt: the filter of the variables to be trained, that of ``nnx.Optimizer``: ``nnx.Param`` (default),
        ``nnx.LoRAParam``, ``nnx.PathContains("head")``. The rest of the model has no part in ascents and norms.
      has_aux: the loss returns ``(loss, aux)``; aux is that of the clean pass.
      **options: of the method, ``has_diagnostics`` and those of :class:`gam_jax.Options`. ``rho`` and masks by leaf
        have the structure of ``nnx.state(model, wrt)``.

    Returns:
      A function ``(model, *args, **kwargs) -> (loss, grads)``, or ``((loss, aux), grads)``; what the method returns
      beyond these (diagnostics, a memory) comes after them. ``grads`` is an ``nnx.State`` of the trained variables, as
      ``nnx.Optimizer.update(model, grads)`` takes it.

    Raises:
      TypeError: for a model that is no NNX module, and for variables that are references (``ref`` or ``hijax``), which
        no copy protects from the other passes.
      ValueError: if ``wrt`` matches nothing. Both: as the method does.

    Example:
      >>> import gam_jax.nnx, jax.numpy as jnp, optax
      >>> from flax import nnx
      >>> class Net(nnx.Module):
      ...     def __init__(self, rngs):
      ...         self.line = nnx.Linear(2, 1, rngs=rngs)
      ...         self.norm = nnx.BatchNorm(1, rngs=rngs)
      ...     def __call__(self, x):
      ...         return self.norm(self.line(x))
      >>> def loss_fn(model, batch):
      ...     return jnp.mean((model(batch["x"]) - batch["y"]) ** 2)
      >>> @nnx.jit
      ... def train_step(model, optimizer, batch):
      ...     loss, grads = gam_jax.nnx.value_and_grad(loss_fn, rho=0.1, alpha=0.5)(model, batch)
      ...     optimizer.update(model, grads)
      ...     return loss
      >>> model = Net(nnx.Rngs(0))
      >>> optimizer = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)
      >>> batch = {"x": jnp.arange(8.0).reshape(4, 2), "y": jnp.arange(4.0)[:, None]}
      >>> losses = [float(train_step(model, optimizer, batch)) for _ in range(50)]
      >>> losses[-1] < losses[0] / 10
      True

    References:
      Zhang, Xu, Yu, Zou, Cui: Gradient Norm Aware Minimization Seeks First-Order Flatness and Improves
      Generalization. CVPR 2023. https://arxiv.org/abs/2303.03108
    """
    transform = functools.partial(method, has_aux=True, **options)
    transform(loss_fn, *coefficients)  # what is wrong with these is said here, not at the first step
    is_trained = nnx.filterlib.to_predicate(wrt)

    def value_and_grad_of_model(model: Any, /, *args: Any, **kwargs: Any) -> Any:
        if not _holds_modules(model):
            raise TypeError(f"the first argument must be an nnx module, got {type(model).__name__}")
        modules = (model, *_only(_holds_modules, args, kwargs))
        graphdef, trained, rest = nnx.split(
            modules, lambda path, leaf: path[0] == 0 and is_trained(path[1:], leaf), ...
        )
        if not trained:
            raise ValueError(f"wrt matches no variable of the model, got {wrt=}")
        _refuse_references(trained, rest)

        @of_model(loss_fn)
        def loss_of_variables(variables: PyTree, /, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            copy = nnx.merge(graphdef, nnx.State({0: variables}), rest, copy=True)
            before = {path: jax.tree.leaves(leaf) for path, leaf in _flat(copy)}
            args, kwargs = _fill(copy[1:], args, kwargs)
            result = loss_fn(copy[0], *args, **kwargs)
            value, aux = result if has_aux else (result, None)
            moved = [(path, leaf) for path, leaf in _flat(copy) if not _same(before.get(path), jax.tree.leaves(leaf))]
            return value, (aux, nnx.from_flat_state(moved), jnp.zeros(()))

        args, kwargs = _only(lambda argument: not _holds_modules(argument), args, kwargs)
        (value, (aux, moved, zero)), grads, *more = transform(loss_of_variables, *coefficients)(
            trained[0], *args, **kwargs
        )
        settle = functools.partial(_settle, axes=zero.ndim, axis_name=options.get("axis_name"))
        known = {path for path, _ in _flat(modules)}
        nnx.update(
            modules, nnx.from_flat_state([(p, settle(leaf) if p in known else leaf) for p, leaf in _flat(moved)])
        )
        return ((value, aux) if has_aux else value, grads, *more)

    return value_and_grad_of_model


def _holds_modules(argument: Any) -> bool:
    """Whether there are NNX modules (or metrics, ``nnx.Rngs``, single variables) in a pytree; a State is data."""
    kinds = (nnx.Pytree, nnx.Variable)
    leaves = jax.tree.leaves(argument, is_leaf=lambda node: isinstance(node, (*kinds, nnx.State)))
    return any(isinstance(leaf, kinds) for leaf in leaves)


def _only(keep: Callable[[Any], bool], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """The arguments with None in place of those that are not kept."""
    return tuple(a if keep(a) else None for a in args), {k: a if keep(a) else None for k, a in kwargs.items()}


def _fill(modules: tuple[Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """The arguments with modules where these are."""
    pick = lambda module, argument: argument if module is None else module  # noqa: E731
    return tuple(map(pick, modules[0], args)), {k: pick(modules[1].get(k), a) for k, a in kwargs.items()}


def _flat(node: Any) -> list[tuple[Any, Any]]:
    """The variables (and bare arrays) of modules or of a State, by path."""
    return list(nnx.to_flat_state(node if isinstance(node, nnx.State) else nnx.state(node)))


def _same(before: list[Any] | None, after: list[Any]) -> bool:
    """Whether nothing has been written: the very same arrays."""
    return before is not None and len(before) == len(after) and all(map(operator.is_, before, after))


def _settle(leaf: PyTree, axes: int, axis_name: Any) -> PyTree:
    """A variable after the step, from what it is after each part (leading axes) and on each replica."""

    def settle(x: jax.Array) -> jax.Array:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x[(0,) * axes]
        return mean_over(axis_name, x.mean(tuple(range(axes)), wide_dtype(x)).astype(x.dtype))

    return jax.tree.map(settle, leaf)


def _refuse_references(*states: nnx.State) -> None:
    """Raises for variables that every pass would write to."""
    for state in states:
        for path, leaf in _flat(state):
            if getattr(leaf, "ref", False) or getattr(leaf, "hijax", False):
                raise TypeError(f"variables must be plain, without ref=True or hijax=True, got {leaf} at {path[1:]}")
