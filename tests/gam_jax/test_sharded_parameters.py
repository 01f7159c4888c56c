"""Parameters divided among the devices of a mesh inside shard_map: every method as on one device, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import gam_jax
from tests.gam_jax.family import FAMILY, parametrize
from tests.gam_jax.problems import cross_entropy

AXES = ("data", "fsdp")
SPECS = {"w1": P(None, AXES), "b1": P(), "w2": P("fsdp"), "b2": P(), "w3": P(None, "data")}
"""Divided over both axes, over one, over the other, and copied."""
STEPS, BATCH = 3, 32


def plain_loss(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["w1"] + params["b1"][None])
    hidden = jnp.tanh(hidden @ params["w2"] + params["b2"][None])
    return cross_entropy(hidden @ params["w3"], batch["y"])


def gathered(params):
    def gather(leaf, spec):
        found = [(axis, names) for axis, names in enumerate(spec) if names]
        return functools.reduce(lambda x, at: jax.lax.all_gather(x, at[1], axis=at[0], tiled=True), found, leaf)

    return {name: gather(leaf, SPECS[name]) for name, leaf in params.items()}


def sharded_loss(params, batch, axes=AXES):
    return jax.lax.pmean(plain_loss(gathered(params), batch), axes)


def make_params():
    shapes = {"w1": (6, 16), "b1": (16,), "w2": (16, 4), "b2": (4,), "w3": (4, 4)}
    rng = np.random.default_rng(0)
    return {name: jnp.asarray(0.7 * rng.standard_normal(shape)) for name, shape in shapes.items()}


def make_batch(seed):
    rng = np.random.default_rng(seed)
    return {"x": jnp.asarray(rng.standard_normal((BATCH, 6))), "y": jnp.asarray(rng.integers(0, 4, BATCH))}


def make_mesh():
    return jax.make_mesh((2, 4), AXES, axis_types=(AxisType.Auto,) * 2)


def step_of(tx, loss_fn, function=None):
    """A step with the link, and what the function gives at the same point."""

    def step(params, state, batch):
        more = [] if function is None else function(params, batch)
        updates, state = tx.update(jax.grad(loss_fn)(params, batch), state, params, batch=batch)
        return optax.apply_updates(params, updates), state, more

    return step


def specs_of(tx, state):
    return optax.tree_map_params(tx, lambda _, spec: spec, state, SPECS, transform_non_params=lambda _: P())


def train(tx, step, wrap):
    params = make_params()
    state = tx.init(params)
    step, found = wrap(step, state), []
    for seed in range(STEPS):
        params, state, more = step(params, state, make_batch(seed))
        found.append((params, state, more))
    return jax.device_get(found)


def chained(link):
    return optax.chain(link, optax.sgd(0.3, momentum=0.9))


def compare(make, function=None, loss_fn=sharded_loss, own=plain_loss, more=None):
    """``make(loss) -> link`` and ``function(loss) -> value_and_grad``, on 8 devices and on one."""

    def on_mesh(step, state):
        specs = (SPECS, specs_of(tx, state))
        out = (*specs, more if more is not None else P())
        return jax.jit(jax.shard_map(step, mesh=make_mesh(), in_specs=(*specs, P(AXES)), out_specs=out))

    tx = chained(make(loss_fn))
    got = train(tx, step_of(tx, loss_fn, function and function(loss_fn)), on_mesh)
    one = chained(make(own))
    expected = train(one, step_of(one, own, function and function(own)), lambda step, state: jax.jit(step))
    jax.tree.map(assert_close, got, expected)
    return got


def assert_close(a, b):
    """To 1e-10; diagnostics are float32."""
    tolerance = 1e-10 if np.asarray(a).dtype == np.float64 else 1e-6
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@parametrize()
def test_every_method_in_both_forms(name, x64):
    """Updates, state and its diagnostics; the value, gradient and diagnostics of the function."""
    method, function = FAMILY[name], functools.partial(FAMILY[name].function, has_diagnostics=True)
    more = (P(), SPECS, P())
    if name == "friendly_sam":  # which takes and returns a memory
        with_memory = function
        function = lambda loss_fn: lambda params, batch: with_memory(loss_fn)(params, batch, memory=params)  # noqa: E731
        more = (*more, SPECS)
    compare(method, function, more=more)


OPTIONS = {
    "microbatches": {"num_microbatches": 2},
    "groups": {"groups": 2},
    "groups_by_vmap": {"groups": 2, "groups_by": "vmap"},
    "share": {"share": 2},
    "hold": {"interval": 2, "between": "hold", "max_ratio": 0.02},
    "look": {"interval": 2, "between": "look", "max_ratio": 0.02},
    "mismatch": {"mismatch": True},
    "adaptive": {"adaptive": gam_jax.asam_scaling},
    "mask": {"perturb_mask": dict.fromkeys(SPECS, True) | {"w2": False}},
    "radii": {"rho": dict.fromkeys(SPECS, 0.1) | {"w1": 0.3}},
    **{hvp: {"hvp": hvp} for hvp in ("jvp", "reverse", "finite_difference")},
}


@pytest.mark.parametrize(
    "option",
    [
        pytest.param(option, marks=[pytest.mark.slow] * (option not in ("microbatches", "groups", "hold", "adaptive")))
        for option in OPTIONS
    ],
)
def test_options(option, x64):
    compare(functools.partial(FAMILY["gam"], **OPTIONS[option]))


@pytest.mark.parametrize("name", ["sam", "accelerated_gam"])
@pytest.mark.parametrize("option", ["microbatches", "groups", "look"])
@pytest.mark.slow
def test_options_of_methods_that_replace_the_gradient(name, option, x64):
    compare(functools.partial(FAMILY[name], **OPTIONS[option]))


@pytest.mark.parametrize("per_replica", [False, True])
def test_replicas_of_a_model_that_is_divided(per_replica, x64, monkeypatch):
    """Divided over one axis, averaged over the other: each row of the mesh is a replica, with half of the batch."""
    monkeypatch.setitem(SPECS, "w1", P(None, "fsdp"))
    monkeypatch.setitem(SPECS, "w3", P())
    rows = functools.partial(sharded_loss, axes="fsdp")
    tx = chained(FAMILY["gam"](rows, axis_name="data", per_replica=per_replica))
    params, batch, state = make_params(), make_batch(0), tx.init(make_params())

    def step(params, state, batch):
        own = jax.grad(rows)(jax.lax.pcast(params, "data", to="varying"), batch)
        return tx.update(own, state, params, batch=batch)

    specs = (SPECS, specs_of(tx, state))
    mapped = jax.shard_map(step, mesh=make_mesh(), in_specs=(*specs, P(AXES)), out_specs=specs)
    got = jax.jit(mapped)(params, state, batch)

    one = chained(FAMILY["gam"](plain_loss, groups=2 if per_replica else 1))
    if per_replica:  # of two groups the first has the rows 0, 2, ...
        batch = jax.tree.map(lambda x: jnp.stack(jnp.split(x, 2), 1).reshape(x.shape), batch)
    update = jax.jit(lambda g: one.update(g, one.init(params), params, batch=batch))
    expected = update(jax.grad(plain_loss)(params, batch))
    if per_replica:  # whose diagnostics of h_loss are the replica's own, and those of groups the caller's
        got, expected = got[0], expected[0]
    jax.tree.map(assert_close, got, expected)


@pytest.mark.parametrize("bad_leaf", ["w1", "b1"])
def test_nonfinite_terms_are_dropped_on_all_shards(bad_leaf, x64, monkeypatch):
    """A second derivative that is infinite at one entry of one shard: all devices drop the step alike."""

    def kink(params):
        entry = params[bad_leaf].reshape(-1)[0]
        return jnp.where(entry == 0, jnp.abs(entry) ** 1.5, 0.0)

    def on_one(params, batch):
        return plain_loss(params, batch) + kink(params)

    def on_shards(params, batch):
        return jax.lax.pmean(plain_loss(whole := gathered(params), batch) + kink(whole), AXES)

    params = make_params()
    params[bad_leaf] = params[bad_leaf].at[(0,) * params[bad_leaf].ndim].set(0.0)
    monkeypatch.setitem(globals(), "make_params", lambda: params)
    found = compare(functools.partial(FAMILY["gam"], drop_nonfinite=True), loss_fn=on_shards, own=on_one)
    assert found[0][1][0].checks["dropped"] == 1 and found[-1][1][0].checks["dropped"] == 1


def test_members_of_an_ensemble_stay_apart(x64):
    """Each device has a loss of its own: types vary as those of shards do, norms are each member's own."""
    params = jax.vmap(lambda scale: jax.tree.map(lambda leaf: scale * leaf, make_params()))(jnp.linspace(0.5, 1.5, 8))
    fn = FAMILY["gam"].function(plain_loss)
    local = lambda params, batch: jax.tree.map(  # noqa: E731
        lambda leaf: leaf[None], fn(jax.tree.map(lambda leaf: leaf[0], params), batch)
    )
    member = jax.shard_map(local, mesh=make_mesh(), in_specs=(P(AXES), P()), out_specs=P(AXES))
    got, expected = jax.jit(member)(params, make_batch(0)), jax.vmap(fn, (0, None))(params, make_batch(0))
    jax.tree.map(assert_close, got, expected)


def test_shards_are_no_replicas(x64):
    tx = FAMILY["gam"](sharded_loss, axis_name="data")
    step = lambda params, state, batch: tx.update(params, state, params, batch=batch)  # noqa: E731
    specs = (SPECS, specs_of(tx, state := tx.init(make_params())))
    step = jax.shard_map(step, mesh=make_mesh(), in_specs=(*specs, P(AXES)), out_specs=specs)
    with pytest.raises(ValueError, match=r"axis_name='data', and params\['w1'\] is divided over 'data'"):
        jax.eval_shape(step, make_params(), state, make_batch(0))
