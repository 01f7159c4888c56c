"""What a step costs, read off the compiled program: exact properties, so they may be tests."""

import jax
import jax.numpy as jnp
import pytest

import gam_jax
from tests.gam_jax.family import FACTORIES, FAMILY
from tests.gam_jax.step_cost import NETWORKS, compile_and_count, problem, step_cost

networks = pytest.mark.parametrize("network", NETWORKS)
one_network = pytest.mark.parametrize("network", ["ResNet", pytest.param("ViT", marks=pytest.mark.slow)])


@networks
def test_value_and_grad(network):
    loss_fn, params, batch, flops, memory = problem(network)
    cost = compile_and_count(gam_jax.gam_value_and_grad(loss_fn, 0.1, 0.5), params, batch)
    assert 5 < cost[0] / flops < 6.05
    assert cost[1] / memory < 3


@one_network
@pytest.mark.parametrize("name", FACTORIES)
def test_chain_links(network, name):
    """A link after the caller's own value_and_grad shares that gradient."""
    gradients = FAMILY[name].gradients
    assert gradients - 0.65 < step_cost(network, name)[0] < gradients + 0.02


@one_network
@pytest.mark.parametrize("name", FACTORIES)
def test_functions(network, name):
    """One gradient less to be shared: the method's cost, on a scanned network as well."""
    loss_fn, params, batch, flops, _ = problem(network)
    memory = {"memory": params} if name == "friendly_sam" else {}
    fn = FAMILY[name].function(loss_fn)
    gradients = FAMILY[name].gradients
    cost = compile_and_count(lambda params, batch: fn(params, batch, **memory)[:2], params, batch)[0] / flops
    assert gradients - 0.65 < cost < gradients + 0.02


@one_network
@pytest.mark.parametrize("name", [pytest.param("gam", marks=pytest.mark.slow), "sam"])
def test_groups_and_shares(network, name):
    """Groups cost no gradient more, as a function; a share of 1/n costs 1 + c / n, as a link too."""
    loss_fn, params, batch, flops, memory = problem(network)
    gradients = FAMILY[name].gradients
    grouped = FAMILY[name].function(loss_fn, groups=2, groups_by="vmap")
    assert gradients - 0.65 < compile_and_count(grouped, params, batch)[0] / flops < gradients + 0.1
    half = jax.tree.map(lambda x: x[::2], batch)
    flops_of_half, memory_of_half = compile_and_count(jax.value_and_grad(loss_fn), params, half)
    cost, space = compile_and_count(FAMILY[name].function(loss_fn, groups=2), params, batch)
    assert gradients - 0.65 < cost / flops_of_half < gradients + 0.1  # the body of a loop is counted once
    if name == "sam":
        assert space < 1.6 * memory_of_half + 4 * sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert 1 + (gradients - 0.65) / 2 < step_cost(network, name, share=2)[0] < 1.1 + gradients / 2


@one_network
def test_sam_and_gam(network):
    assert 6.35 < step_cost(network, "sam", "gam")[0] < 7.02


@one_network
def test_skipped_steps_cost_one_gradient(network):
    plain, _ = step_cost(network)
    for method in ("gam", "sam", "accelerated_gam"):
        skipped, _ = step_cost(network, method, count=1, interval=3)
        assert skipped < plain + 1e-4, (method, skipped, plain)
        assert step_cost(network, method, count=3, interval=3)[0] > 1.9


@pytest.mark.slow
@networks
def test_held_steps_cost_one_gradient(network):
    """And a few operations per parameter: the sum, and with a bound two norms."""
    _, params, _, flops, _ = problem(network)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    plain, _ = step_cost(network)
    for method in ("gam", "sam"):
        options = {"interval": 3, "between": "hold"}
        assert (step_cost(network, method, count=1, **options)[0] - plain) * flops < 3 * size + 1e4, method
        assert (step_cost(network, method, count=1, max_ratio=1.0, **options)[0] - plain) * flops < 20 * size
        acting = step_cost(network, method, count=3, **options)[0]
        assert acting - step_cost(network, method, count=3, interval=3)[0] < 0.02, method


@one_network
def test_ascent_by_finite_differences(network):
    """5 gradients: the caller's, one for the ascent direction, three for the exact norm gradient."""
    assert 4.5 < step_cost(network, "gam", ascent_hvp="finite_difference")[0] < 5.05
    loss_fn, params, batch, flops, _ = problem(network)
    fn = gam_jax.gam_value_and_grad(loss_fn, 0.1, 0.5, ascent_hvp="finite_difference")
    assert 4.5 < compile_and_count(fn, params, batch)[0] / flops < 5.05


@one_network
@pytest.mark.parametrize("share", [2, 4])
def test_a_smaller_batch_costs_proportionally_less(network, share):
    """1 + 6 / share gradients: nothing is shared with the gradient on the whole batch."""
    loss_fn, params, batch, flops, _ = problem(network)
    tx = gam_jax.gam(loss_fn, 0.1, 0.5)

    def step(params, batch):
        grads = jax.grad(loss_fn)(params, batch)
        part = jax.tree.map(lambda x: x[: x.shape[0] // share], batch)
        return tx.update(grads, tx.init(params), params, batch=part)[0]

    cost = compile_and_count(step, params, batch)[0] / flops
    assert 1 + 5 / share < cost < 1.1 + 6 / share


def test_skipping_is_a_branch_of_the_program():
    """With a count that the compiler does not know, a conditional remains: only one branch runs."""
    loss_fn, params, batch, _, _ = problem("ViT")
    tx = gam_jax.gam(loss_fn, 0.1, 0.5, interval=3)
    update = jax.jit(lambda g, s, p, batch: tx.update(g, s, p, batch=batch))
    text = update.lower(params, tx.init(params), params, batch).compile().as_text()
    entry = text[text.index("ENTRY") :]
    assert " conditional(" in entry
    assert " dot(" not in entry and "custom-call" not in entry


@one_network
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
    """And what the method remembers, like the parameters."""
    params = {"w": jnp.zeros((100, 100))}
    state = FAMILY[name](lambda params: 0.0).init(params)
    leaves = jax.tree.leaves((state.count, state.diagnostics, state.held))
    assert all(leaf.shape == () for leaf in leaves) and len(leaves) <= 6
    assert jax.tree.map(jnp.shape, state.memory) in ((), jax.tree.map(jnp.shape, params))
