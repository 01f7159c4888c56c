"""Side by side with literal numpy transcriptions, with the authors' code, and with numerical derivatives."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gam_jax
from tests.gam_jax import oracles
from tests.gam_jax.family import FAMILY
from tests.gam_jax.problems import PROBLEMS

GOLDENS = np.load(pathlib.Path(__file__).parent / "goldens" / "mlp_trajectories.npz", allow_pickle=False)
STEPS = 20
BASES = {
    "sgd": (lambda: oracles.SgdMomentum(), lambda: optax.sgd(0.1, momentum=0.9)),
    "adamw": (lambda: oracles.AdamW(), lambda: optax.adamw(0.05, weight_decay=1e-2)),
}


def jax_loss(problem):
    def loss_fn(w):
        margin = jnp.asarray(problem.y) * (jnp.asarray(problem.x) @ w)
        return jnp.mean(jax.nn.softplus(-margin)) + problem.quartic / 4 * jnp.sum(w**4)

    return loss_fn


def trajectory(tx, loss_fn, start):
    @jax.jit
    def step(w, state):
        updates, state = tx.update(jax.grad(loss_fn)(w), state, w)
        return optax.apply_updates(w, updates), state

    w, state, visited = jnp.asarray(start), tx.init(jnp.asarray(start)), []
    for _ in range(STEPS):
        w, state = step(w, state)
        visited.append(w)
    return np.stack(visited)


def transcription(direction, base, start):
    w, visited = start, []
    for _ in range(STEPS):
        w = base.step(w, direction(w))
        visited.append(w)
    return np.stack(visited)


@pytest.mark.parametrize(
    ("name", "base"), [(name, "sgd") for name in FAMILY] + [(name, "adamw") for name in ("gam", "accelerated_gam")]
)
def test_against_its_transcription(name, base, x64):
    method, problem, (plain, transformed) = FAMILY[name], oracles.LogisticQuartic(), BASES[base]
    loss_fn = jax_loss(problem)
    direction = method.oracle(problem, **method.coefficients, **method.options)
    tx = optax.chain(method(loss_fn), transformed())
    expected = transcription(direction, plain(), problem.start)
    np.testing.assert_allclose(trajectory(tx, loss_fn, problem.start), expected, atol=1e-10, rtol=0)


def test_algorithm_1_with_a_decayed_oracle_loss(x64):
    """add_decayed_weights before the link: h_loss decays, f and h_norm use the plain loss (line 5 and NOTES 2)."""
    problem = oracles.LogisticQuartic()

    def direction(w):
        return oracles.algorithm_1(problem, w, problem.gradient(w) + 0.1 * w, rho=0.2, alpha=0.7)

    gam = gam_jax.gam(jax_loss(problem), rho=0.2, alpha=0.7)
    expected = transcription(direction, oracles.SgdMomentum(), problem.start)
    for tx in (
        optax.chain(optax.add_decayed_weights(0.1), gam, optax.sgd(0.1, momentum=0.9)),
        optax.chain(gam, optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9)),
    ):
        np.testing.assert_allclose(trajectory(tx, jax_loss(problem), problem.start), expected, atol=1e-10, rtol=0)


def test_sam_and_gam(x64):
    """The oracle loss is SAM's: h_loss is the gradient at w + rho_sam g / ||g||; GAM's own radius is separate."""
    problem = oracles.LogisticQuartic()

    def direction(w):
        g = problem.gradient(w)
        h_loss = problem.gradient(w + 0.05 * g / (np.linalg.norm(g) + oracles.XI))
        return oracles.algorithm_1(problem, w, h_loss, rho=0.2, alpha=0.7)

    loss_fn = jax_loss(problem)
    links = gam_jax.sam(loss_fn, 0.05), gam_jax.gam(loss_fn, 0.2, 0.7), optax.sgd(0.1, momentum=0.9)
    expected = transcription(direction, oracles.SgdMomentum(), problem.start)
    np.testing.assert_allclose(trajectory(optax.chain(*links), loss_fn, problem.start), expected, atol=1e-10, rtol=0)


def golden_loss(params, x, y):
    hidden = jnp.tanh(x @ params["l1.weight"].T + params["l1.bias"][None])
    logits = hidden @ params["l2.weight"].T + params["l2.bias"][None]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


@pytest.mark.parametrize(
    ("run", "link"),
    [
        ("exact", gam_jax.gam(golden_loss, 0.1, 0.5)),
        (
            "accelerated_released",
            gam_jax.accelerated_gam(
                golden_loss,
                **gam_jax.released_coefficients(rho=0.2, rho_prime=0.02, alpha=0.6, beta=0.5, gamma=0.03),
            ),
        ),
    ],
)
def test_golden_trajectories(run, link, x64):
    """The authors' own PyTorch optimizer, and Algorithm 1 by double backward in PyTorch."""

    def golden(step):
        return {n: jnp.asarray(GOLDENS[f"{run}/p{step}.{n}"]) for n in ("l1.weight", "l1.bias", "l2.weight", "l2.bias")}

    tx = optax.chain(link, optax.add_decayed_weights(5e-4), optax.sgd(0.1, momentum=0.9))

    @jax.jit
    def step(params, state, x, y):
        updates, state = tx.update(jax.grad(golden_loss)(params, x, y), state, params, x=x, y=y)
        return optax.apply_updates(params, updates), state

    params = golden(0)
    state = tx.init(params)
    for i in range(10):
        params, state = step(params, state, GOLDENS[f"{run}/x"][i], GOLDENS[f"{run}/y"][i])
        for name, expected in golden(i + 1).items():
            np.testing.assert_allclose(params[name], expected, atol=1e-10, rtol=0)


def flattened(problem):
    flat, unravel = jax.flatten_util.ravel_pytree(problem.params)
    return flat, lambda w: problem.loss_fn(unravel(w), problem.batch)


@pytest.mark.parametrize("hvp", ["linearize", "jvp", "reverse"])
@pytest.mark.parametrize("name", [n for n in PROBLEMS if n != "mixed_precision"])
def test_against_dense_hessians(name, hvp, x64):
    problem = PROBLEMS[name]()
    w, loss = flattened(problem)
    dense = oracles.Dense(loss)
    expected = oracles.algorithm_1(dense, w, dense.gradient(w), rho=0.1, alpha=0.5)
    fn = jax.jit(gam_jax.gam_value_and_grad(problem.loss_fn, 0.1, 0.5, hvp=hvp))
    _, grads = fn(problem.params, problem.batch)
    np.testing.assert_allclose(jax.flatten_util.ravel_pytree(grads)[0], expected, atol=1e-10, rtol=0)


def test_norm_terms_against_central_differences(x64):
    """f = grad ||grad L|| at w, and h_norm = rho grad ||grad L|| at w_adv (Eq. 8), by differences of ||grad L||."""
    w, loss = flattened(PROBLEMS["mlp"]())
    gradient = jax.jit(jax.grad(loss))
    norm = lambda w: np.linalg.norm(gradient(w))  # noqa: E731

    def central(w, step=1e-5):
        return np.array([(norm(w + step * e) - norm(w - step * e)) / (2 * step) for e in np.eye(w.size)])

    f = central(w)
    h_norm = 0.1 * central(w + 0.1 * f / np.linalg.norm(f))
    penalty = gam_jax.gradient_norm_penalty(loss, strength=1.0)
    zero = jnp.zeros_like(w)
    np.testing.assert_allclose(jax.jit(penalty.update)(zero, penalty.init(w), w)[0], f, atol=1e-8)
    gam = gam_jax.gam(loss, rho=0.1, alpha=1.0)
    np.testing.assert_allclose(jax.jit(gam.update)(zero, gam.init(w), w)[0], h_norm, atol=1e-8)


@pytest.mark.parametrize("rho_prime", [1e-4, 0.3, 10.0])
def test_finite_differences_are_exact_on_a_quadratic(rho_prime, x64):
    """For ANY rho_prime (NOTES 5.1)."""
    matrix = np.random.default_rng(0).normal(size=(5, 5))
    loss = lambda w: 0.5 * jnp.sum((jnp.asarray(matrix) @ w) ** 2)  # noqa: E731
    w = jnp.arange(1.0, 6.0)
    _, exact = gam_jax.gam_value_and_grad(loss, 0.2, 0.5)(w)
    _, differences = gam_jax.gam_value_and_grad(loss, 0.2, 0.5, hvp="finite_difference", rho_prime=rho_prime)(w)
    np.testing.assert_allclose(differences, exact, rtol=1e-9)


@pytest.mark.parametrize("products", [{"hvp": "finite_difference"}, {"ascent_hvp": "finite_difference"}], ids=str)
def test_finite_differences_converge(products, x64):
    problem = PROBLEMS["mlp"]()
    flat = lambda tree: jax.flatten_util.ravel_pytree(tree)[0]  # noqa: E731
    _, exact = jax.jit(gam_jax.gam_value_and_grad(problem.loss_fn, 0.1, 0.5))(problem.params, problem.batch)
    errors = []
    for rho_prime in (1e-2, 1e-3, 1e-4):
        fn = jax.jit(gam_jax.gam_value_and_grad(problem.loss_fn, 0.1, 0.5, **products, rho_prime=rho_prime))
        errors.append(np.linalg.norm(flat(fn(problem.params, problem.batch)[1]) - flat(exact)))
    np.testing.assert_allclose(np.array(errors[:-1]) / errors[1:], 10, rtol=0.1)  # first order in rho_prime
