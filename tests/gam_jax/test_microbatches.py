"""Microbatches: what is split and what stays whole, and how much each part counts."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import gam_jax
from tests.gam_jax import oracles
from tests.gam_jax.family import FAMILY
from tests.gam_jax.problems import mlp

PROBLEM = mlp()
params = {"w1": PROBLEM.params["w1"][:, :4], "w2": PROBLEM.params["w2"][:4]}
batch = PROBLEM.batch


def logits_of(params, x):
    return jnp.tanh(x @ params["w1"]) @ params["w2"]


def rows_of(params, batch):
    return optax.softmax_cross_entropy_with_integer_labels(logits_of(params, batch["x"]), batch["y"])


def in_parts(loss_fn, *args, parts=4, **options):
    """Loss and gradient of GAM in microbatches."""
    fn = gam_jax.gam_value_and_grad(loss_fn, 0.1, 0.5, num_microbatches=parts, **options)
    static = [i for i, arg in enumerate(args, 1) if callable(arg)]
    return jax.jit(fn, static_argnums=static)(params, *args)


def assert_exact(got, loss_fn, *args, rtol=2e-4):
    """Against Algorithm 1 with the dense Hessian of the loss of the whole batch."""
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    whole = lambda w: loss_fn(unravel(w), *args)  # noqa: E731
    value, grads = got
    np.testing.assert_allclose(value, whole(flat), rtol=1e-5)
    want = oracles.gam(oracles.Dense(jax.jit(whole)), rho=0.1, alpha=0.5)(flat)
    np.testing.assert_allclose(jax.flatten_util.ravel_pytree(grads)[0], want, rtol=rtol, atol=1e-6)


# What is split


@pytest.mark.parametrize("classes", [4, 16, 5])
def test_only_the_batch_is_split(classes):
    """Class weights stay whole, whatever their number has to do with that of the rows."""
    data = {"x": batch["x"], "y": jnp.arange(16) % classes % 3}

    def loss_fn(params, batch, class_weights):
        return jnp.mean(rows_of(params, batch) * class_weights[batch["y"]]) + jnp.sum(class_weights)

    class_weights = jnp.linspace(0.1, 2, classes)
    assert_exact(in_parts(loss_fn, data, class_weights), loss_fn, data, class_weights)


def test_the_batch_is_the_only_array():
    """Whatever it is called; scalars, None, functions and typed keys are no batch."""

    def loss_fn(params, data, scale, key, activation, nothing):
        assert nothing is None
        return scale * activation(rows_of(params, data)).mean() + 0 * jax.random.normal(key)

    args = batch, 2.0, jax.random.key(0), jnp.square, None
    assert_exact(in_parts(loss_fn, *args), loss_fn, *args)


def test_a_raw_key_beside_the_batch():
    def loss_fn(params, batch, rng):
        assert rng.shape == (2,)
        return rows_of(params, batch).mean()

    args = batch, jnp.zeros(2, jnp.uint32)
    assert_exact(in_parts(loss_fn, *args, parts=2), loss_fn, *args)


def test_several_arrays_are_named():
    """Which of them are split cannot be told; by position and by name, as a tuple and as a dict."""

    def loss_fn(params, x, y, temperature):
        return rows_of(params, {"x": x / temperature[0], "y": y}).mean()

    args = batch["x"], batch["y"], jnp.full(16, 2.0)
    with pytest.raises(ValueError, match=r"is called batch.*\['x', 'y', 'temperature'\].*microbatched="):
        in_parts(loss_fn, *args)
    flags = {"x": True, "y": True, "temperature": False}
    assert_exact(in_parts(loss_fn, *args, microbatched=flags), loss_fn, *args)
    by_name = gam_jax.gam_value_and_grad(loss_fn, 0.1, 0.5, num_microbatches=4, microbatched=("x", "y"))
    assert_exact(jax.jit(by_name)(params, args[0], y=args[1], temperature=args[2]), loss_fn, *args)


def test_arguments_without_names():
    def loss_fn(params, *arrays):
        return rows_of(params, {"x": arrays[0], "y": arrays[1]}).mean()

    args = batch["x"], batch["y"]
    with pytest.raises(ValueError, match=r"microbatched=\('args\[0\]', 'args\[1\]'\)"):
        in_parts(loss_fn, *args)
    assert_exact(in_parts(loss_fn, *args, microbatched=("args[0]", "args[1]")), loss_fn, *args)


def physics(params, interior, boundary):
    inside = jnp.mean(jnp.sin(logits_of(params, interior)) ** 2)
    return inside + jnp.mean((logits_of(params, boundary["x"])[:, 0] - boundary["value"]) ** 2)


def test_points_of_two_kinds():
    """Each kind has its number of rows: two arguments, or two parts of one."""
    interior, boundary = batch["x"], {"x": batch["x"][:4], "value": jnp.arange(4.0)}
    together = lambda params, points: physics(params, **points)  # noqa: E731
    points = {"interior": interior, "boundary": boundary}
    got = in_parts(physics, interior, boundary, microbatched=("interior", "boundary"))
    assert_exact(got, physics, interior, boundary)
    with pytest.raises(ValueError, match=r"same for all.*points\['boundary'\]\['value'\]\": 4.*microbatched="):
        in_parts(together, points)
    each = {"points": {"interior": True, "boundary": True}}
    assert_exact(in_parts(together, points, microbatched=each), together, points)
    with pytest.raises(ValueError, match=r"num_microbatches=8 and a batch of 4 in \"points\['boundary'\]\""):
        in_parts(together, points, parts=8, microbatched=each)


def test_a_part_of_an_argument_stays_whole():
    def loss_fn(params, batch):
        return jnp.mean(rows_of(params, batch) * batch["weights"][batch["y"]])

    data = batch | {"weights": jnp.linspace(1, 2, 16)}
    flags = {"batch": {"x": True, "y": True, "weights": False}}
    assert_exact(in_parts(loss_fn, data, microbatched=flags), loss_fn, data)


def test_model_state_stays_whole():
    """BatchNorm: every part is normalized by its own statistics, and the new ones come out stacked."""

    def loss_fn(params, batch, batch_stats):
        hidden = batch["x"] @ params["w1"]
        new = 0.9 * batch_stats + 0.1 * hidden.mean(0)
        hidden = jnp.tanh(hidden - hidden.mean(0, keepdims=True))
        return optax.softmax_cross_entropy_with_integer_labels(hidden @ params["w2"], batch["y"]).mean(), new

    def of_parts(params, batch, batch_stats):  # row r is in part r mod 2
        return sum(loss_fn(params, {k: v[i::2] for k, v in batch.items()}, batch_stats)[0] for i in range(2)) / 2

    (value, new), grads = in_parts(loss_fn, batch, jnp.ones(4), parts=2, has_aux=True)
    assert_exact((value, grads), of_parts, batch, jnp.ones(4))
    chex.assert_shape(new, (2, 4))
    np.testing.assert_allclose(new.mean(0), loss_fn(params, batch, jnp.ones(4))[1], rtol=1e-5)


def test_parts_of_one_row_are_not_guessed():
    """Per-row weights that are left whole would broadcast against a single row."""

    def loss_fn(params, batch, row_weights):
        return jnp.mean(rows_of(params, batch) * row_weights)

    args = batch, jnp.linspace(1, 2, 16)
    with pytest.raises(ValueError, match=r"one row.*\['row_weights'\].*microbatched="):
        in_parts(loss_fn, *args, parts=16)
    with pytest.raises(ValueError, match=r"gets \['row_weights'\] whole.*name them in microbatched.*incompatible"):
        in_parts(loss_fn, *args)
    named = in_parts(loss_fn, *args, parts=16, microbatched=("batch", "row_weights"))
    assert_exact(named, loss_fn, *args)


@pytest.mark.parametrize(
    ("microbatched", "error", "message"),
    [
        ("bach", ValueError, r"does not get: \['bach'\], of \['batch'\]"),
        ({"batch": {"x": True, "y": True}}, ValueError, "structure of the arguments"),
        ({"batch": {"x": 1, "y": True, "mask": True}}, TypeError, r"got 1 at microbatched\['batch'\]\['x'\]"),
        (3, TypeError, "microbatched=3"),
        ((), TypeError, r"microbatched=\(\)"),
        ((1, 2), TypeError, r"microbatched=\(1, 2\)"),
    ],
)
def test_bad_names(microbatched, error, message):
    with pytest.raises(error, match=message):
        in_parts(token_mean, tokens, microbatched=microbatched)


def test_skipped_steps_split_nothing():
    tx = gam_jax.sam(PROBLEM.loss_fn, 0.1, interval=2, num_microbatches=4)
    state, update = tx.init(PROBLEM.params), lambda g, s, p, batch: tx.update(g, s, p, batch=batch)
    program = jax.make_jaxpr(update)(PROBLEM.params, state, PROBLEM.params, batch)
    outside = [equation.primitive.name for equation in program.eqns]
    assert outside.count("cond") == 1 and not {"reshape", "transpose"} & set(outside)


# What the parts count

mask = (jnp.arange(16) % 4 != 0) & (jnp.arange(16) > 5)  # part 0 of 4 has none, the others 3, 4 and 3 of 4 rows
tokens = batch | {"mask": mask.astype(float)}


def token_mean(params, batch):
    """NaN, and so is its gradient, where no token is valid."""
    return jnp.sum(rows_of(params, batch) * batch["mask"]) / batch["mask"].sum()


def valid(batch):
    return batch["mask"].sum()


@pytest.mark.parametrize("hvp", ["linearize", "jvp", "reverse", "finite_difference"])
def test_mean_over_valid_tokens(hvp):
    got = in_parts(token_mean, tokens, hvp=hvp, microbatch_weight=valid)
    assert_exact(got, token_mean, tokens, rtol=1e-2 if hvp == "finite_difference" else 2e-4)


def test_mean_over_valid_tokens_in_a_link():
    grads = jax.grad(token_mean)(params, tokens)
    whole = FAMILY["accelerated_gam"](token_mean)
    parts = FAMILY["accelerated_gam"](token_mean, num_microbatches=4, microbatch_weight=valid)
    step = jax.jit(lambda batch: [tx.update(grads, tx.init(params), params, batch=batch)[0] for tx in (parts, whole)])
    got, want = step(tokens)
    chex.assert_trees_all_close(got, want, rtol=2e-4, atol=1e-6)


def test_weights_of_several_arguments():
    """They come in the order in which they are named, in parts; what stays whole does not come."""

    def loss_fn(params, x, y, scale, counts):
        return scale[0] * token_mean(params, {"x": x, "y": y, "mask": counts})

    args = batch["x"], batch["y"], jnp.ones(16), mask
    options = {
        "microbatched": ("y", "x", "counts"),
        "microbatch_weight": lambda y, x, counts: counts.sum(),
    }
    assert_exact(in_parts(loss_fn, *args, **options), loss_fn, *args)


def test_nothing_counts():
    """Without a valid token anywhere loss and gradient are zero."""
    value, grads = in_parts(token_mean, tokens | {"mask": jnp.zeros(16)}, microbatch_weight=valid)
    assert value == 0 and all(not leaf.any() for leaf in jax.tree.leaves(grads))


TOKENS = (4, 2, 0, 3)
"""Of four replicas with 4 rows each."""


def over_replicas(tx, check_vma=True):
    """One update over the replicas, each with the gradient of its own tokens, and the data that they share."""
    data = batch | {"mask": (jnp.arange(16) % 4 < jnp.repeat(jnp.array(TOKENS), 4)).astype(float)}
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), check_vma=check_vma)
    def step(params, batch):
        own = jax.lax.pcast(params, ("data",), to="varying") if check_vma else params
        return tx.update(jax.grad(token_mean)(own, batch), tx.init(params), params, batch=batch)[0]

    return jax.device_get(jax.jit(step)(params, data)), data


def alone(tx, data):
    return tx.update(jax.grad(token_mean)(params, data), tx.init(params), params, batch=data)[0]


@pytest.mark.parametrize(("parts", "check_vma"), [(1, True), (2, True), (2, False)])
def test_replicas_count_by_their_tokens(parts, check_vma):
    """In the gradient that comes in, in every pass and in every product."""
    options = {"num_microbatches": parts, "microbatch_weight": valid, "axis_name": "data"}
    got, data = over_replicas(gam_jax.gam(token_mean, 0.1, 0.5, **options), check_vma)
    want = jax.jit(functools.partial(alone, gam_jax.gam(token_mean, 0.1, 0.5)))(data)
    chex.assert_trees_all_close(got, jax.device_get(want), rtol=2e-4, atol=1e-6)


def test_replicas_that_go_their_own_way_count_by_their_tokens():
    tx = gam_jax.sam(token_mean, 0.1, num_microbatches=2, microbatch_weight=valid, axis_name="data", per_replica=True)
    got, data = over_replicas(tx)
    own = jax.jit(functools.partial(alone, gam_jax.sam(token_mean, 0.1)))
    shards = [jax.tree.map(lambda x, r=r: x[4 * r : 4 * r + 4], data) for r in range(4)]
    terms = [jax.tree.map(lambda g, n=n: n / 9 * g, own(s)) for s, n in zip(shards, TOKENS, strict=True) if n]
    want = jax.tree.map(lambda *leaves: sum(leaves), *terms)
    chex.assert_trees_all_close(got, jax.device_get(want), rtol=2e-4, atol=1e-6)


def test_bad_weights():
    with pytest.raises(TypeError, match=r"real scalar, got shape \(4,\)"):
        in_parts(token_mean, tokens, microbatch_weight=lambda batch: batch["mask"])
    with pytest.raises(TypeError, match="function of.*microbatch_weight=3"):
        in_parts(token_mean, tokens, microbatch_weight=3)
    row_mean = lambda params, batch: rows_of(params, batch).mean()  # noqa: E731
    value, _ = in_parts(row_mean, tokens, microbatch_weight=lambda batch: 1.5 - batch["mask"].sum())
    assert jnp.isnan(value)
