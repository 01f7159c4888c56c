"""What a step costs, read off the compiled program: exact properties, so they may be tests."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

import gam_jax
from tests.family import FAMILY
from tests.networks import resnet, vit

NETWORKS = {"vit": vit, "resnet": resnet}
networks = pytest.mark.parametrize("network", NETWORKS)


def flops(fn, *args):
    return jax.jit(fn).lower(*args).compile().cost_analysis()["flops"]


@functools.cache
def problem(network):
    """The network with the FLOPs of its gradient and of an SGD step."""
    loss_fn, params, batch = NETWORKS[network]()
    gradient = flops(jax.value_and_grad(loss_fn), params, batch)
    return loss_fn, params, batch, gradient


def step_cost(network, links, count=0, **options):
    """FLOPs of a whole jitted training step, in gradients of the loss, at a fixed step count."""
    loss_fn, params, batch, gradient = problem(network)
    tx = optax.chain(optax.identity(), *(link(loss_fn, **options) for link in links))
    base = optax.sgd(0.1, momentum=0.9)

    def step(params, base_state, batch):
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        first, *states = tx.init(params)
        state = (first, *(s._replace(count=jnp.int32(count)) for s in states))
        updates, state = tx.update(grads, state, params, batch=batch)
        updates, base_state = base.update(updates, base_state, params)
        return optax.apply_updates(params, updates), base_state, state, loss

    return flops(step, params, base.init(params), batch) / gradient


@networks
def test_value_and_grad(network):
    loss_fn, params, batch, gradient = problem(network)
    fn = gam_jax.gam_value_and_grad(loss_fn, 0.1, 0.5)
    assert 5 < flops(fn, params, batch) / gradient < 6.05


@networks
@pytest.mark.parametrize(
    ("methods", "limit"),
    [
        (["gam"], 6.05),
        (["sam", "gam"], 7.05),
        (["accelerated_gam"], 4.05),
        (["sam"], 2.02),
        (["gsam"], 2.02),
        (["gradient_norm_penalty"], 3.05),
        (["c_flat"], 4.05),
        (["fad"], 4.05),
    ],
    ids=lambda x: "+".join(x) if isinstance(x, list) else "",
)
def test_chain_links(network, methods, limit):
    """A link after the caller's own value_and_grad shares that gradient."""
    cost = step_cost(network, [FAMILY[name] for name in methods])
    assert limit - 0.7 < cost < limit


@networks
def test_skipped_steps_cost_one_gradient(network):
    plain = step_cost(network, [])
    for name in ("gam", "sam", "accelerated_gam"):
        skipped = step_cost(network, [FAMILY[name]], count=1, interval=3)
        assert skipped < plain + 1e-4, (name, skipped, plain)
        assert step_cost(network, [FAMILY[name]], count=3, interval=3) > 1.9


def test_skipping_is_a_branch_of_the_program():
    """With a count that the compiler does not know, a conditional remains: only one branch runs."""
    loss_fn, params, batch, _ = problem("vit")
    tx = gam_jax.gam(loss_fn, 0.1, 0.5, interval=3)
    update = jax.jit(lambda g, s, p, batch: tx.update(g, s, p, batch=batch))
    text = update.lower(params, tx.init(params), params, batch).compile().as_text()
    entry = text[text.index("ENTRY") :]
    assert " conditional(" in entry
    assert " dot(" not in entry and "custom-call" not in entry


@networks
def test_microbatches(network):
    """1 + 3 gradients at each of two points; as a link, the caller's own on top."""
    loss_fn, params, batch, gradient = problem(network)
    fn = gam_jax.gam_value_and_grad(loss_fn, 0.1, 0.5, num_microbatches=4)
    small = flops(jax.value_and_grad(loss_fn), params, jax.tree.map(lambda x: x[:2], batch))
    # A scan's body is counted once: 8 passes over a quarter of the batch.
    assert 7 < flops(fn, params, batch) / small < 8.3


@pytest.mark.parametrize("name", FAMILY)
def test_state_is_a_few_scalars(name):
    loss_fn, params, _, _ = problem("vit")
    leaves = jax.tree.leaves(FAMILY[name](loss_fn).init(params))
    assert all(leaf.shape == () for leaf in leaves) and len(leaves) <= 6
