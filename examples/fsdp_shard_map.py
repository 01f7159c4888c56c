"""GAM with parameters divided among devices (FSDP, ZeRO-3): each gathers a layer's weights where it uses them.

    python examples/fsdp_shard_map.py

The recipe for a model of one's own: inside jax.shard_map the loss is the mean over all devices (jax.lax.pmean), and
parameters come in divided. gam_jax tells from their types that they are, and takes norms over all parts.
"""

import functools

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import gam_jax

LAYERS, FEATURES, BATCH = 4, 32, 64
SPECS = {"up": P(None, "shards"), "down": P(None, "shards")}  # the rows of each layer's matrices
dots = functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)


def loss_fn(params, batch):
    """The mean over all devices, each of which has its rows of the batch and its part of the parameters."""

    @dots  # once for each order of differentiation; what was gathered is gathered again rather than kept
    @dots
    def layer(x, shards):
        weights = jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, "shards", tiled=True), shards)
        return x + jnp.tanh(x @ weights["up"]) @ weights["down"], None

    x, _ = jax.lax.scan(layer, batch["x"], params)
    return jax.lax.pmean(jnp.mean((x - batch["y"]) ** 2), "shards")


def train_step(params, state, batch):
    loss, grads = gam_jax.gam_value_and_grad(loss_fn)(params, batch)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state, loss


optimizer = optax.sgd(0.1)  # it works leaf by leaf, hence part by part, as adamw does; clipping by the norm does not


def main(steps=20):
    """Trains a residual network of scanned layers; returns the parameters and the losses."""
    mesh = jax.make_mesh((jax.device_count(),), ("shards",), axis_types=(jax.sharding.AxisType.Auto,))
    keys = jax.random.split(jax.random.key(0), 4)
    shape = (LAYERS, FEATURES, FEATURES)
    params = {name: 0.1 * jax.random.normal(key, shape) for name, key in zip(SPECS, keys, strict=False)}
    batch = {name: jax.random.normal(key, (BATCH, FEATURES)) for name, key in zip("xy", keys[2:], strict=True)}
    params = jax.device_put(params, jax.tree.map(lambda spec: NamedSharding(mesh, spec), SPECS))
    state, losses = optimizer.init(params), []

    specs = (SPECS, P())
    step = jax.jit(jax.shard_map(train_step, mesh=mesh, in_specs=(*specs, P("shards")), out_specs=(*specs, P())))
    for _ in range(steps):
        params, state, loss = step(params, state, batch)
        losses.append(float(loss))
    return params, losses


if __name__ == "__main__":
    _, losses = main()
    print(f"{jax.device_count()} devices: loss {losses[0]:.4f} -> {losses[-1]:.4f}")
