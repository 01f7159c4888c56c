"""A Flax module as two pure functions of plain pytrees; everything that knows how Flax keeps variables is here."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
from flax import nnx

from experiments.models.config import ModelConfig

Params = Any
"""Nested dicts of float32 arrays: what is trained."""
State = Any
"""Nested dicts of float32 arrays: the running statistics of batch normalisation; ``{}`` for networks without it."""


class Model(NamedTuple):
    """A network as two pure functions."""

    init: Callable[[jax.Array], tuple[Params, State]]
    """``init(key) -> (params, model_state)``."""
    apply: Callable[..., tuple[jax.Array, State]]
    """``apply(params, model_state, images, *, train, key=None) -> (float32 logits [batch, classes], model_state)``.

    With ``train`` batch normalisation uses the statistics of the batch and moves the running ones, and ``key`` decides
    what is dropped (the same key, the same features). Without, the state comes back as it was.
    """


def functional(make: Callable[[nnx.Rngs], nnx.Module], config: ModelConfig) -> Model:
    """The module that ``make`` makes, as two pure functions.

    The module is called as ``module(images, train, key)``: images in the type of the computation; ``key`` is None
    whenever nothing random is to happen, so that modules need not look at ``train`` for that.
    """
    graph, *_ = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param, ...)
    random = config.dropout > 0 or config.drop_path > 0

    def init(key: jax.Array) -> tuple[Params, State]:
        _, params, state = nnx.split(make(nnx.Rngs(key)), nnx.Param, ...)
        return _plain(params), _plain(state)

    def apply(
        params: Params, model_state: State, images: jax.Array, *, train: bool, key: jax.Array | None = None
    ) -> tuple[jax.Array, State]:
        if train and random and key is None:
            raise ValueError(f"{config.name} needs a key to train with {config.dropout=}, {config.drop_path=}")
        variables = (nnx.restore_int_paths(params), nnx.restore_int_paths(model_state))
        module: Any = nnx.merge(graph, *variables, copy=True)  # a copy: calls may be nested in each other's derivatives
        logits = module(images.astype(config.dtype), train, key if train and random else None)
        return logits, _plain(nnx.state(module, nnx.Not(nnx.Param)))

    return Model(init, apply)


def run_blocks(
    blocks: Iterable[nnx.Module], x: jax.Array, train: bool, key: jax.Array | None, *, remat: bool
) -> jax.Array:
    """Calls ``block(x, train, key)`` one after the other, each with its own key.

    With ``remat`` the backward pass computes the activations inside each block anew.
    """
    call = _call_again_in_backward_pass if remat else lambda block, *args: block(*args)
    for i, block in enumerate(blocks):
        x = call(block, x, train, None if key is None else jax.random.fold_in(key, i))
    return x


def _call_again_in_backward_pass(block: nnx.Module, x: jax.Array, train: bool, key: jax.Array | None) -> jax.Array:
    graph, params, state = nnx.split(block, nnx.Param, ...)

    @jax.checkpoint
    def call(params: nnx.State, state: nnx.State, x: jax.Array, key: jax.Array | None) -> tuple[jax.Array, nnx.State]:
        module: Any = nnx.merge(graph, params, state, copy=True)
        return module(x, train, key), nnx.state(module, nnx.Not(nnx.Param))

    x, state = call(params, state, x, key)
    nnx.update(block, state)
    return x


def _plain(variables: Any) -> Any:
    """Nested dicts with strings as keys, which is what every checkpoint format can hold."""

    def with_string_keys(tree: Any) -> Any:
        return {str(name): with_string_keys(sub) for name, sub in tree.items()} if isinstance(tree, dict) else tree

    return with_string_keys(nnx.to_pure_dict(variables))
