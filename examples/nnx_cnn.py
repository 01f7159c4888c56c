"""Flax NNX: a small CNN on handwritten digits, with BatchNorm, dropout, bfloat16 and clipped gradients.

python examples/nnx_cnn.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import sklearn.datasets
from flax import nnx

import gam_jax


class Cnn(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, 16, (3, 3), dtype=jnp.bfloat16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, momentum=0.9, dtype=jnp.bfloat16, rngs=rngs)
        self.conv2 = nnx.Conv(16, 32, (3, 3), strides=2, dtype=jnp.bfloat16, rngs=rngs)
        self.drop = nnx.Dropout(0.2, rngs=rngs)
        self.out = nnx.Linear(32 * 4 * 4, 10, dtype=jnp.bfloat16, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm(self.conv1(x)))
        x = nnx.relu(self.conv2(x))
        return self.out(self.drop(x.reshape(len(x), -1))).astype(jnp.float32)


def loss_fn(model: Cnn, images: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()


@nnx.jit
def train_step(model: Cnn, optimizer: nnx.Optimizer, images: jax.Array, labels: jax.Array) -> jax.Array:
    # before: loss, grads = nnx.value_and_grad(loss_fn)(model, images, labels)
    loss, grads = gam_jax.nnx.value_and_grad(loss_fn, rho=0.1, alpha=0.5)(model, images, labels)
    optimizer.update(model, grads)
    return loss


@nnx.jit
def accuracy(model: Cnn, images: jax.Array, labels: jax.Array) -> jax.Array:
    return (model(images).argmax(-1) == labels).mean()


def main(steps: int = 100, batch_size: int = 64) -> float:
    pixels, digits = sklearn.datasets.load_digits(return_X_y=True)
    images, labels = jnp.asarray(pixels.reshape(-1, 8, 8, 1) / 16), jnp.asarray(digits)
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = order[:1400], order[1400:]

    model = Cnn(nnx.Rngs(0))
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.05, momentum=0.9))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for step in range(steps):
        rows = np.random.default_rng(step).choice(train, batch_size)
        loss = train_step(model, optimizer, images[rows], labels[rows])
        if step % 20 == 0 or step == steps - 1:
            print(f"step {step}  loss {loss:.3f}")

    model.eval()
    correct = float(accuracy(model, images[test], labels[test]))
    seen = nnx.jit(gam_jax.nnx.value_and_grad(loss_fn, has_diagnostics=True))(model, images[train], labels[train])[-1]
    print(f"test accuracy {correct:.3f}, first-order flatness {seen.first_order_flatness:.3f}")
    return correct


if __name__ == "__main__":
    main()
