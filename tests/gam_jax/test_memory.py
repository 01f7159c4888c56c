"""A rule with a memory, which is kept like the parameters: here SAM's ascent along the mean of all gradients so far."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gam_jax
from gam_jax import SamDiagnostics
from gam_jax._method import Method, Step
from gam_jax._options import Options
from gam_jax._transform import as_link
from gam_jax._tree import add_scaled, scale_by
from tests.gam_jax.problems import PROBLEMS, mlp

DECAY = 0.75


def _rule(engine, updates, *, decay, memory):
    here = engine.clean(updates)
    g0 = here.grad
    mean = add_scaled(scale_by(decay, memory), 1 - decay, g0)
    g1 = engine.gradient(engine.ascend(engine.params, mean, jnp.float32(0.1)))
    norm = engine.metric.norm
    return Step(here, g1, SamDiagnostics(norm(g0), norm(g1), norm(mean)), mean)


def link(loss_fn, **options):
    coefficients = {"decay": DECAY}
    method = Method(_rule, SamDiagnostics, coefficients, Options(**options), memory=optax.tree.zeros_like)
    return as_link(loss_fn, method)


def remembered(gradients):
    """The running mean of these gradients, from zero."""
    mean = jax.tree.map(jnp.zeros_like, gradients[0])
    for g in gradients:
        mean = jax.tree.map(lambda m, g: DECAY * m + (1 - DECAY) * g, mean, g)
    return mean


def batches(problem, steps):
    return [jax.tree.map(lambda x: jnp.roll(x, i, 0)[:8], problem.batch) for i in range(steps)]  # noqa: B023


def along(tx, problem, batches):
    """The updates and states of a transformation over some batches, and the gradients that came in."""
    grad = jax.jit(jax.grad(problem.loss_fn))
    update = jax.jit(lambda g, s, p, batch: tx.update(g, s, p, batch=batch))
    state, results = tx.init(problem.params), []
    for batch in batches:
        grads = grad(problem.params, batch)
        updates, state = update(grads, state, problem.params, batch)
        results.append((updates, state, grads))
    return results


def assert_close(a, b, rtol=1e-10, atol=1e-12):
    chex.assert_trees_all_close(jax.device_get(a), jax.device_get(b), rtol=rtol, atol=atol)


@pytest.mark.parametrize("options", [{}, {"num_microbatches": 2}], ids=str)
def test_it_accumulates_from_step_to_step(options, x64):
    """The mean of all gradients; the update is the gradient a step along it."""
    problem = mlp()
    results = along(link(problem.loss_fn, **options), problem, batches(problem, 3))
    for i, (updates, state, _) in enumerate(results):
        mean = remembered([g for *_, g in results[: i + 1]])
        assert_close(state.memory, mean)
        norm = optax.tree.norm(mean)
        moved = jax.tree.map(lambda p, m: p + jnp.float32(0.1) * m / norm, problem.params, mean)  # noqa: B023
        assert_close(updates, jax.grad(problem.loss_fn)(moved, batches(problem, 3)[i]))


@pytest.mark.parametrize("between", ["skip", "hold"])
def test_skipped_steps_leave_it(between, x64):
    """Steps 0 and 3 act: the memory saw their gradients alone."""
    problem = mlp()
    results = along(link(problem.loss_fn, interval=3, between=between), problem, batches(problem, 5))
    gradients = [g for *_, g in results]
    for i, (_, state, _) in enumerate(results):
        assert_close(state.memory, remembered(gradients[:1] if i < 3 else [gradients[0], gradients[3]]))


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_bad_step_leaves_the_last_finite_memory(bad, x64):
    """Its NaN is in its updates; the memory is that of the steps before, and goes on from there."""
    problem = mlp()
    first, second, third = batches(problem, 3)
    second = second | {"x": second["x"].at[0, 0].set(bad)}
    results = along(link(problem.loss_fn), problem, [first, second, third])
    assert not np.isfinite(jax.flatten_util.ravel_pytree(results[1][0])[0]).all()
    chex.assert_trees_all_equal(results[1][1].memory, results[0][1].memory)
    assert_close(results[2][1].memory, remembered([results[0][2], results[2][2]]))


def test_it_is_like_the_parameters():
    """Their dtypes, whatever those of the gradients; optax.tree.map_params finds it."""
    problem = PROBLEMS["mixed_precision"]()
    tx = link(problem.loss_fn)
    state = tx.init(problem.params)
    chex.assert_trees_all_equal_shapes_and_dtypes(state.memory, problem.params)
    grads = jax.tree.map(lambda p: jnp.ones(p.shape, jnp.float32), problem.params)
    with jax.numpy_dtype_promotion("strict"):
        _, after = jax.eval_shape(lambda *args: tx.update(*args, batch=problem.batch), grads, state, problem.params)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    mapped = optax.tree.map_params(tx, lambda x: x + 1, state)
    chex.assert_trees_all_equal(mapped.memory, jax.tree.map(jnp.ones_like, problem.params))
    chex.assert_trees_all_equal(mapped.diagnostics, state.diagnostics)


def test_a_rule_without_one_has_no_leaf_for_it():
    """So that a state saved before there were memories still has the leaves of one made now."""
    state = gam_jax.sam(mlp().loss_fn, 0.1).init(mlp().params)
    assert state.memory == ()
    assert len(jax.tree.leaves(state)) == 1 + len(SamDiagnostics._fields)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_it_is_sharded_like_the_parameters(axis_type):
    """From init on, and after a compiled step; a compiled init with Auto axes needs out_shardings, as optax's do."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    params, batch = {"w": jnp.ones((16, 4))}, jnp.ones((8, 16))
    tx = link(lambda params, batch: jnp.mean(jnp.tanh(batch @ params["w"])))
    with jax.set_mesh(mesh):
        params = jax.device_put(params, NamedSharding(mesh, P("data", None)))
        batch = jax.device_put(batch, NamedSharding(mesh, P()))
        like = jax.tree.map(lambda x: x.sharding, tx.init(params))
        states = [tx.init(params), jax.jit(tx.init, out_shardings=like)(params)]
        states.append(jax.jit(lambda s, p, b: tx.update(p, s, p, batch=b)[1])(states[0], params, batch))
        for state in states:
            assert state.memory["w"].sharding.is_equivalent_to(params["w"].sharding, 2), state.memory["w"].sharding


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("per_replica", [False, True], ids=["global", "per_replica"])
def test_every_replica_remembers_the_same(per_replica, check_vma, x64):
    """The mean over the whole batch, though each replica saw its own part; on skipped steps too."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    problem = mlp()
    tx = link(problem.loss_fn, axis_name="data", per_replica=per_replica, interval=2)

    def step(state, batch):
        local = jax.lax.pcast(problem.params, "data", to="varying")
        return tx.update(jax.grad(problem.loss_fn)(local, batch), state, problem.params, batch=batch)[1]

    specs = dict(in_specs=(P(), P("data")), out_specs=P(), check_vma=check_vma)
    step, state, gradients = jax.jit(jax.shard_map(step, mesh=mesh, **specs)), tx.init(problem.params), []
    for i in range(3):
        batch = jax.tree.map(lambda x: jnp.roll(x, i, 0), problem.batch)  # noqa: B023
        state = step(state, batch)
        gradients.append(jax.grad(problem.loss_fn)(problem.params, batch))
    assert_close(state.memory, remembered(gradients[::2]))
    for leaf in jax.tree.leaves(state.memory):
        first, *others = [jax.device_get(shard.data) for shard in leaf.addressable_shards]
        assert len(others) == 7
        chex.assert_trees_all_equal(*([first] * 7, others))
