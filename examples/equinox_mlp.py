"""Equinox: an MLP with BatchNorm and dropout on handwritten digits.

python examples/equinox_mlp.py
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import sklearn.datasets

import gam_jax


class Mlp(eqx.Module):
    hidden: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    drop: eqx.nn.Dropout
    out: eqx.nn.Linear

    def __init__(self, key: jax.Array):
        keys = jax.random.split(key)
        self.hidden, self.out = eqx.nn.Linear(64, 64, key=keys[0]), eqx.nn.Linear(64, 10, key=keys[1])
        self.norm = eqx.nn.BatchNorm(64, axis_name="batch", mode="batch", momentum=0.9)
        self.drop = eqx.nn.Dropout(0.2)

    def __call__(self, x: jax.Array, state: eqx.nn.State, key: jax.Array | None) -> tuple[jax.Array, eqx.nn.State]:
        x, state = self.norm(self.hidden(x), state)
        return self.out(self.drop(jax.nn.relu(x), key=key)), state


def loss_fn(model: Mlp, state: eqx.nn.State, images: jax.Array, labels: jax.Array, key: jax.Array) -> Any:
    keys = jax.random.split(key, len(images))
    forward = jax.vmap(model, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None))
    logits, state = forward(images, state, keys)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), state


def main(steps: int = 100, batch_size: int = 64) -> float:
    pixels, digits = sklearn.datasets.load_digits(return_X_y=True)
    images, labels = jnp.asarray(pixels / 16), jnp.asarray(digits)
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = order[:1400], order[1400:]

    model, state = eqx.nn.make_with_state(Mlp)(jax.random.key(0))
    tx = optax.sgd(0.1, momentum=0.9)
    opt_state = tx.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def train_step(model: Mlp, state: eqx.nn.State, opt_state: Any, *batch: jax.Array) -> Any:
        # before: value_and_grad = eqx.filter_value_and_grad(loss_fn, has_aux=True)
        value_and_grad = gam_jax.equinox.filter_value_and_grad(loss_fn, rho=0.1, alpha=0.5, has_aux=True)
        (loss, state), grads = value_and_grad(model, state, *batch)
        updates, opt_state = tx.update(grads, opt_state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state, opt_state, loss

    for step in range(steps):
        rows = np.random.default_rng(step).choice(train, batch_size)
        key = jax.random.fold_in(jax.random.key(1), step)
        model, state, opt_state, loss = train_step(model, state, opt_state, images[rows], labels[rows], key)
        if step % 20 == 0 or step == steps - 1:
            print(f"step {step}  loss {loss:.3f}")

    forward = jax.vmap(eqx.nn.inference_mode(model), axis_name="batch", in_axes=(0, None, None), out_axes=(0, None))
    correct = float(jnp.mean(forward(images[test], state, None)[0].argmax(-1) == labels[test]))
    see = gam_jax.equinox.filter_value_and_grad(loss_fn, has_aux=True, has_diagnostics=True)
    *_, seen = eqx.filter_jit(see)(model, state, images[train], labels[train], jax.random.key(2))
    print(f"test accuracy {correct:.3f}, first-order flatness {seen.first_order_flatness:.3f}")
    return correct


if __name__ == "__main__":
    main()
