"""In chains with optax's optimizers, and with models of Flax NNX, Flax Linen and equinox."""

import chex
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import gam_jax
from tests.gam_jax import oracles
from tests.gam_jax.family import FAMILY, parametrize
from tests.gam_jax.problems import cross_entropy, mlp

BASES = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adamw": lambda: optax.adamw(0.02),
    "adafactor": lambda: optax.adafactor(0.02, min_dim_size_to_factor=4),
    "lion": lambda: optax.lion(0.005),
    "muon": lambda: optax.contrib.muon(0.05),
}


def train(tx, problem, steps=30):
    @jax.jit
    def step(params, state):
        loss, grads = jax.value_and_grad(problem.loss_fn)(params, problem.batch)
        updates, state = tx.update(grads, state, params, batch=problem.batch, value=loss)
        return optax.apply_updates(params, updates), state

    params, state = problem.params, tx.init(problem.params)
    for _ in range(steps):
        params, state = step(params, state)
    return params


@pytest.mark.parametrize("base", BASES)
@parametrize("gam", "sam", "accelerated_gam", slow=("sam", "accelerated_gam"))
def test_before_any_optimizer(name, base):
    """The chain descends, and equals the base optimizer fed with the link's updates by hand."""
    problem = mlp()
    link, optimizer = FAMILY[name](problem.loss_fn), BASES[base]()
    params = train(optax.chain(link, optimizer), problem)
    assert problem.loss_fn(params, problem.batch) < 0.9 * problem.loss_fn(problem.params, problem.batch)

    @jax.jit
    def by_hand(params, state):
        grads = jax.grad(problem.loss_fn)(params, problem.batch)
        updates, _ = link.update(grads, link.init(params), params, batch=problem.batch)
        updates, state = optimizer.update(updates, state, params)
        return optax.apply_updates(params, updates), state

    expected, state = problem.params, optimizer.init(problem.params)
    for _ in range(30):
        expected, state = by_hand(expected, state)
    chex.assert_trees_all_close(params, expected, rtol=1e-3, atol=1e-4)


def test_clipping_before_and_after(x64):
    """Before, clipping bounds the oracle gradient alone; after, the sum with the norm term."""
    problem = mlp()
    grads = jax.grad(problem.loss_fn)(problem.params, problem.batch)
    gam = gam_jax.gam(problem.loss_fn, 0.1, 0.5)
    clip = optax.clip_by_global_norm(0.05)
    update = lambda tx: jax.jit(tx.update)(grads, tx.init(problem.params), problem.params, batch=problem.batch)[0]  # noqa: E731
    h_norm = jax.tree.map(jnp.subtract, update(gam), grads)
    clipped = clip.update(grads, clip.init(grads))[0]
    chex.assert_trees_all_close(
        update(optax.chain(clip, gam)), jax.tree.map(jnp.add, clipped, h_norm), rtol=1e-10, atol=1e-14
    )
    assert optax.tree.norm(update(optax.chain(gam, clip))) <= 0.05 + 1e-12
    assert optax.tree.norm(update(gam)) > 0.05


def test_partition_goes_inside():
    """Different optimizers for different leaves after the link, as its error message advises."""
    problem = mlp()
    labels = {"w1": "fast", "b1": "slow", "w2": "fast", "b2": "slow"}
    base = optax.partition({"fast": optax.sgd(0.1), "slow": optax.sgd(0.0)}, labels)
    params = train(optax.chain(gam_jax.gam(problem.loss_fn, 0.1, 0.5), base), problem, steps=2)
    chex.assert_trees_all_equal(params["b1"], problem.params["b1"])
    assert not np.array_equal(params["w1"], problem.params["w1"])


@pytest.mark.slow
def test_flax_nnx(x64):
    """An NNX model driven functionally: the parameters a State, dropout off, batch by name."""

    class Mlp(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(6, 8, param_dtype=float, rngs=rngs)
            self.norm = nnx.LayerNorm(8, param_dtype=float, rngs=rngs)
            self.out = nnx.Linear(8, 3, param_dtype=float, rngs=rngs)

        def __call__(self, x):
            return self.out(nnx.relu(self.norm(self.hidden(x))))

    graphdef, params, rest = nnx.split(Mlp(nnx.Rngs(0)), nnx.Param, ...)

    def loss_fn(params, batch):
        with jax.numpy_rank_promotion("allow"):  # Flax adds a bias of rank 1
            logits = nnx.merge(graphdef, params, rest, copy=True)(batch["x"])
        return cross_entropy(logits, batch["y"])

    batch = mlp().batch
    expected = flat_gam(params, lambda p: loss_fn(p, batch))
    for hvp in ("linearize", "jvp", "reverse"):
        grads = jax.jit(gam_jax.gam_value_and_grad(loss_fn, 0.1, 0.5, hvp=hvp))(params, batch)[1]
        assert_equals_flat_gam(grads, expected)
    tx = optax.chain(gam_jax.gam(loss_fn, 0.1, 0.5), optax.adamw(0.01))
    updates, _ = jax.jit(lambda g, s, p, b: tx.update(g, s, p, batch=b))(params, tx.init(params), params, batch)
    assert isinstance(optax.apply_updates(params, updates), nnx.State)


def flat_gam(params, loss):
    """GAM of the loss as a function of one flat vector, by dense Hessian."""
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    dense = oracles.Dense(lambda w: loss(unravel(w)))
    return oracles.algorithm_1(dense, flat, dense.gradient(flat), rho=0.1, alpha=0.5)


def assert_equals_flat_gam(grads, expected, rtol=1e-9):
    np.testing.assert_allclose(jax.flatten_util.ravel_pytree(grads)[0], expected, rtol=rtol, atol=1e-11)


class LinenNetwork(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(8, param_dtype=float)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, param_dtype=float)(x)
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
        return nn.Dense(3, param_dtype=float)(x)


def test_flax_linen_batch_norm_and_dropout(x64):
    """aux is that of the clean pass, so running statistics move once; one dropout mask serves all passes."""
    model, batch = LinenNetwork(), mlp().batch
    with jax.numpy_rank_promotion("allow"):
        variables = model.init(jax.random.key(0), batch["x"], train=False)

        def loss_fn(params, batch_stats, batch, rng):
            logits, updated = model.apply(
                {"params": params, "batch_stats": batch_stats},
                batch["x"],
                train=True,
                rngs={"dropout": rng},
                mutable=["batch_stats"],
            )
            return cross_entropy(logits, batch["y"]), updated["batch_stats"]

        params, stats, rng = variables["params"], variables["batch_stats"], jax.random.key(7)
        fn = gam_jax.gam_value_and_grad(loss_fn, 0.1, 0.5, has_aux=True)
        (loss, aux), grads = jax.jit(fn)(params, stats, batch, rng)
        (clean_loss, clean_aux), clean = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params, stats, batch, rng)
        chex.assert_trees_all_close((loss, aux), (clean_loss, clean_aux), rtol=1e-12)
        # With another mask in any one pass this could not hold.
        assert_equals_flat_gam(grads, flat_gam(params, lambda p: loss_fn(p, stats, batch, rng)[0]))

        tx = gam_jax.gam(loss_fn, 0.1, 0.5, has_aux=True)
        updates, _ = jax.jit(tx.update)(clean, tx.init(params), params, batch_stats=stats, batch=batch, rng=rng)
        chex.assert_trees_all_close(updates, grads, rtol=1e-10)


def test_equinox(x64):
    """An equinox model: its arrays are the parameters, None stands for the rest."""
    model = eqx.nn.MLP(6, 3, width_size=8, depth=1, dtype=float, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss_fn(params, batch):
        return cross_entropy(jax.vmap(eqx.combine(params, static))(batch["x"]), batch["y"])

    batch = mlp().batch
    tx = optax.chain(gam_jax.gam(loss_fn, 0.1, 0.5), optax.adamw(0.01))
    grads = jax.jit(jax.grad(loss_fn))(params, batch)
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params, batch=batch)
    assert isinstance(eqx.apply_updates(params, updates), eqx.nn.MLP)
    link = gam_jax.gam(loss_fn, 0.1, 0.5)
    grads, _ = jax.jit(link.update)(grads, link.init(params), params, batch=batch)
    assert_equals_flat_gam(grads, flat_gam(params, lambda p: loss_fn(p, batch)))


def attention_with_custom_vjp():
    """A loss with a custom_vjp inside, as many attention kernels have."""

    @jax.custom_vjp
    def square(x):
        return x**2

    square.defvjp(lambda x: (x**2, x), lambda x, g: (2 * x * g,))

    def loss_fn(params, batch):
        return jnp.mean(square(jnp.tanh(batch["x"] @ params)))

    return loss_fn


def assert_calls_equal(loss_fn, params, expected, hvp, rtol=1e-9, eager=True, **options):
    """The gradients of GAM, compiled and operation by operation."""
    fn = gam_jax.gam_value_and_grad(loss_fn, 0.1, 0.5, hvp=hvp, **options)
    for call in (jax.jit(fn), fn) if eager else (jax.jit(fn),):
        assert_equals_flat_gam(call(params, mlp().batch)[1], expected, rtol=rtol)


def test_custom_vjp(x64):
    params, batch = 0.3 * jax.random.normal(jax.random.key(0), (6, 2), float), mlp().batch
    expected = flat_gam(params, lambda p: jnp.mean(jnp.tanh(batch["x"] @ p) ** 2))
    for hvp, rtol in {"linearize": 1e-9, "reverse": 1e-9, "finite_difference": 1e-4}.items():
        assert_calls_equal(attention_with_custom_vjp(), params, expected, hvp, rtol, rho_prime=1e-6)


def layered_loss(wrap):
    """Scan over layers, cond, nested jit or checkpointing."""

    def loss_fn(params, batch):
        layer = wrap(lambda h, w: (jnp.tanh(h @ w), None))
        hidden, _ = jax.lax.scan(layer, batch["x"], params)
        value = jnp.mean(hidden**2)
        return jax.lax.cond(value > 0, lambda v: jnp.sin(v), lambda v: v, value) + jnp.sort(params.sum((1, 2)))[0]

    return loss_fn


@pytest.mark.slow
def test_losses_with_loops_branches_and_remat(x64):
    """In every mode of the products; operation by operation where nothing is wrapped."""
    params = 0.4 * jax.random.normal(jax.random.key(0), (3, 6, 6), float)
    plain = lambda layer: layer  # noqa: E731
    expected = flat_gam(params, lambda p: layered_loss(plain)(p, mlp().batch))
    for hvp in ("linearize", "jvp", "reverse"):
        for wrap in (plain, jax.checkpoint, jax.jit):
            assert_calls_equal(layered_loss(wrap), params, expected, hvp, eager=wrap is plain)


def test_under_vmap_over_hyper_parameters(x64):
    """Traced coefficients: one compiled program for a whole grid of (rho, alpha)."""
    problem = mlp()

    def update(rho, alpha):
        tx = gam_jax.gam(problem.loss_fn, rho, alpha)
        grads = jax.grad(problem.loss_fn)(problem.params, problem.batch)
        return tx.update(grads, tx.init(problem.params), problem.params, batch=problem.batch)[0]

    rhos, alphas = jnp.array([0.05, 0.1, 0.2]), jnp.array([0.0, 0.5, 2.0])
    batched = jax.jit(jax.vmap(update))(rhos, alphas)
    one_by_one = jax.jit(update, static_argnums=(0, 1))
    for i, (rho, alpha) in enumerate(zip(rhos, alphas, strict=True)):
        one = jax.tree.map(lambda x: x[i], batched)  # noqa: B023
        chex.assert_trees_all_close(one, one_by_one(float(rho), float(alpha)), rtol=1e-10, atol=1e-14)
