"""Counts what a training step costs, in gradients of the loss: FLOPs and memory of the compiled program."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from tests.gam_jax.family import FAMILY
from tests.gam_jax.networks import resnet, vit

NETWORKS = {"ViT": vit, "ResNet": resnet}


def compile_and_count(fn: Callable[..., Any], *args: Any) -> tuple[float, int]:
    """FLOPs and bytes of temporary memory of the compiled function."""
    compiled: Any = jax.jit(fn).lower(*args).compile()
    return compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes


@functools.cache
def problem(network: str) -> tuple[Any, Any, Any, float, int]:
    """Loss, parameters and batch of a network, with FLOPs and memory of its gradient."""
    loss_fn, params, batch = NETWORKS[network]()
    return loss_fn, params, batch, *compile_and_count(jax.value_and_grad(loss_fn), params, batch)


def training_step(loss_fn: Any, names: tuple[str, ...], count: int, **options: Any) -> tuple[Any, Any]:
    """A whole training step, with links of the family before SGD with momentum, at a count known to the compiler.

    Returns:
      The step, and the optimizer whose state it takes.
    """
    tx = optax.chain(optax.identity(), *(FAMILY[name](loss_fn, **options) for name in names))
    base = optax.sgd(0.1, momentum=0.9)

    def step(params: Any, base_state: Any, batch: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        fresh: Any = tx.init(params)
        state = (fresh[0], *(s._replace(count=jnp.int32(count)) for s in fresh[1:]))
        updates, state = tx.update(grads, state, params, batch=batch)
        updates, base_state = base.update(updates, base_state, params)
        return optax.apply_updates(params, updates), base_state, state, loss

    return step, base


@functools.cache
def step_cost(network: str, *names: str, count: int = 0, **options: Any) -> tuple[float, float]:
    """FLOPs and temporary memory of a training step, each as a multiple of those of one gradient."""
    loss_fn, params, batch, flops, memory = problem(network)
    step, base = training_step(loss_fn, names, count, **options)
    step_flops, step_memory = compile_and_count(step, params, base.init(params), batch)
    return step_flops / flops, step_memory / memory
