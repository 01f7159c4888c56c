"""A small ViT and a small ResNet as pure functions, for counting what a step costs."""

import jax
import jax.numpy as jnp
import optax


def _keys(seed):
    return iter(jax.random.split(jax.random.key(seed), 200))


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def vit(width=64, heads=4, layers=1, tokens=64, features=48, classes=10, batch=8):
    """(loss_fn, params, batch) of a pre-norm vision transformer."""
    keys = _keys(0)
    normal = lambda *shape: 0.05 * jax.random.normal(next(keys), shape)  # noqa: E731

    def block():
        return {
            "scale1": jnp.ones(width),
            "qkv": normal(width, 3, heads, width // heads),
            "out": normal(heads, width // heads, width),
            "scale2": jnp.ones(width),
            "up": normal(width, 4 * width),
            "bias": jnp.zeros(4 * width),
            "down": normal(4 * width, width),
        }

    def layer_norm(x, scale):
        x = x - x.mean(-1, keepdims=True)
        return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale[None, None]

    def loss_fn(params, batch):
        x = batch["x"] @ params["embed"] + params["position"][None]
        for p in params["blocks"]:
            q, k, v = jnp.einsum("btd,dche->cbthe", layer_norm(x, p["scale1"]), p["qkv"])
            attention = jax.nn.softmax(jnp.einsum("bthe,bshe->bhts", q, k) / jnp.sqrt(width / heads))
            x = x + jnp.einsum("bhts,bshe,hed->btd", attention, v, p["out"])
            hidden = jax.nn.gelu(layer_norm(x, p["scale2"]) @ p["up"] + p["bias"][None, None])
            x = x + hidden @ p["down"]
        return cross_entropy(x.mean(1) @ params["head"], batch["y"])

    params = {
        "embed": normal(features, width),
        "position": normal(tokens, width),
        "blocks": [block() for _ in range(layers)],
        "head": normal(width, classes),
    }
    return loss_fn, params, {"x": normal(batch, tokens, features), "y": jnp.arange(batch) % classes}


def resnet(width=16, blocks=1, classes=10, batch=8, size=16):
    """(loss_fn, params, batch) of a pre-activation ResNet with batch normalization."""
    keys = _keys(1)
    normal = lambda *shape: 0.1 * jax.random.normal(next(keys), shape)  # noqa: E731

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def batch_norm(x, scale):
        x = x - x.mean((0, 1, 2), keepdims=True)
        return x * jax.lax.rsqrt((x**2).mean((0, 1, 2), keepdims=True) + 1e-5) * scale[None, None, None]

    def loss_fn(params, batch):
        x = convolve(batch["x"], params["stem"])
        for p in params["blocks"]:
            y = convolve(jax.nn.relu(batch_norm(x, p["scale1"])), p["kernel1"])
            x = x + convolve(jax.nn.relu(batch_norm(y, p["scale2"])), p["kernel2"])
        return cross_entropy(x.mean((1, 2)) @ params["head"], batch["y"])

    def block():
        kernels = {"kernel1": normal(3, 3, width, width), "kernel2": normal(3, 3, width, width)}
        return kernels | {"scale1": jnp.ones(width), "scale2": jnp.ones(width)}

    params = {
        "stem": normal(3, 3, 3, width),
        "blocks": [block() for _ in range(blocks)],
        "head": normal(width, classes),
    }
    return loss_fn, params, {"x": normal(batch, size, size, 3), "y": jnp.arange(batch) % classes}
