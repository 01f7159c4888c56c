"""The user's loss: which arguments it takes, what it returns, how its batch is split."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gam_jax._types import LossFn, PyTree

Loss = Callable[[PyTree, Any], tuple[jax.Array, Any]]
"""The user's loss after binding: (params, arguments) -> (scalar, aux), aux None without has_aux."""


def named_arguments(loss_fn: LossFn) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A function that picks, by name, the arguments that ``loss_fn`` takes beside the parameters.

    Names that the loss does not take are left out; all of them are passed to a loss with ``**kwargs``.

    Raises:
      TypeError: now, if ``loss_fn`` is not a function of the parameters and of arguments that can be named;
        later, if an argument without a default is missing.
    """
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be a function (params, ...) -> scalar, got {loss_fn!r}")
    parameters = list(inspect.signature(loss_fn).parameters.values())
    if not parameters or parameters[0].kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD):
        raise TypeError(f"loss_fn must take the parameters as its first argument, got {loss_fn!r} without one")
    others = parameters[1:]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in others)
    names = [p.name for p in others if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    required = [p.name for p in others if p.default is p.empty and p.name in names]
    nameless = [p.name for p in others if p.kind is p.POSITIONAL_ONLY]
    if nameless:
        raise TypeError(f"loss_fn takes positional-only {nameless}: its arguments travel by name, remove the '/'")

    def pick(extra_args: dict[str, Any]) -> dict[str, Any]:
        missing = [name for name in required if name not in extra_args]
        if missing:
            raise TypeError(
                f"update() is missing {missing}, which loss_fn needs: pass each by name, as in "
                f"tx.update(grads, state, params, {missing[0]}=...). Got {sorted(extra_args)}"
            )
        return dict(extra_args) if takes_any else {n: extra_args[n] for n in names if n in extra_args}

    return pick


def bind(loss_fn: LossFn, has_aux: bool) -> Loss:
    """The loss as (params, (args, kwargs)) -> (scalar, aux), with its result checked."""

    def loss(params: PyTree, arguments: Any) -> tuple[jax.Array, Any]:
        args, kwargs = arguments
        result = loss_fn(params, *args, **kwargs)
        if has_aux and not (isinstance(result, tuple) and len(result) == 2):
            raise TypeError(f"with has_aux=True loss_fn must return (loss, aux), got {type(result).__name__}")
        value, aux = result if has_aux else (result, None)
        if isinstance(value, tuple | list | dict):
            raise TypeError(f"loss_fn must return a scalar, got a {type(value).__name__}; for (loss, aux) say has_aux")
        value = jnp.asarray(value)
        if value.shape or not jnp.issubdtype(value.dtype, jnp.floating):
            raise TypeError(f"loss_fn must return a real scalar, got shape {value.shape} and dtype {value.dtype}")
        return value, aux

    return loss


def split_batch(arguments: Any, num_microbatches: int) -> tuple[Any, Callable[[Any], Any]]:
    """Splits the leading axis of every array with one into (num_microbatches, rest).

    Row r of the batch goes to microbatch r mod num_microbatches, so that a batch sharded over devices stays where it
    is. Scalars and typed random keys are not split: every microbatch sees the same.

    Returns:
      ``(split, rebuild)``: the list of split arrays to scan over, and the arguments again from one slice of them.
    """
    leaves, tree = jax.tree.flatten_with_path(arguments)
    sizes = {jax.tree_util.keystr(path): jnp.shape(leaf)[0] for path, leaf in leaves if jnp.ndim(leaf)}
    if not sizes:
        raise ValueError(f"{num_microbatches=} but no argument of the loss is an array with a leading axis to split")
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"{num_microbatches=} splits the leading axis of every array argument of the loss, which must be the same "
            f"for all, got {sizes} (a raw uint32 key is an array: use jax.random.key)"
        )
    size = next(iter(sizes.values()))
    if size % num_microbatches:
        raise ValueError(f"num_microbatches must divide the batch, got {num_microbatches=} and a batch of {size}")

    def split(leaf: Any) -> jax.Array:
        rows = jnp.reshape(leaf, (size // num_microbatches, num_microbatches, *jnp.shape(leaf)[1:]))
        return jnp.swapaxes(rows, 0, 1)

    is_split = [bool(jnp.ndim(leaf)) for _, leaf in leaves]
    whole = [leaf for _, leaf in leaves]

    def rebuild(slices: list[jax.Array]) -> Any:
        remaining = iter(slices)
        return jax.tree.unflatten(tree, [next(remaining) if s else w for s, w in zip(is_split, whole, strict=True)])

    return [split(leaf) for leaf, s in zip(whole, is_split, strict=True) if s], rebuild
