"""The Gauss-Newton matrix, and diagonal blocks of it and of the Hessian, against dense ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import gam_jax
from gam_jax import flatness

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
DATA = {"x": RNG.normal(size=(7, 4)), "y": np.arange(7) % 3}
BATCHES = [jax.tree.map(lambda rows, part=part: rows[part], DATA) for part in (slice(0, 5), slice(5, 7))]
PARAMS = {"first": RNG.normal(size=(4, 3)), "second": RNG.normal(size=(3, 3))}
MASK = {"first": False, "second": True}


def outputs_fn(params, batch, scale=1.0):
    return {"logits": scale * jnp.tanh(batch["x"] @ params["first"]) @ params["second"]}


def output_loss(outputs, batch):
    logits = outputs["logits"]
    return jnp.mean(jax.nn.logsumexp(logits, 1) - jnp.take_along_axis(logits, batch["y"][:, None], 1)[:, 0])


LOSS = flatness.SplitLoss(outputs_fn, output_loss)


@functools.cache
def dense(operator, scale=1.0):
    flat, unravel = ravel_pytree(PARAMS)
    if operator == "hessian":
        return np.asarray(jax.jit(jax.hessian(lambda w: LOSS(unravel(w), DATA, scale)))(flat))
    outputs = lambda w: outputs_fn(unravel(w), DATA, scale)["logits"].ravel()  # noqa: E731
    jacobian = np.asarray(jax.jit(jax.jacobian(outputs))(flat))
    curvature = jax.jit(jax.hessian(lambda z: output_loss({"logits": z.reshape(7, 3)}, DATA)))(outputs(flat))
    return jacobian.T @ np.asarray(curvature) @ jacobian


@pytest.mark.parametrize(
    ("operator", "mask"),
    [pytest.param("hessian", None, marks=pytest.mark.slow), ("hessian", MASK), ("ggn", None), ("ggn", MASK)],
)
def test_against_the_dense_matrix(x64, operator, mask):
    block = slice(12, 21) if mask else slice(0, 21)
    exact = dense(operator)[block, block]
    of = dict(key=KEY, operator=operator, mask=mask)
    size = len(exact)
    top = flatness.hessian_top_eigenvalues(LOSS, PARAMS, BATCHES, 3, return_vectors=True, **of)
    values = np.linalg.eigvalsh(exact)
    np.testing.assert_allclose(top.values, values[:-4:-1], atol=1e-9)
    assert (top.residuals < 1e-6).all()
    vectors = np.stack([ravel_pytree(jax.tree.map(lambda x, i=i: x[i], top.vectors))[0] for i in range(3)])
    assert vectors.shape == (3, 21) and not np.delete(vectors, block, axis=1).any()
    np.testing.assert_allclose(exact @ vectors[:, block].T, vectors[:, block].T * top.values, atol=1e-6)
    trace = flatness.hessian_trace(LOSS, PARAMS, BATCHES, num_probes=size, **of)
    np.testing.assert_allclose(trace.value, np.trace(exact), rtol=1e-9)
    density = flatness.hessian_density(LOSS, PARAMS, BATCHES, num_probes=size, num_steps=size, **of)
    np.testing.assert_allclose(density.moments[:2], [np.mean(values), np.mean(values**2)], rtol=1e-9)
    if operator == "ggn":
        assert values[0] > -1e-12


def test_the_two_matrices_differ_but_not_on_a_linear_model(x64):
    assert np.abs(dense("hessian") - dense("ggn")).max() > 0.01
    linear = flatness.SplitLoss(lambda w, batch: {"logits": batch["x"] @ w}, output_loss)
    values = [
        flatness.hessian_top_eigenvalues(linear, PARAMS["first"], BATCHES, 4, key=KEY, operator=operator).values
        for operator in ("hessian", "ggn")
    ]
    np.testing.assert_allclose(*values, rtol=1e-8)


def test_more_arguments_go_to_the_network(x64):
    of = dict(key=KEY, num_probes=21, loss_args={"scale": 0.5})
    for operator in ("hessian", "ggn"):
        found = flatness.hessian_trace(LOSS, PARAMS, BATCHES, operator=operator, **of)
        np.testing.assert_allclose(found.value, np.trace(dense(operator, 0.5)), rtol=1e-9)


def test_without_batches_and_with_aux(x64):
    split = flatness.SplitLoss(lambda w: jnp.sin(w), lambda z: (jnp.sum(z**4), "aux"))
    w = jnp.array([0.3, 1.0])
    found = flatness.hessian_trace(split, w, None, key=KEY, num_probes=2, operator="ggn", has_aux=True)
    np.testing.assert_allclose(found.value, np.sum(12 * np.sin(w) ** 2 * np.cos(w) ** 2), rtol=1e-12)


@pytest.mark.slow
def test_a_split_loss_is_a_loss_for_every_rule(x64):
    whole = lambda params, batch, scale=1.0: output_loss(outputs_fn(params, batch, scale), batch)  # noqa: E731
    grads = [gam_jax.sam_value_and_grad(loss, 0.1)(PARAMS, DATA, scale=2.0)[1] for loss in (LOSS, whole)]
    jax.tree.map(np.testing.assert_array_equal, *grads)
    assert hash(LOSS) == hash(flatness.SplitLoss(outputs_fn, output_loss)) and LOSS != whole
    with pytest.raises(TypeError, match="outputs_fn must be a function .*got outputs_fn=3"):
        flatness.SplitLoss(3, output_loss)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="output_loss must be a function .*got output_loss=None"):
        flatness.SplitLoss(outputs_fn, None)  # pyright: ignore[reportArgumentType]


def test_normalized_logits(x64):
    logits = jax.random.normal(KEY, (5, 2, 4))
    found = flatness.normalize_logits(logits)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, rtol=1e-12)
    np.testing.assert_allclose(found.sum(-1), 0, atol=1e-12)
    np.testing.assert_allclose(flatness.normalize_logits(7 * logits - 3), found, rtol=1e-9)
    np.testing.assert_allclose(found, (logits - logits.mean(-1, keepdims=True)) / logits.std(-1, keepdims=True) / 2)
    flat = jax.grad(lambda z: flatness.normalize_logits(z)[0, 0])(jnp.ones((1, 3)))
    assert not flat.any() and flatness.normalize_logits(jnp.ones(2, jnp.bfloat16)).dtype == jnp.float32
