"""Problems whose Hessians are known, and dense references."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree


def symmetric(eigenvalues, seed=0):
    """A matrix with these eigenvalues and random eigenvectors."""
    n = len(eigenvalues)
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))
    return (q * np.asarray(eigenvalues)) @ q.T


def quadratic(eigenvalues, seed=0):
    """``(loss_fn, params, batches)`` of a quadratic at its critical point; two halves of its matrix as batches."""
    h = symmetric(eigenvalues, seed)
    part = symmetric(np.linspace(-1, 1, len(h)), seed + 1)

    def loss_fn(params, batch):
        w = jnp.concatenate([params["a"].ravel(), params["b"]])
        return jnp.mean(jnp.einsum("i,nij,j->n", w, batch, w)) / 2

    params = {"a": jnp.zeros((2, 2)), "b": jnp.zeros(len(h) - 4)}
    return loss_fn, params, [jnp.stack([h + part, h - part]), jnp.asarray(h)[None]]


def factorization(widths, seed=0, scale=1.0):
    """Deep matrix factorisation ``||W_L ... W_1 - M||_F^2 / 2`` at a global minimiser; the columns are the examples.

    ``scale`` unbalances the layers: the first is multiplied by it, the last divided.
    """
    rng = np.random.default_rng(seed)
    layers = [rng.normal(size=(m, n)) for n, m in zip(widths[:-1], widths[1:], strict=True)]
    layers[0], layers[-1] = layers[0] * scale, layers[-1] / scale
    target = functools.reduce(lambda product, w: w @ product, layers)

    def loss_fn(params, batch):
        out = functools.reduce(lambda x, w: x @ w.T, params, batch["x"])
        return widths[0] * jnp.mean(jnp.sum((out - batch["y"]) ** 2, axis=1)) / 2

    x, y = np.eye(widths[0]), target.T
    batches = [{"x": x[:2], "y": y[:2]}, {"x": x[2:], "y": y[2:]}]
    return loss_fn, [jnp.asarray(w) for w in layers], batches


def factorization_sharpness(layers):
    """``|| sum_i (B_i^T B_i) kron (A_i A_i^T) ||_2``, A_i = W_L ... W_{i+1}, B_i = W_{i-1} ... W_1 (NOTES 5.5).

    The part of layer i of the Jacobian J is ``B_i^T kron A_i``, and the nonzero spectrum of ``H = J^T J`` is that of
    ``J J^T``.
    """
    layers = [np.asarray(w, np.float64) for w in layers]
    total = 0.0
    for i in range(len(layers)):
        before = functools.reduce(lambda p, w: w @ p, layers[:i], np.eye(layers[0].shape[1]))
        after = functools.reduce(lambda p, w: w @ p, layers[i + 1 :], np.eye(layers[i].shape[0]))
        total = total + np.kron(before.T @ before, after @ after.T)
    return np.linalg.norm(total, 2)


def network(seed=0, examples=11):
    """A small network with leaves of rank 0, 1, 2 and 4, and its data as ``(loss_fn, params, data)``."""
    keys = jax.random.split(jax.random.key(seed), 6)
    params = {
        "conv": jax.random.normal(keys[0], (2, 2, 1, 2)),
        "bias": jax.random.normal(keys[1], (2,)),
        "dense": jax.random.normal(keys[2], (8, 2)) / 2,
        "gain": jnp.asarray(0.7),
    }
    data = {"x": jax.random.normal(keys[3], (examples, 3, 3, 1)), "y": jax.random.normal(keys[4], (examples, 2))}
    return network_loss, params, data


def network_loss(params, batch):
    features = jax.lax.conv_general_dilated(
        batch["x"], params["conv"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    hidden = jnp.tanh(features + params["bias"][None, None, None])
    out = params["gain"] * hidden.reshape(len(batch["x"]), -1) @ params["dense"]
    return jnp.mean(jnp.sum((out - batch["y"]) ** 2, axis=1))


def dense_hessian(loss_fn, params, batch):
    flat, unravel = ravel_pytree(params)
    return np.asarray(jax.hessian(lambda w: loss_fn(unravel(w), batch))(flat), np.float64)
