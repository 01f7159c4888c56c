"""Zero, huge and tiny gradients, low precision, stationary points."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gam_jax
from gam_jax import _metric, _tree
from tests.gam_jax.family import FAMILY, parametrize
from tests.gam_jax.problems import PROBLEMS, mlp, one_parameter

family = parametrize()


def update(name, loss_fn, params):
    tx = FAMILY[name](loss_fn)
    updates, state = tx.update(jax.grad(loss_fn)(params), tx.init(params), params)
    chex.assert_tree_all_finite((updates, state))
    return updates, state


@family
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_zero_gradient_gives_zero(name, dtype):
    params = {"a": jnp.zeros(3, dtype), "b": jnp.zeros((), dtype)}
    stationary = lambda p: jnp.sum(p["a"].astype(jnp.float32) ** 2) + p["b"].astype(jnp.float32) ** 2  # noqa: E731
    constant = lambda p: 0.0 * stationary(p) + 3.0  # noqa: E731
    for loss_fn in (stationary, constant):
        updates, state = update(name, loss_fn, params)
        chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, params))
        chex.assert_trees_all_equal(state.diagnostics, type(state.diagnostics)(*[0.0] * len(state.diagnostics)))


@family
def test_one_parameter(name, x64):
    problem = one_parameter()
    updates, _ = update(name, lambda p: problem.loss_fn(p, problem.batch), problem.params)
    assert updates.shape == ()


def test_one_parameter_by_hand(x64):
    """L = c w^4: h_norm = rho L''(w + rho) sign."""
    loss = lambda w: 0.25 * w**4  # noqa: E731
    _, grad = gam_jax.gam_value_and_grad(loss, rho=0.1, alpha=0.5)(jnp.asarray(2.0))
    np.testing.assert_allclose(grad, 2.0**3 + 0.5 * 0.1 * 3 * 2.1**2, rtol=1e-12)


@family
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_extreme_gradients_are_finite_and_scale(name, scale, dtype):
    """A loss times c has c times the update, as long as its norms are far above xi, or xi scales with them."""
    if name == "asam":
        params = jnp.array([3.0, -4.0, 1.0], dtype)
    else:
        params = jnp.array([3.0, -4.0, 0.0], dtype)
    base = lambda p: jnp.sum((p.astype(jnp.float32) * jnp.array([1.0, 2.0, 3.0])) ** 2)  # noqa: E731
    scaled = lambda p: jnp.float32(scale) * base(p)  # noqa: E731
    factory = FAMILY[name]
    reference_tx, tx = factory(base), factory(scaled, eps=1e-12 * scale)
    reference, _ = reference_tx.update(jax.grad(base)(params), reference_tx.init(params), params)
    got, state = tx.update(jax.grad(scaled)(params), tx.init(params), params)
    chex.assert_tree_all_finite((got, state))
    np.testing.assert_allclose(
        np.asarray(got, np.float64) / scale,
        np.asarray(reference, np.float64),
        rtol=2e-2 if dtype == jnp.bfloat16 else 1e-4,
    )


def test_gradients_below_xi_give_a_vanishing_direction():
    """By Algorithm 1 a gradient far below xi = 1e-12 has a direction of length ||g|| / xi."""
    metric = _metric.Metric(None, None, 1e-12)
    np.testing.assert_allclose(metric.direction(jnp.array([1e-30], jnp.float32)), [1e-18], rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_norm_neither_overflows_nor_underflows(dtype):
    for scale in (1e-37, 1e-30, 1.0, 1e30, 1e36):
        tree = {
            "a": jnp.full((1000,), scale, dtype),
            "b": jnp.full((), scale, dtype),
            "empty": jnp.zeros((0, 3), dtype),
        }
        expected = float(jnp.asarray(scale, dtype)) * np.sqrt(1001)
        np.testing.assert_allclose(_tree.global_norm(tree), expected, rtol=1e-5)
    assert _tree.global_norm({}) == 0


def test_norm_accumulates_in_float32():
    """The norm of 1e6 equal bfloat16 numbers, which sum(x**2) in bfloat16 gets wrong by a factor."""
    x = jnp.full(1_000_000, 0.02, jnp.bfloat16)
    np.testing.assert_allclose(_tree.global_norm(x), float(x[0]) * 1000, rtol=1e-5)
    assert _tree.global_norm(x).dtype == jnp.float32


def test_bad_entries_stay_visible_in_norms():
    for bad in (jnp.nan, jnp.inf):
        assert not np.isfinite(_tree.global_norm(jnp.array([1.0, bad])))


def test_ascent_is_formed_in_float32():
    """bfloat16 parameters: the perturbed point is w + rho d rounded once, not a rounded step added to a rounded w."""
    w = jax.random.normal(jax.random.key(0), (4096,)).astype(jnp.bfloat16)
    d = jax.random.normal(jax.random.key(1), (4096,)).astype(jnp.bfloat16)
    got = _metric.Metric(None, None, 1e-12).ascend(w, d, jnp.asarray(0.5))
    exact = np.asarray(w, np.float64) + 0.5 * np.asarray(d, np.float64) / np.linalg.norm(np.asarray(d, np.float64))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, exact.astype(jnp.bfloat16))


def test_exact_products_keep_their_precision_in_bfloat16():
    """NOTES 5.6: exact products lose little to bfloat16, finite differences nearly everything."""
    single = mlp(jnp.float32)

    def half(params, batch):
        cast = lambda tree: jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, tree)  # noqa: E731
        return single.loss_fn(cast(params), cast(batch)).astype(jnp.float32)

    flat = lambda tree: jax.flatten_util.ravel_pytree(tree)[0]  # noqa: E731

    def norm_gradient(loss_fn, **options):
        tx = gam_jax.gradient_norm_penalty(loss_fn, strength=1.0, **options)
        zero = jax.tree.map(jnp.zeros_like, single.params)
        return flat(jax.jit(tx.update)(zero, tx.init(single.params), single.params, batch=single.batch)[0])

    exact = norm_gradient(single.loss_fn)
    error = lambda x: float(jnp.linalg.norm(x - exact) / jnp.linalg.norm(exact))  # noqa: E731
    assert error(norm_gradient(half)) < 0.03
    assert error(norm_gradient(half, hvp="finite_difference", rho_prime=1e-3)) > 0.5


@family
@pytest.mark.parametrize("x64", [False, True])
def test_strict_dtype_promotion(name, x64):
    """Our own arithmetic never relies on implicit promotion, whatever mixture of dtypes comes in."""
    problem = PROBLEMS["mixed_precision"]()
    grads = jax.grad(problem.loss_fn)(problem.params, problem.batch)
    for options in ({}, {"interval": 2}, {"adaptive": True}):
        if name == "asam":
            options.pop("adaptive", None)
        tx = FAMILY[name](problem.loss_fn, **options)
        with jax.numpy_dtype_promotion("strict"), jax.enable_x64(x64):
            updates, _ = jax.eval_shape(
                lambda *args, tx=tx: tx.update(*args, batch=problem.batch),
                grads,
                tx.init(problem.params),
                problem.params,
            )
        chex.assert_trees_all_equal_shapes_and_dtypes(updates, problem.params)


def test_updates_keep_their_own_dtype():
    """float32 gradients of bfloat16 parameters stay float32."""
    problem = PROBLEMS["mixed_precision"]()
    grads = jax.tree.map(lambda p: jnp.ones(p.shape, jnp.float32), problem.params)
    tx = gam_jax.gam(problem.loss_fn, 0.1, 0.5)
    updates, _ = tx.update(grads, tx.init(problem.params), problem.params, batch=problem.batch)
    chex.assert_trees_all_equal_dtypes(updates, grads)


def test_perpendicular_and_cosine(x64):
    a, b = mlp().params, jax.tree.map(jnp.cos, mlp().params)
    assert abs(_tree.inner_product(_tree.perpendicular(a, to=b), b)) < 1e-12
    flat = lambda tree: jax.flatten_util.ravel_pytree(tree)[0]  # noqa: E731
    expected = flat(a) @ flat(b) / jnp.linalg.norm(flat(a)) / jnp.linalg.norm(flat(b))
    np.testing.assert_allclose(_tree.cosine(a, b), expected, rtol=1e-12)
    zero = jax.tree.map(jnp.zeros_like, a)
    assert _tree.cosine(a, zero) == 0
    chex.assert_trees_all_equal(_tree.perpendicular(a, to=zero), a)
    huge = jax.tree.map(lambda x: 1e200 * x, a)
    np.testing.assert_allclose(_tree.cosine(huge, b), expected, rtol=1e-12)
