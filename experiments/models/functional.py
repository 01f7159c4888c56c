"""A Flax module as two pure functions of plain pytrees; everything that knows how Flax keeps variables is here."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
from flax import nnx

from experiments.models.config import ModelConfig, Remat
from experiments.models.remat import rematerialised
from experiments.models.shards import gathered

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
    Inside shard_map parameters may come divided (:mod:`experiments.models.shards`).
    """
    stacked: str | None = None
    """The name of the parameters of all layers, stacked along a leading axis; None where layers differ."""


def functional(make: Callable[[nnx.Rngs], nnx.Module], config: ModelConfig, stacked: str | None = None) -> Model:
    """The module that ``make`` makes, as two pure functions.

    The module is called as ``module(images, train, key)``: images in the type of the computation; ``key`` is None
    whenever nothing random is to happen, so that modules need not look at ``train`` for that. Divided parameters are
    gathered here, but for those under the name ``stacked``, which it gathers itself, layer by layer.
    """
    graph, params, _ = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param, ...)
    shapes = {name: [leaf.shape for leaf in jax.tree.leaves(part)] for name, part in _plain(params).items()}
    random = config.dropout > 0 or config.drop_path > 0

    def init(key: jax.Array) -> tuple[Params, State]:
        _, params, state = nnx.split(make(nnx.Rngs(key)), nnx.Param, ...)
        return _plain(params), _plain(state)

    def apply(
        params: Params, model_state: State, images: jax.Array, *, train: bool, key: jax.Array | None = None
    ) -> tuple[jax.Array, State]:
        if train and random and key is None:
            raise ValueError(f"{config.name} needs a key to train with {config.dropout=}, {config.drop_path=}")
        params = {name: part if name == stacked else gathered(part, shapes[name]) for name, part in params.items()}
        variables = (nnx.restore_int_paths(params), nnx.restore_int_paths(model_state))
        module: Any = nnx.merge(graph, *variables, copy=True)  # a copy: calls may be nested in each other's derivatives
        logits = module(images.astype(config.dtype), train, key if train and random else None)
        return logits, _plain(nnx.state(module, nnx.Not(nnx.Param)))

    return Model(init, apply, stacked)


def run_blocks(
    blocks: Iterable[nnx.Module], x: jax.Array, train: bool, key: jax.Array | None, *, remat: Remat
) -> jax.Array:
    """Calls ``block(x, train, key)`` one after the other, each with its own key.

    What the backward passes compute anew in each, ``remat`` says (:mod:`experiments.models.remat`).
    """
    for i, block in enumerate(blocks):
        own = None if key is None else jax.random.fold_in(key, i)
        x = block(x, train, own) if remat in ("auto", "none") else _again(remat, block, x, train, own)  # pyright: ignore[reportCallIssue]
    return x


def _again(remat: Remat, block: nnx.Module, x: jax.Array, train: bool, key: jax.Array | None) -> jax.Array:
    graph, params, state = nnx.split(block, nnx.Param, ...)

    def call(params: nnx.State, state: nnx.State, x: jax.Array, key: jax.Array | None) -> tuple[jax.Array, nnx.State]:
        module: Any = nnx.merge(graph, params, state, copy=True)
        return module(x, train, key), nnx.state(module, nnx.Not(nnx.Param))

    x, state = rematerialised(call, remat)(params, state, x, key)
    nnx.update(block, state)
    return x


def _plain(variables: Any) -> Any:
    """Nested dicts with strings as keys, which is what every checkpoint format can hold."""

    def with_string_keys(tree: Any) -> Any:
        return {str(name): with_string_keys(sub) for name, sub in tree.items()} if isinstance(tree, dict) else tree

    return with_string_keys(nnx.to_pure_dict(variables))
