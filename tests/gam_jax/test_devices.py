"""Eight devices equal one: jit with replicated and sharded parameters, shard_map, pmap."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gam_jax
from tests.gam_jax.family import FAMILY, KINDS, parametrize
from tests.gam_jax.problems import cross_entropy

STEPS = 4


def loss_fn(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["w1"])
    return cross_entropy(hidden @ params["w2"], batch["y"])


gradient_of_loss = jax.grad(loss_fn)


def make_params():
    k1, k2 = jax.random.split(jax.random.key(0))
    return {"w1": 0.5 * jax.random.normal(k1, (8, 16), float), "w2": 0.5 * jax.random.normal(k2, (16, 4), float)}


def make_batches():
    k1, k2 = jax.random.split(jax.random.key(1))
    return {
        "x": jax.random.normal(k1, (STEPS, 32, 8), float),
        "y": jax.random.randint(k2, (STEPS, 32), 0, 4),
    }


def train(tx, params, batches, *, gradient=gradient_of_loss, wrap=jax.jit, init=None):
    """Runs STEPS wrapped steps and returns the parameters."""
    return trained(tx, params, batches, gradient=gradient, wrap=wrap, init=init)[0]


def trained(tx, params, batches, *, gradient=gradient_of_loss, wrap=jax.jit, init=None):
    """The parameters and the state after STEPS wrapped steps."""
    state = (init or tx.init)(params)

    def step(params, state, batch):
        updates, state = tx.update(gradient(params, batch), state, params, batch=batch)
        return optax.apply_updates(params, updates), state

    step = wrap(step)
    for i in range(STEPS):
        params, state = step(params, state, jax.tree.map(lambda x: x[i], batches))  # noqa: B023
    return params, state


def chained(name, **options):
    return optax.chain(FAMILY[name](loss_fn, **options), optax.sgd(0.3, momentum=0.9))


HELD = {"interval": 2, "between": "hold", "max_ratio": 1.0}


@functools.cache
def single(name, interval=1):
    """The parameters after training on one device."""
    return train(chained(name, interval=interval), make_params(), make_batches())


@functools.cache
def single_held(name):
    return train(chained(name, **HELD), make_params(), make_batches())


def assert_same(a, b):
    chex.assert_trees_all_close(jax.device_get(a), jax.device_get(b), rtol=1e-10, atol=1e-12)


def sharded(mesh, tree, spec):
    return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, spec)), tree)


def make_mesh(axis_type=AxisType.Auto):
    return jax.make_mesh((8,), ("data",), axis_types=(axis_type,))


axis_types = pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])


@parametrize()
def test_jit_with_sharded_parameters(name, x64):
    assert_same(train_on_mesh(name, AxisType.Auto, P("data", None)), single(name, interval=2))


@axis_types
@pytest.mark.parametrize("param_spec", [P(), P("data", None)], ids=["replicated", "fsdp"])
@parametrize(slow=FAMILY.keys() - {"gam"})
def test_jit_with_shardings(name, param_spec, axis_type, x64):
    assert_same(train_on_mesh(name, axis_type, param_spec), single(name, interval=2))


def train_on_mesh(name, axis_type, param_spec):
    mesh = make_mesh(axis_type)
    with jax.set_mesh(mesh):
        params, batches = sharded(mesh, make_params(), param_spec), sharded(mesh, make_batches(), P(None, "data"))
        return train(chained(name, interval=2), params, batches)


@pytest.mark.parametrize(
    "axis_type", [AxisType.Auto, pytest.param(AxisType.Explicit, marks=pytest.mark.slow)], ids=["auto", "explicit"]
)
@pytest.mark.parametrize("options", [{}, {"num_microbatches": 2}, {"hvp": "reverse"}, {"hvp": "jvp"}], ids=str)
def test_jit_with_options(options, axis_type, x64):
    mesh = make_mesh(axis_type)
    with jax.set_mesh(mesh):
        params, batches = sharded(mesh, make_params(), P("data", None)), sharded(mesh, make_batches(), P(None, "data"))
        got = train(chained("gam", **options), params, batches)
    assert_same(got, single("gam"))


@parametrize()
def test_held_term_on_sharded_parameters(name, x64):
    check_held_term_on_mesh(name, AxisType.Auto)


def test_held_term_on_explicitly_sharded_parameters(x64):
    check_held_term_on_mesh("gam", AxisType.Explicit)


def check_held_term_on_mesh(name, axis_type):
    """The result of one device; what is kept is sharded like the parameters from the first step to the last."""
    mesh = make_mesh(axis_type)
    tx = chained(name, **HELD)
    with jax.set_mesh(mesh):
        params, batches = sharded(mesh, make_params(), P("data", None)), sharded(mesh, make_batches(), P(None, "data"))
        got, state = trained(tx, params, batches)
    assert_same(got, single_held(name))
    for kept in (tx.init(params)[0], state[0]):
        for buffer in [kept.held.term, *([kept.memory] if jax.tree.leaves(kept.memory) else [])]:
            jax.tree.map(
                lambda h, p: h.sharding.is_equivalent_to(p.sharding, p.ndim) or pytest.fail(str(h.sharding)),
                buffer,
                params,
            )


def shard_map_step(mesh, check_vma=True):
    """Wraps a step for shard_map: parameters and state replicated, the batch split over devices."""

    def wrap(step):
        in_specs, out_specs = (P(), P(), P("data")), (P(), P())
        return jax.jit(jax.shard_map(step, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=check_vma))

    return wrap


def own_gradient(params, batch):
    """Each replica's own gradient: with unvarying parameters it would contain a psum (jax.grad in shard_map)."""
    return jax.grad(loss_fn)(jax.lax.pcast(params, "data", to="varying"), batch)


def mean_gradient(params, batch):
    return jax.lax.pmean(own_gradient(params, batch), "data")


# One method of each kind, and exact GAM in every combination.
manual_cases = pytest.mark.parametrize(
    ("name", "check_vma", "incoming"),
    [(name, True, own_gradient) for name in KINDS]
    + [pytest.param(name, True, own_gradient, marks=pytest.mark.slow) for name in FAMILY if name not in KINDS]
    + [("gam", True, mean_gradient), ("gam", False, own_gradient), ("gam", False, mean_gradient)]
    + [("sam", True, mean_gradient), ("sam", False, own_gradient)],
)


@manual_cases
def test_shard_map(name, check_vma, incoming, x64):
    wrap = shard_map_step(make_mesh(), check_vma)
    tx = chained(name, interval=2, axis_name="data")
    got = train(tx, make_params(), make_batches(), gradient=incoming, wrap=wrap)
    assert_same(got, single(name, interval=2))


held_cases = pytest.mark.parametrize(
    ("name", "check_vma", "incoming"),
    [
        ("gam", True, own_gradient),
        ("sam", True, mean_gradient),
        pytest.param("gam", False, mean_gradient, marks=pytest.mark.slow),
    ],
)


@held_cases
def test_held_term_in_shard_map(name, check_vma, incoming, x64):
    wrap = shard_map_step(make_mesh(), check_vma)
    got = train(chained(name, axis_name="data", **HELD), make_params(), make_batches(), gradient=incoming, wrap=wrap)
    assert_same(got, single_held(name))


def test_shard_map_on_every_step(x64):
    got = train(
        chained("gam", axis_name="data"),
        make_params(),
        make_batches(),
        gradient=own_gradient,
        wrap=shard_map_step(make_mesh()),
    )
    assert_same(got, single("gam"))


def test_shard_map_with_microbatches(x64):
    tx = chained("gam", axis_name="data", num_microbatches=2)
    got = train(tx, make_params(), make_batches(), gradient=own_gradient, wrap=shard_map_step(make_mesh()))
    assert_same(got, single("gam"))


def test_shard_map_with_the_average_inside_the_loss(x64):
    """A loss that averages over the axis itself needs no axis_name: its derivatives are global already."""

    def mean_loss(params, batch):
        return jax.lax.pmean(loss_fn(params, batch), "data")

    tx = optax.chain(FAMILY["gam"](mean_loss), optax.sgd(0.3, momentum=0.9))
    wrap = shard_map_step(make_mesh())
    got = train(tx, make_params(), make_batches(), gradient=jax.grad(mean_loss), wrap=wrap)
    assert_same(got, single("gam"))


@pytest.mark.parametrize(
    ("name", "interval", "incoming"),
    [
        ("gam", 1, gradient_of_loss),
        pytest.param("gam", 2, mean_gradient, marks=pytest.mark.slow),
        ("sam", 2, mean_gradient),
        pytest.param("accelerated_gam", 1, mean_gradient, marks=pytest.mark.slow),
    ],
)
def test_pmap(name, interval, incoming, x64):
    def wrap(step):
        return jax.pmap(step, axis_name="data")

    tx = chained(name, interval=interval, axis_name="data")
    batches = jax.tree.map(lambda x: x.reshape(STEPS, 8, 4, *x.shape[2:]), make_batches())
    params = jax.tree.map(lambda x: jnp.stack([x] * 8), make_params())
    got = train(tx, params, batches, gradient=incoming, wrap=wrap, init=jax.vmap(tx.init))
    for replica in range(8):
        assert_same(jax.tree.map(lambda x: x[replica], got), single(name, interval))  # noqa: B023


@pytest.mark.parametrize(
    ("name", "check_vma", "incoming"),
    [("gam", True, own_gradient), ("sam", False, mean_gradient)]
    + [pytest.param(name, True, own_gradient, marks=pytest.mark.slow) for name in FAMILY if name != "gam"]
    + [pytest.param("gam", False, mean_gradient, marks=pytest.mark.slow)],
)
def test_per_replica_equals_a_loop_over_replicas(name, check_vma, incoming, x64):
    compare_with_a_loop_over_replicas(name, check_vma, incoming, "skip")


@pytest.mark.slow
@held_cases
def test_held_term_per_replica(name, check_vma, incoming, x64):
    """What is held is the mean of the replicas' terms."""
    compare_with_a_loop_over_replicas(name, check_vma, incoming, "hold")


@pytest.mark.parametrize("check_vma", [True, False])
def test_every_replica_holds_the_same_term(check_vma, x64):
    """The state is replicated in fact, which types do not guarantee with check_vma=False."""
    tx = FAMILY["gam"](loss_fn, interval=2, between="hold", axis_name="data", per_replica=True)
    step = lambda p, s, batch: tx.update(own_gradient(p, batch), s, p, batch=batch)  # noqa: E731
    params, batch = make_params(), jax.tree.map(lambda x: x[0], make_batches())
    _, state = shard_map_step(make_mesh(), check_vma)(step)(params, tx.init(params), batch)
    for leaf in jax.tree.leaves(state.held):
        first, *others = [shard.data for shard in leaf.addressable_shards]
        assert len(others) == 7
        for other in others:
            chex.assert_trees_all_equal(jax.device_get(other), jax.device_get(first))


def compare_with_a_loop_over_replicas(name, check_vma, incoming, between):
    wrap = shard_map_step(make_mesh(), check_vma)
    tx = chained(name, interval=2, between=between, axis_name="data", per_replica=True)
    got = train(tx, make_params(), make_batches(), gradient=incoming, wrap=wrap)

    local = FAMILY[name](loss_fn, interval=2, between=between)
    local_update = jax.jit(lambda g, s, p, batch: local.update(g, s, p, batch=batch))
    base = optax.sgd(0.3, momentum=0.9)
    params = make_params()
    local_state, base_state = local.init(params), base.init(params)
    for i in range(STEPS):
        all_updates, all_kept = [], []
        for replica in range(8):
            batch = jax.tree.map(lambda x: x[i, 4 * replica : 4 * replica + 4], make_batches())  # noqa: B023
            updates, after = local_update(gradient_of_loss(params, batch), local_state, params, batch)
            all_updates.append(updates)
            all_kept.append((after.held, after.memory))
        mean, (held, memory) = (jax.tree.map(lambda *x: sum(x) / 8, *each) for each in (all_updates, all_kept))
        local_state = after._replace(held=held, memory=memory)
        updates, base_state = base.update(mean, base_state, params)
        params = optax.apply_updates(params, updates)
    assert_same(got, params)


def parameter_sized_all_reduces(text, params):
    """How many all-reduces of a compiled program carry arrays of every parameter's shape."""
    lines = [line for line in text.splitlines() if re.search(r"= .* all-reduce(-start)?\(", line)]
    shapes = [f"[{','.join(map(str, p.shape))}]" for p in jax.tree.leaves(params)]
    return max(sum(shape in line.split("all-reduce(")[0] for line in lines) for shape in shapes)


def program(tx):
    """The compiled program of a step in shard_map, as text."""
    params, batch = make_params(), jax.tree.map(lambda x: x[0], make_batches())

    def step(params, state, batch):
        updates, state = tx.update(own_gradient(params, batch), state, params, batch=batch)
        return optax.apply_updates(params, updates), state

    return shard_map_step(make_mesh())(step).lower(params, tx.init(params), batch).compile().as_text()


def resting_part(text):
    """What runs of a program on a step that does not act: all outside the branches, and the first branch."""
    bodies = {m[1]: m[0] for m in re.finditer(r"^(?:ENTRY )?%(\S+) \(.*?^}", text, re.MULTILINE | re.DOTALL)}
    (branches,) = re.findall(r" conditional\(.*branch_computations={%([^,]+), %([^}]+)}", text)
    (entry,) = (body for body in bodies.values() if body.startswith("ENTRY"))
    return entry + "\n" + bodies[branches[0]]


@parametrize()
@pytest.mark.parametrize("per_replica", [True, False], ids=["per_replica", "global"])
def test_number_of_all_reduces(name, per_replica):
    tx = chained(name, axis_name="data", per_replica=per_replica)
    expected = 1 if per_replica else FAMILY[name].averages  # a memory is averaged along with the updates
    assert parameter_sized_all_reduces(program(tx), make_params()) == expected


@pytest.mark.parametrize("name", ["gam", "sam"])
@pytest.mark.parametrize("per_replica", [True, False], ids=["per_replica", "global"])
def test_number_of_all_reduces_when_holding(name, per_replica):
    """As when skipping, one on the steps between; where each replica has its own term, acting steps average it too."""
    options = {"axis_name": "data", "interval": 2, "per_replica": per_replica}
    skip, hold = (program(chained(name, between=between, **options)) for between in ("skip", "hold"))
    count = lambda text: parameter_sized_all_reduces(text, make_params())  # noqa: E731
    assert count(hold) == count(skip) + per_replica
    assert count(resting_part(hold)) == count(resting_part(skip)) == 1 < count(hold)


def test_value_and_grad_over_replicas(x64):
    params, batch = make_params(), jax.tree.map(lambda x: x[0], make_batches())
    expected = gam_jax.gam_value_and_grad(loss_fn, 0.1, 0.5)(params, batch)
    fn = gam_jax.gam_value_and_grad(loss_fn, 0.1, 0.5, axis_name="data")
    mapped = jax.jit(jax.shard_map(fn, mesh=make_mesh(), in_specs=(P(), P("data")), out_specs=P()))
    assert_same(mapped(params, batch), expected)


@pytest.mark.parametrize("per_replica", [False, True], ids=["global", "per_replica"])
def test_several_axes(per_replica, x64):
    """axis_name may be a tuple; the mean over both axes is the mean over all devices."""
    mesh = jax.make_mesh((2, 4), ("host", "chip"), axis_types=(AxisType.Auto,) * 2)
    flat = chained("gam", axis_name="data", per_replica=per_replica)
    expected = train(flat, make_params(), make_batches(), gradient=own_gradient, wrap=shard_map_step(make_mesh()))

    def gradient(params, batch):
        return jax.grad(loss_fn)(jax.lax.pcast(params, ("host", "chip"), to="varying"), batch)

    def wrap(step):
        in_specs = (P(), P(), P(("host", "chip")))
        return jax.jit(jax.shard_map(step, mesh=mesh, in_specs=in_specs, out_specs=(P(), P())))

    tx = chained("gam", axis_name=("host", "chip"), per_replica=per_replica)
    assert_same(train(tx, make_params(), make_batches(), gradient=gradient, wrap=wrap), expected)
