"""What is computed of one batch: value, gradient, and products with the Hessian or the Gauss-Newton matrix."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from gam_jax._checks import check_choice, check_function
from gam_jax._loss import bind
from gam_jax._tree import cast_like, widen
from gam_jax._types import LossFn, PyTree
from gam_jax.flatness._block import Block
from gam_jax.flatness.outputs import SplitLoss

Operator = Literal["hessian", "ggn"]


def check_operator(operator: Any, loss_fn: Any) -> None:
    """Raises unless the operator is one, and one of this loss."""
    check_choice("operator", operator, get_args(Operator))
    if operator == "ggn" and not isinstance(loss_fn, SplitLoss):
        raise TypeError(
            "operator='ggn' needs to know which part of the loss is the network: give loss_fn=SplitLoss(outputs_fn, "
            f"output_loss), got loss_fn={loss_fn!r}"
        )


def check_loss(loss_fn: LossFn, num_arguments: int, names: dict[str, Any]) -> None:
    """Raises unless the loss can be called with so many arguments by position and these by name."""
    check_function("loss_fn", loss_fn, " (params, batch) -> scalar")
    try:
        hash(loss_fn)
    except TypeError:
        raise TypeError(f"loss_fn must be hashable, so that it compiles once, got {loss_fn!r}") from None
    try:
        signature = inspect.signature(loss_fn)
    except ValueError:  # of a builtin
        return
    try:
        signature.bind(*range(num_arguments), **names)
    except TypeError as error:
        taken = "(params, batch)" if num_arguments == 2 else "(params), with batches=None"
        taken += f" and what loss_args names, {sorted(names)}" if names else ""
        raise TypeError(f"loss_fn must take {taken}, got {loss_fn!r} with the signature {signature}: {error}") from None


class Context(NamedTuple):
    """What a pass takes beside the leaves that are measured and the batch: arguments of a program, not part of it."""

    frozen: list[Any]
    loss_args: dict[str, Any]


class Passes:
    """The passes of one loss, to be traced; ``args`` is ``(batch,)``, or ``()`` for a loss without data."""

    def __init__(self, loss_fn: LossFn, has_aux: bool, block: Block):
        self._loss_fn, self._has_aux, self._block = loss_fn, has_aux, block

    def _loss(self, params: PyTree, args: Any, context: Context) -> jax.Array:
        whole = self._block.whole(params, context.frozen)
        return bind(self._loss_fn, self._has_aux)(whole, (args, context.loss_args))[0]

    def value(self, params: PyTree, args: Any, context: Context) -> tuple[jax.Array, Any]:
        """The loss."""
        return self._loss(params, args, context), ()

    def gradient(self, params: PyTree, args: Any, context: Context) -> tuple[jax.Array, PyTree]:
        """Loss and gradient."""
        value, grad = jax.value_and_grad(self._loss)(params, args, context)
        return value, jax.tree.map(widen, grad)

    def hessian(self, params: PyTree, v: PyTree, args: Any, context: Context) -> tuple[jax.Array, PyTree]:
        """Loss and ``H v``; by jax.linearize, not jax.jvp: losses with a custom_vjp have no jvp of their gradient."""
        value, product = _linearized_gradient(lambda params: self._loss(params, args, context), params)
        return value, jax.tree.map(widen, product(cast_like(v, params)))

    def ggn(self, params: PyTree, v: PyTree, args: Any, context: Context) -> tuple[jax.Array, PyTree]:
        """Loss and ``J^T H_l J v``, with J the Jacobian of the outputs and H_l the Hessian of their loss."""
        split = self._loss_fn
        assert isinstance(split, SplitLoss)

        def outputs_fn(params: PyTree) -> PyTree:
            return split.outputs_fn(self._block.whole(params, context.frozen), *args, **context.loss_args)

        outputs, push = jax.linearize(outputs_fn, params)
        loss = bind(split.output_loss, self._has_aux)
        value, product = _linearized_gradient(lambda outputs: loss(outputs, (args[:1], {}))[0], outputs)
        (found,) = jax.linear_transpose(push, params)(product(push(cast_like(v, params))))
        return value, jax.tree.map(widen, found)


def _linearized_gradient(loss: Callable[[PyTree], jax.Array], at: PyTree) -> tuple[jax.Array, Callable[..., PyTree]]:
    gradient_and_value = lambda at: jax.value_and_grad(loss)(at)[::-1]  # noqa: E731
    _, product, value = jax.linearize(gradient_and_value, at, has_aux=True)
    return value, product


def named(passes: Passes, name: str) -> Callable[..., Any]:
    """A pass by its name."""
    return functools.partial(getattr(Passes, name), passes)


def strong(leaf: Any) -> jax.Array:
    """The leaf as an array that is not weakly typed: a program compiled for one kind does not serve the other."""
    return jnp.asarray(leaf, jnp.result_type(leaf))
