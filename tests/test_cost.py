"""What a step costs, read off the compiled program: exact properties, so they may be tests."""

import jax
import jax.numpy as jnp
import pytest

import gam_jax
from experiments.benchmarks.step_cost import LINKS, NETWORKS, compile_and_count, problem, step_cost
from tests.family import FAMILY

networks = pytest.mark.parametrize("network", NETWORKS)


@networks
def test_value_and_grad(network):
    loss_fn, params, batch, flops, memory = problem(network)
    cost = compile_and_count(gam_jax.gam_value_and_grad(loss_fn, 0.1, 0.5), params, batch)
    assert 5 < cost[0] / flops < 6.05
    assert cost[1] / memory < 3


# A link after the caller's own value_and_grad shares that gradient.
LIMITS = {
    "GAM": 6.05,
    "SAM + GAM": 7.05,
    "accelerated GAM": 4.05,
    "SAM": 2.02,
    "gradient-norm penalty": 3.05,
    "C-Flat": 4.05,
    "FAD": 4.05,
}


@networks
@pytest.mark.parametrize("method", LIMITS)
def test_chain_links(network, method):
    assert LIMITS[method] - 0.7 < step_cost(network, LINKS[method])[0] < LIMITS[method]


@networks
def test_skipped_steps_cost_one_gradient(network):
    plain, _ = step_cost(network, LINKS["SGD"])
    for method in ("GAM", "SAM", "accelerated GAM"):
        skipped, _ = step_cost(network, LINKS[method], count=1, interval=3)
        assert skipped < plain + 1e-4, (method, skipped, plain)
        assert step_cost(network, LINKS[method], count=3, interval=3)[0] > 1.9


def test_skipping_is_a_branch_of_the_program():
    """With a count that the compiler does not know, a conditional remains: only one branch runs."""
    loss_fn, params, batch, _, _ = problem("ViT")
    tx = gam_jax.gam(loss_fn, 0.1, 0.5, interval=3)
    update = jax.jit(lambda g, s, p, batch: tx.update(g, s, p, batch=batch))
    text = update.lower(params, tx.init(params), params, batch).compile().as_text()
    entry = text[text.index("ENTRY") :]
    assert " conditional(" in entry
    assert " dot(" not in entry and "custom-call" not in entry


@networks
def test_microbatches(network):
    """8 gradients: 1 and 1 + 2 at each of two points, since a product needs the gradient of all microbatches first."""
    loss_fn, params, batch, _, _ = problem(network)
    fn = gam_jax.gam_value_and_grad(loss_fn, 0.1, 0.5, num_microbatches=4)
    part = jax.tree.map(lambda x: x[:2], batch)
    flops, _ = compile_and_count(jax.value_and_grad(loss_fn), params, part)
    # The body of a loop is counted once, hence 8 passes over a quarter of the batch.
    assert 7 < compile_and_count(fn, params, batch)[0] / flops < 8.3


@pytest.mark.parametrize("name", FAMILY)
def test_state_is_a_few_scalars(name):
    leaves = jax.tree.leaves(FAMILY[name](lambda params: 0.0).init({"w": jnp.zeros((100, 100))}))
    assert all(leaf.shape == () for leaf in leaves) and len(leaves) <= 6
