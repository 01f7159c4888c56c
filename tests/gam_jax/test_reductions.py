"""What each method becomes for special coefficients and options."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gam_jax
from tests.gam_jax.family import FAMILY, parametrize
from tests.gam_jax.problems import PROBLEMS, mlp


def direction(tx, problem, params=None, **extra):
    """One update of a transformation on its own."""
    params = problem.params if params is None else params
    grads = jax.grad(problem.loss_fn)(params, problem.batch)
    return tx.update(grads, tx.init(params), params, batch=problem.batch, **extra)[0]


def assert_close(a, b, rtol=1e-10, atol=1e-13):
    chex.assert_trees_all_close(a, b, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", PROBLEMS)
def test_gam_without_alpha_is_the_base_optimizer(name):
    problem = PROBLEMS[name]()
    grads = jax.grad(problem.loss_fn)(problem.params, problem.batch)
    chex.assert_trees_all_equal(direction(gam_jax.gam(problem.loss_fn, rho=0.1, alpha=0.0), problem), grads)


def test_accelerated_gam_contains_sam_and_gsam(x64):
    problem = mlp()
    accelerated = lambda **k: gam_jax.accelerated_gam(problem.loss_fn, rho=0.2, rho_prime=0.05, **k)  # noqa: E731
    sam, gsam = gam_jax.sam(problem.loss_fn, 0.05), gam_jax.sam(problem.loss_fn, 0.05, gamma=0.3)
    assert_close(direction(accelerated(alpha=1.0, beta=0.4, gamma=0.0), problem), direction(sam, problem))
    assert_close(direction(accelerated(alpha=1.0, beta=1.0, gamma=0.3), problem), direction(gsam, problem))


def test_friendly_sam_contains_sam(x64):
    """Without its mean, and with a mean of the last gradient alone, of which sigma < 1 leaves the direction."""
    problem = mlp()
    sam = direction(gam_jax.sam(problem.loss_fn, 0.05), problem)
    assert_close(direction(gam_jax.friendly_sam(problem.loss_fn, 0.05, sigma=0.0), problem), sam)
    assert_close(direction(gam_jax.friendly_sam(problem.loss_fn, 0.05, sigma=0.5, decay=0.0), problem), sam)


def test_fad_and_c_flat_contain_sam(x64):
    problem = mlp()
    sam = direction(gam_jax.sam(problem.loss_fn, 0.2), problem)
    assert_close(direction(gam_jax.fad(problem.loss_fn, 0.2, alpha=1.0, beta=1.0), problem), sam)
    assert_close(direction(gam_jax.c_flat(problem.loss_fn, 0.2, strength=0.0), problem), sam)


def test_adaptive_gam_is_gam_in_scaled_coordinates(x64):
    """With w = |w0| u, the loss as a function of u has plain GAM; its update pulled back is the adaptive one."""
    problem = mlp()
    scale = jax.tree.map(jnp.abs, problem.params)
    scaled_loss = lambda u: problem.loss_fn(jax.tree.map(jnp.multiply, scale, u), problem.batch)  # noqa: E731
    u = jax.tree.map(jnp.divide, problem.params, scale)
    plain = gam_jax.gam_value_and_grad(scaled_loss, 0.3, 0.5)(u)[1]
    adaptive = gam_jax.gam_value_and_grad(problem.loss_fn, 0.3, 0.5, adaptive=True)(problem.params, problem.batch)[1]
    assert_close(jax.tree.map(jnp.multiply, scale, adaptive), plain)


def test_adaptive_asam_does_not_see_a_rescaling(x64):
    """ASAM's perturbation is equivariant under a per-parameter rescaling that leaves the loss as it is."""
    problem = mlp()
    scale = jax.tree.map(lambda w: 2.0 ** jnp.round(3 * w), problem.params)
    rescaled = problem._replace(
        loss_fn=lambda u, batch: problem.loss_fn(jax.tree.map(jnp.multiply, scale, u), batch),
        params=jax.tree.map(jnp.divide, problem.params, scale),
    )
    sam = lambda p: direction(gam_jax.sam(p.loss_fn, 0.5, adaptive=True), p)  # noqa: E731
    assert_close(sam(rescaled), jax.tree.map(jnp.multiply, scale, sam(problem)))


def test_penalty_in_the_form_of_its_authors(x64):
    """(1 - a) g0 + a grad(w + r g0/||g0||) with a = lambda / r."""
    problem = mlp()
    strength, radius = 0.04, 0.05
    g0 = jax.grad(problem.loss_fn)(problem.params, problem.batch)
    g1 = direction(gam_jax.sam(problem.loss_fn, radius), problem)
    mix = strength / radius
    expected = jax.tree.map(lambda a, b: (1 - mix) * a + mix * b, g0, g1)
    tx = gam_jax.gradient_norm_penalty(problem.loss_fn, strength, hvp="finite_difference", rho_prime=radius)
    assert_close(direction(tx, problem), expected)


def test_ascent_hvp(x64):
    """The two products are chosen apart: the same in both is that mode; microbatches agree."""
    problem = mlp()
    gam = lambda **options: direction(gam_jax.gam(problem.loss_fn, 0.1, 0.5, **options), problem)  # noqa: E731
    assert_close(gam(ascent_hvp="jvp"), gam())
    differences = gam(hvp="finite_difference")
    assert_close(gam(hvp="finite_difference", ascent_hvp="finite_difference"), differences)
    rough = gam(ascent_hvp="finite_difference")
    assert_close(rough, gam(ascent_hvp="finite_difference", num_microbatches=2), rtol=1e-8)
    distance = lambda a, b: optax.tree.norm(jax.tree.map(jnp.subtract, a, b))  # noqa: E731
    assert 0 < distance(rough, gam()) < 0.1 * distance(differences, gam())  # only the direction of f is rough
    of_value = gam_jax.gam_value_and_grad(problem.loss_fn, 0.1, 0.5, ascent_hvp="finite_difference")
    assert_close(of_value(problem.params, problem.batch)[1], rough)


@parametrize()
def test_microbatches_agree(name, x64):
    problem = mlp()
    whole = direction(FAMILY[name](problem.loss_fn), problem)
    for parts in (2, 8):
        assert_close(direction(FAMILY[name](problem.loss_fn, num_microbatches=parts), problem), whole)


def test_one_microbatch_is_none(x64):
    problem = mlp()
    one, none = (direction(FAMILY["gam"](problem.loss_fn, num_microbatches=n), problem) for n in (1, None))
    chex.assert_trees_all_equal(one, none)


@pytest.mark.parametrize("hvp", ["jvp", "reverse", "finite_difference"])
@pytest.mark.parametrize("name", ["gam", "gradient_norm_penalty"])
def test_microbatches_agree_in_every_mode_of_the_products(name, hvp, x64):
    problem = mlp()
    whole = direction(FAMILY[name](problem.loss_fn, hvp=hvp), problem)
    split = direction(FAMILY[name](problem.loss_fn, hvp=hvp, num_microbatches=2), problem)
    assert_close(split, whole, rtol=1e-8 if hvp == "finite_difference" else 1e-10)


def test_microbatches_of_value_and_grad(x64):
    """Loss and gradient agree; aux gets a leading axis; scalars and typed keys reach every microbatch whole."""
    problem = mlp()

    def loss_fn(params, batch, key, scale):
        loss = scale * problem.loss_fn(params, batch)
        return loss, {"mean": batch["x"].mean(), "noise": jax.random.normal(key)}

    args = problem.params, problem.batch, jax.random.key(0), 2.0
    (whole_loss, whole_aux), whole = gam_jax.gam_value_and_grad(loss_fn, 0.1, 0.5, has_aux=True)(*args)
    fn = gam_jax.gam_value_and_grad(loss_fn, 0.1, 0.5, has_aux=True, num_microbatches=4)
    (loss, aux), grads = jax.jit(fn)(*args)
    assert_close((loss, grads), (whole_loss, whole))
    assert aux["mean"].shape == (4,)
    np.testing.assert_allclose(aux["mean"].mean(), whole_aux["mean"], rtol=1e-12)
    np.testing.assert_array_equal(aux["noise"], jnp.full(4, whole_aux["noise"]))


def run(tx, problem, steps=6):
    @jax.jit
    def step(params, state):
        grads = jax.grad(problem.loss_fn)(params, problem.batch)
        updates, state = tx.update(grads, state, params, batch=problem.batch)
        return optax.apply_updates(params, updates), state

    params, state = problem.params, tx.init(problem.params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


@parametrize()
def test_a_constant_schedule_is_the_constant(name, x64):
    problem = mlp()
    method = FAMILY[name]
    schedules = {k: optax.constant_schedule(v) for k, v in method.coefficients.items()}
    plain, scheduled = method(problem.loss_fn), method(problem.loss_fn, **schedules)
    assert_close(
        run(optax.chain(scheduled, optax.sgd(0.1)), problem)[0], run(optax.chain(plain, optax.sgd(0.1)), problem)[0]
    )


def test_a_schedule_follows_the_own_step_count(x64):
    """rho doubles at step 2: the diagnostics say so, and a negative value is clamped at 0."""
    problem = mlp()
    schedule = lambda count: jnp.where(count < 2, 0.1, jnp.where(count < 4, 0.2, -1.0))  # noqa: E731
    tx = gam_jax.gam(problem.loss_fn, rho=schedule, alpha=0.5)
    state = tx.init(problem.params)
    grads = jax.grad(problem.loss_fn)(problem.params, problem.batch)
    seen = []
    for _ in range(5):
        updates, state = tx.update(grads, state, problem.params, batch=problem.batch)
        seen.append(state.diagnostics.first_order_flatness / state.diagnostics.perturbed_grad_norm)
    np.testing.assert_allclose(seen, [0.1, 0.1, 0.2, 0.2, 0.0], rtol=1e-5)
    chex.assert_trees_all_equal(updates, grads)


@parametrize()
def test_interval(name, x64):
    """Acts on steps 0, 3, 6, ... and passes the updates on unchanged between; diagnostics stay."""
    problem = mlp()
    every = FAMILY[name](problem.loss_fn)
    third = FAMILY[name](problem.loss_fn, interval=3)
    chosen = FAMILY[name](problem.loss_fn, interval=lambda count: count % 3 == 0)
    grads = jax.grad(problem.loss_fn)(problem.params, problem.batch)
    acted = direction(every, problem)
    for tx in (third, chosen):
        state = tx.init(problem.params)
        update = jax.jit(lambda s, tx=tx: tx.update(grads, s, problem.params, batch=problem.batch))
        for i in range(7):
            updates, new_state = update(state)
            assert_close(updates, acted if i % 3 == 0 else grads)
            if i % 3:
                chex.assert_trees_all_equal(new_state.diagnostics, state.diagnostics)
            assert new_state.count == i + 1
            state = new_state


def test_value_and_grad_with_interval_and_schedules(x64):
    problem = mlp()
    plain = jax.value_and_grad(problem.loss_fn)(problem.params, problem.batch)
    acted = gam_jax.gam_value_and_grad(problem.loss_fn, 0.1, 0.5)(problem.params, problem.batch)
    fn = jax.jit(gam_jax.gam_value_and_grad(problem.loss_fn, lambda count: 0.1, 0.5, interval=2))
    assert_close(fn(problem.params, problem.batch, count=4), acted)
    assert_close(fn(problem.params, problem.batch, count=3), plain)


def test_a_smaller_batch_for_the_norm_term(x64):
    """Curvature on a sub-batch: h_loss from the whole batch, h_norm from a part of it."""
    problem = mlp()
    part = jax.tree.map(lambda x: x[:4], problem.batch)
    grads = jax.grad(problem.loss_fn)(problem.params, problem.batch)
    tx = gam_jax.gam(problem.loss_fn, 0.1, 0.5)
    mixed = tx.update(grads, tx.init(problem.params), problem.params, batch=part)[0]
    on_part = gam_jax.gam_value_and_grad(problem.loss_fn, 0.1, 0.5)(problem.params, part)[1]
    part_grads = jax.grad(problem.loss_fn)(problem.params, part)
    assert_close(mixed, jax.tree.map(lambda g, a, b: g + (a - b), grads, on_part, part_grads))


def test_smaller_batches_are_unbiased_for_the_flatness_of_a_part(x64):
    """h_norm on random parts averages to the gradient of the mean R1 of the parts: with h_loss, to GAM's on a part."""
    problem = mlp()
    parts = [jax.tree.map(lambda x: x[i : i + 4], problem.batch) for i in range(0, 16, 4)]  # noqa: B023
    grads = jax.grad(problem.loss_fn)(problem.params, problem.batch)
    tx = gam_jax.gam(problem.loss_fn, 0.1, 0.5)
    mixed = [tx.update(grads, tx.init(problem.params), problem.params, batch=part)[0] for part in parts]
    on_parts = [gam_jax.gam_value_and_grad(problem.loss_fn, 0.1, 0.5)(problem.params, part)[1] for part in parts]
    mean = lambda trees: jax.tree.map(lambda *x: sum(x) / 4, *trees)  # noqa: E731
    assert_close(mean(mixed), mean(on_parts))


@pytest.mark.slow
def test_mask_leaves_out_of_ascent_and_norms(x64):
    """With biases masked out, GAM is that of the loss as a function of the kernels, and biases get their gradient."""
    problem = mlp()
    kernels = {k: v for k, v in problem.params.items() if k[0] == "w"}
    biases = {k: v for k, v in problem.params.items() if k[0] == "b"}
    of_kernels = lambda kernels: problem.loss_fn(kernels | biases, problem.batch)  # noqa: E731
    loss, expected = gam_jax.gam_value_and_grad(of_kernels, 0.1, 0.5)(kernels)
    mask = lambda params: {k: k[0] == "w" for k in params}  # noqa: E731
    masked = gam_jax.gam_value_and_grad(problem.loss_fn, 0.1, 0.5, perturb_mask=mask)(problem.params, problem.batch)
    assert_close({k: v for k, v in masked[1].items() if k in kernels}, expected)

    # Biases receive the derivative of L + alpha R1 with the ascent point held, here by dense linear algebra.
    flat, unravel = jax.flatten_util.ravel_pytree(problem.params)
    keep = jax.flatten_util.ravel_pytree({k: jnp.full_like(v, k[0] == "w") for k, v in problem.params.items()})[0]
    loss = lambda w: problem.loss_fn(unravel(w), problem.batch)  # noqa: E731
    unit = lambda x: keep * x / jnp.linalg.norm(keep * x)  # noqa: E731
    f = jax.hessian(loss)(flat) @ unit(jax.grad(loss)(flat))
    adversary = flat + 0.1 * unit(f)
    dense = jax.grad(loss)(flat) + 0.05 * jax.hessian(loss)(adversary) @ unit(jax.grad(loss)(adversary))
    assert_close(masked[1], unravel(dense), rtol=1e-9)


@parametrize()
def test_masking_everything_out_leaves_the_gradient(name, x64):
    problem = mlp()
    tx = FAMILY[name](problem.loss_fn, perturb_mask=jax.tree.map(lambda _: False, problem.params))
    grads = jax.grad(problem.loss_fn)(problem.params, problem.batch)
    assert_close(direction(tx, problem), grads, atol=1e-12)
    everything = FAMILY[name](problem.loss_fn, perturb_mask=jax.tree.map(lambda _: True, problem.params))
    assert_close(direction(everything, problem), direction(FAMILY[name](problem.loss_fn), problem))
