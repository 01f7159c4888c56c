"""Flax Linen: a TrainState with BatchNorm on handwritten digits, data parallel over all devices.

python examples/linen_mesh.py
XLA_FLAGS=--xla_force_host_platform_device_count=8 python examples/linen_mesh.py
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import sklearn.datasets
from flax.training import train_state
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gam_jax


class Network(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = nn.Dense(64)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(10)(x)


class TrainState(train_state.TrainState):
    batch_stats: Any


def loss_fn(params: Any, state: TrainState, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
    variables = {"params": params, "batch_stats": state.batch_stats}
    logits, moved = state.apply_fn(variables, images, train=True, mutable=["batch_stats"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), moved["batch_stats"]


@jax.jit
def train_step(state: TrainState, images: jax.Array, labels: jax.Array) -> tuple[TrainState, jax.Array]:
    # before: value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)
    value_and_grad = gam_jax.gam_value_and_grad(loss_fn, rho=0.1, alpha=0.5, has_aux=True)
    (loss, batch_stats), grads = value_and_grad(state.params, state, images, labels)
    return state.apply_gradients(grads=grads, batch_stats=batch_stats), loss


def main(steps: int = 100, batch_size: int = 64) -> float:
    pixels, digits = sklearn.datasets.load_digits(return_X_y=True)
    images, labels = (pixels / 16).astype(np.float32), digits.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = order[:1400], order[1400:]

    mesh = jax.make_mesh((len(jax.devices()),), ("data",), axis_types=(AxisType.Auto,))
    by_rows, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    model = Network()
    variables = model.init(jax.random.key(0), images[:1], train=False)
    state = TrainState.create(apply_fn=model.apply, tx=optax.sgd(0.1, momentum=0.9), **variables)
    state = jax.device_put(state, everywhere)
    for step in range(steps):
        rows = np.random.default_rng(step).choice(train, batch_size)
        state, loss = train_step(state, *jax.device_put((images[rows], labels[rows]), by_rows))
        if step % 20 == 0 or step == steps - 1:
            print(f"step {step}  loss {loss:.3f}")

    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits: Any = model.apply(variables, images[test], train=False)
    correct = float(jnp.mean(logits.argmax(-1) == labels[test]))
    see = gam_jax.gam_value_and_grad(loss_fn, has_aux=True, has_diagnostics=True)
    *_, seen = jax.jit(see)(state.params, state, images[train], labels[train])
    print(f"test accuracy {correct:.3f}, first-order flatness {seen.first_order_flatness:.3f}, {mesh.size} devices")
    return correct


if __name__ == "__main__":
    main()
