"""m-sharpness on one device: each group of the batch perturbs with its own gradient, as a loop would have it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import gam_jax
from tests.gam_jax.family import FAMILY
from tests.gam_jax.problems import mlp

GROUPS = 4
METHODS = ("gam", "sam", "friendly_sam")
"""One that adds to the gradient, one that replaces it, one with a memory: the others go the same way."""


def group(batch, i, n=GROUPS):
    return jax.tree.map(lambda rows: rows[i::n], batch)


def loop(link, loss_fn, params, batches, weights=None):
    """The mean over the groups of what the method makes of each one's own gradient."""
    results = []
    for part in batches:
        tx = link(loss_fn)
        updates, _ = tx.update(jax.grad(loss_fn)(params, part), tx.init(params), params, batch=part)
        results.append(updates)
    return jax.tree.map(lambda *each: np.average(np.stack(each), axis=0, weights=weights), *results)


def updates_of(tx, loss_fn, params, batch):
    return tx.update(jax.grad(loss_fn)(params, batch), tx.init(params), params, batch=batch)


@pytest.mark.parametrize("by", ["scan", pytest.param("vmap", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", METHODS)
def test_equal_a_loop(name, by, x64):
    loss_fn, params, batch = mlp()
    want = loop(FAMILY[name], loss_fn, params, [group(batch, i) for i in range(GROUPS)])
    options = {"groups": GROUPS, "groups_by": by}
    got, state = updates_of(FAMILY[name](loss_fn, **options), loss_fn, params, batch)
    chex.assert_trees_all_close(got, want, rtol=1e-10, atol=1e-13)
    memory = {"memory": optax.tree.zeros_like(params)} if name == "friendly_sam" else {}
    fn = FAMILY[name].function(loss_fn, has_diagnostics=True, **options)
    loss, grads, seen, *_ = fn(params, batch, **memory)
    chex.assert_trees_all_close(grads, want, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(loss, loss_fn(params, batch), rtol=1e-12)
    whole = updates_of(FAMILY[name](loss_fn), loss_fn, params, batch)[0]
    assert optax.tree.norm(optax.tree.sub(got, whole)) > 1e-5  # and that is another one
    if name in ("gam", "gradient_norm_penalty"):  # of a link it is the angle to what came in
        seen = seen._replace(cosine=state.diagnostics.cosine)
    chex.assert_trees_all_close(seen, state.diagnostics, rtol=1e-5)
    own = [optax.tree.norm(jax.grad(loss_fn)(params, group(batch, i))) for i in range(GROUPS)]
    np.testing.assert_allclose(state.diagnostics.grad_norm, np.mean(own), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gam", "sam"])
@pytest.mark.parametrize("by", ["scan", "vmap"])
def test_groups_of_microbatches_weighed(name, by, x64):
    """Means over valid rows, of which the groups have more or fewer: each weighs what it has."""
    loss_fn, params, batch = mlp()
    batch["valid"] = (jnp.arange(16) % 5 != 1).astype(float)

    def masked(params, batch):
        losses = jax.vmap(lambda x, y: loss_fn(params, {"x": x[None], "y": y[None]}))(batch["x"], batch["y"])
        return jnp.sum(losses * batch["valid"]) / batch["valid"].sum()

    parts = [group(batch, i, 2) for i in range(2)]
    weights = [float(part["valid"].sum()) for part in parts]
    assert weights[0] != weights[1]
    want = loop(FAMILY[name], masked, params, parts, weights)
    options = {"groups": 2, "groups_by": by, "num_microbatches": 2}
    tx = FAMILY[name](masked, microbatch_weight=lambda batch: batch["valid"].sum(), **options)
    got, _ = updates_of(tx, masked, params, batch)
    chex.assert_trees_all_close(got, want, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("per_replica", [False, True])
def test_groups_on_replicas(per_replica, x64):
    """A group is that of all replicas together, or each replica's own."""
    loss_fn, params, batch = mlp()
    mesh = jax.make_mesh((4,), ("data",), (AxisType.Auto,), devices=jax.devices()[:4])
    fn = gam_jax.gam_value_and_grad(loss_fn, 0.1, 0.5, axis_name="data", per_replica=per_replica, groups=2)
    replicated = jax.shard_map(fn, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
    loss, grads = jax.jit(replicated)(params, batch)
    shards = [jax.tree.map(lambda rows: rows[4 * r : 4 * r + 4], batch) for r in range(4)]  # noqa: B023
    own = [group(shard, i, 2) for shard in shards for i in range(2)]
    joint = [jax.tree.map(lambda *rows: jnp.concatenate(rows), *own[i::2]) for i in range(2)]
    want = loop(FAMILY["gam"], loss_fn, params, own if per_replica else joint)
    chex.assert_trees_all_close(jax.device_get(grads), want, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(loss, loss_fn(params, batch), rtol=1e-12)


def test_aux_is_stacked_and_what_is_no_batch_stays_whole(x64):
    loss_fn, params, batch = mlp()

    def with_aux(params, batch, scale):
        return scale.sum() * loss_fn(params, batch), batch["y"]

    fn = gam_jax.sam_value_and_grad(with_aux, 0.1, has_aux=True, groups=2)
    (_, aux), _ = fn(params, batch, jnp.ones(4))
    np.testing.assert_array_equal(aux, np.stack([batch["y"][0::2], batch["y"][1::2]]))
    for name, number, wanted in (("groups", 5, "divide"), ("share", 17, "be at most")):
        with pytest.raises(ValueError, match=f"{name} must {wanted} the batch, got {name}={number} and a batch of 16"):
            gam_jax.sam_value_and_grad(loss_fn, 0.1, **{name: number})(params, batch)
        for wrong in (0, 2.0, True):
            with pytest.raises(ValueError, match=f"{name} must be an integer >= 1"):
                gam_jax.sam(loss_fn, 0.1, **{name: wrong})


@pytest.mark.parametrize("share", [GROUPS, 5])
@pytest.mark.parametrize("name", METHODS)
def test_a_share_of_the_batch(name, share, x64):
    """The difference that the method makes on every n-th row, added to the gradient of the whole batch."""
    loss_fn, params, batch = mlp()
    part = group(batch, 0, share)
    clean, own = (jax.grad(loss_fn)(params, b) for b in (batch, part))
    there, state = updates_of(FAMILY[name](loss_fn), loss_fn, params, part)
    want = jax.tree.map(lambda g, new, g0: g + new - g0, clean, there, own)
    got, seen = updates_of(FAMILY[name](loss_fn, share=share), loss_fn, params, batch)
    chex.assert_trees_all_close(got, want, rtol=1e-10, atol=1e-13)
    chex.assert_trees_all_close(seen.memory, state.memory, rtol=1e-12)
    memory = {"memory": optax.tree.zeros_like(params)} if name == "friendly_sam" else {}
    loss, grads = FAMILY[name].function(loss_fn, share=share)(params, batch, **memory)[:2]
    chex.assert_trees_all_close(grads, want, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(loss, loss_fn(params, batch), rtol=1e-12)


def test_groups_of_a_share(x64):
    loss_fn, params, batch = mlp()
    part = group(batch, 0, 2)
    there = loop(FAMILY["sam"], loss_fn, params, [group(part, i, 2) for i in range(2)])
    clean, own = (jax.grad(loss_fn)(params, b) for b in (batch, part))
    want = jax.tree.map(lambda g, new, g0: g + new - g0, clean, there, own)
    got, _ = updates_of(FAMILY["sam"](loss_fn, share=2, groups=2), loss_fn, params, batch)
    chex.assert_trees_all_close(got, want, rtol=1e-10, atol=1e-13)
