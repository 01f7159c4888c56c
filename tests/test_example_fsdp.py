"""The example with divided parameters: it trains, as one device would, and each device has its part."""

import jax
import jax.numpy as jnp
import numpy as np

import gam_jax
from examples import fsdp_shard_map as example


def whole_loss(params, batch):
    """The loss of the example, on one device."""
    x = batch["x"]
    for up, down in zip(params["up"], params["down"], strict=True):
        x = x + jnp.tanh(x @ up) @ down
    return jnp.mean((x - batch["y"]) ** 2)


def test_it_trains_as_one_device_would(x64, monkeypatch):
    made = []
    put = jax.device_put
    monkeypatch.setattr(example.jax, "device_put", lambda tree, where: made.append(tree) or put(tree, where))
    params, losses = example.main(steps=3)
    assert losses[2] < losses[0]
    assert params["up"].addressable_shards[0].data.shape == (4, 32 // jax.device_count(), 32)

    keys = jax.random.split(jax.random.key(0), 4)
    batch = {name: jax.random.normal(key, (64, 32)) for name, key in zip("xy", keys[2:], strict=True)}
    (expected,) = made
    step = jax.jit(gam_jax.gam_value_and_grad(whole_loss))
    for loss in losses:
        value, grads = step(expected, batch)
        np.testing.assert_allclose(loss, value, rtol=1e-10)
        expected = jax.tree.map(lambda p, g: p - 0.1 * g, expected, grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10), params, expected)
