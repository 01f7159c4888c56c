"""Data: any batching, any device, one compilation; and what must be refused."""

import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from gam_jax import flatness
from gam_jax.flatness._krylov import Krylov
from tests.gam_jax.flatness.oracles import dense_hessian, network, network_loss

KEY = jax.random.key(0)
MEASURES = {
    "top": lambda *a, **o: flatness.hessian_top_eigenvalues(*a, 2, key=KEY, **o).values,
    "trace": lambda *a, **o: flatness.hessian_trace(*a, key=KEY, num_probes=3, **o).value,
    "density": lambda *a, **o: flatness.hessian_density(*a, key=KEY, num_probes=2, num_steps=3, **o).moments,
    "first": lambda *a, **o: flatness.first_order_flatness(*a, 0.1, key=KEY, num_steps=3, num_restarts=1, **o).value,
    "first_one": lambda *a, **o: flatness.first_order_flatness_one_step(*a, 0.1, **o),
    "zeroth": lambda *a, **o: flatness.zeroth_order_flatness(*a, 0.1, key=KEY, num_steps=3, num_restarts=1, **o).value,
    "zeroth_one": lambda *a, **o: flatness.zeroth_order_flatness_one_step(*a, 0.1, **o),
    "slice": lambda *a, **o: flatness.loss_slice(*a, a[1], x=[-0.5, 0.5], **o).values,
    "minima": lambda *a, **o: flatness.count_local_minima(*a, key=KEY, num_directions=2, num_steps=2, **o).losses,
}


def cut(data, *sizes):
    """The data in batches of these sizes."""
    ends = list(itertools.accumulate(sizes))
    return [jax.tree.map(lambda x, a=a, b=b: x[a:b], data) for a, b in zip([0, *ends[:-1]], ends, strict=True)]


class Loader:
    """A re-iterable that is not a list."""

    def __init__(self, batches):
        self.batches = batches
        self.epochs = 0

    def __iter__(self):
        self.epochs += 1
        return iter(self.batches)


def network_data(examples):
    _, params, data = network(examples=examples)
    return params, jax.tree.map(np.asarray, data)


@pytest.mark.parametrize("measure", MEASURES)
def test_the_batching_does_not_matter(x64, measure):
    params, data = network_data(12)
    whole = MEASURES[measure](network_loss, params, [data])
    ragged = MEASURES[measure](network_loss, params, Loader(cut(data, 5, 5, 2)))
    stacked = MEASURES[measure](network_loss, params, jax.tree.map(lambda x: x.reshape(3, 4, *x.shape[1:]), data))
    np.testing.assert_allclose(ragged, whole, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(stacked, whole, rtol=1e-9, atol=1e-12)


QUICK = {("trace", AxisType.Auto), ("first", AxisType.Auto), ("slice", AxisType.Auto), ("trace", AxisType.Explicit)}


@pytest.mark.parametrize(
    ("measure", "axis_type"),
    [
        pytest.param(*case, marks=[pytest.mark.slow] * (case not in QUICK))
        for case in itertools.product(("top", "trace", "first", "zeroth", "slice"), (AxisType.Auto, AxisType.Explicit))
    ],
)
def test_eight_devices_equal_one(x64, measure, axis_type):
    params, data = network_data(27)
    batches = cut(data, 16, 8, 3)  # three examples do not divide
    mesh = jax.make_mesh((4, 2), ("data", "more"), axis_types=(axis_type,) * 2)
    one = MEASURES[measure](network_loss, params, batches)
    np.testing.assert_allclose(MEASURES[measure](network_loss, params, batches, mesh=mesh), one, rtol=1e-9)


def test_the_mesh_is_used():
    seen = set()

    def loss_fn(params, batch):
        jax.debug.inspect_array_sharding(batch["x"], callback=seen.add)
        return network_loss(params, batch)

    params, data = network_data(16)
    mesh = jax.make_mesh((8,), ("data",))
    flatness.hessian_trace(loss_fn, params, [data], key=KEY, num_probes=2, mesh=mesh)
    assert all(len(sharding.device_set) == 8 and not sharding.is_fully_replicated for sharding in seen)
    assert seen


@pytest.mark.parametrize("axis_type", [pytest.param(AxisType.Auto, marks=pytest.mark.slow), AxisType.Explicit])
def test_sharded_parameters_stay_sharded(axis_type):
    mesh = jax.make_mesh((8,), ("model",), axis_types=(axis_type,))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "model"))
    w = jax.random.normal(KEY, (4, 16))
    x = jax.random.normal(KEY, (6, 4))

    def loss_fn(params, batch):
        return jnp.mean(jnp.sum(jnp.tanh(batch @ params) ** 2, axis=1))

    def top(params, vectors):
        return flatness.hessian_top_eigenvalues(loss_fn, params, [x], 2, key=KEY, return_vectors=vectors)

    spread_w = jax.device_put(w, spread)
    sharded = top(spread_w, True)
    np.testing.assert_allclose(sharded.values, top(w, False).values, rtol=1e-5)
    assert sharded.vectors.sharding.shard_shape(sharded.vectors.shape) == (2, 4, 2)
    krylov = Krylov(lambda v: v + 1, spread_w, 5, KEY)
    krylov.start_at_random()
    krylov.step()
    krylov.restart(np.ones(1), np.ones((1, 1)), keep_residual=True)
    assert krylov._basis.sharding.shard_shape(krylov._basis.shape) == (6, 4, 2)
    first = [flatness.first_order_flatness(loss_fn, p, [x], 0.1, key=KEY).value for p in (w, spread_w)]
    np.testing.assert_allclose(first[1], first[0], rtol=1e-5)


class Lazy:
    """An array on disk: it has a shape, and gives one slice at a time."""

    def __init__(self, array):
        self.array, self.shape = array, array.shape

    def __getitem__(self, i):
        assert isinstance(i, int)
        return self.array[i]


def test_stacked_batches_are_cut_where_they_lie():
    params, data = network_data(12)
    stacked = jax.tree.map(lambda x: x.reshape(3, 4, *x.shape[1:]), data)
    lazy = jax.tree.map(Lazy, stacked)
    values = [MEASURES["trace"](network_loss, params, b) for b in (stacked, lazy, jax.tree.map(jnp.asarray, stacked))]
    assert values[0] == values[1] == values[2]


def test_a_single_parameter():
    found = flatness.hessian_top_eigenvalues(lambda w: 3 * w**2, jnp.ones(()), None, key=KEY)
    np.testing.assert_allclose(found.values, [6.0])


def test_options_are_in_the_signature():
    parameters = inspect.signature(flatness.hessian_trace).parameters
    assert {"mesh", "progress", "num_probes"} <= set(parameters) and "options" not in parameters


def test_padded_batches_weigh_their_mask(x64):
    params, data = network_data(7)
    padded = jax.tree.map(lambda x: np.concatenate([x, np.ones((1, *x.shape[1:]))]), data)
    masks = np.array([[1.0] * 4, [1.0] * 3 + [0.0]])
    batches = [{"data": batch, "mask": mask} for batch, mask in zip(cut(padded, 4, 4), masks, strict=True)]

    def loss_fn(params, batch):
        def one(x, y):
            return network_loss(params, {"x": x[None], "y": y[None]})

        losses = jax.vmap(one)(batch["data"]["x"], batch["data"]["y"])
        return jnp.sum(losses * batch["mask"]) / batch["mask"].sum()

    expected = MEASURES["top"](network_loss, params, [data])
    found = MEASURES["top"](loss_fn, params, batches, num_examples=lambda batch: batch["mask"].sum())
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_batches_may_be_none(x64):
    params, data = network_data(5)
    found = flatness.hessian_trace(lambda p: network_loss(p, data), params, None, key=KEY)
    np.testing.assert_allclose(found.value, np.trace(dense_hessian(network_loss, params, data)))


def test_aux_and_custom_vjp(x64):
    @jax.custom_vjp
    def square(x):
        return x**2

    square.defvjp(lambda x: (x**2, x), lambda x, g: (2 * x * g,))

    def loss_fn(params, batch):
        out = square(batch @ params)
        return jnp.mean(out**2), {"logits": out}

    x = np.random.default_rng(0).normal(size=(6, 3))
    exact = dense_hessian(lambda p, b: jnp.mean((b @ p) ** 4), jnp.ones(3), x)
    found = flatness.hessian_top_eigenvalues(loss_fn, jnp.ones(3), [x], 3, key=KEY, has_aux=True)
    np.testing.assert_allclose(found.values, np.linalg.eigvalsh(exact)[::-1], rtol=1e-9, atol=1e-9)


def test_accumulation_in_float64():
    """Two large contributions that cancel, and between them a thousand that float32 cannot add to the first."""
    x = np.array([1e8] + [1.0] * 1000 + [-1e8], np.float32)[:, None]

    def loss_fn(w, batch):
        return jnp.mean(batch) * w**2 / 2 + w

    batches = [x[i : i + 1] for i in range(len(x))]
    exact = flatness.hessian_trace(loss_fn, jnp.ones(()), batches, key=KEY, num_probes=1, accumulate_in_float64=True)
    np.testing.assert_allclose(exact.value, 1000 / 1002, rtol=1e-6)
    assert not jax.config.jax_enable_x64


@pytest.mark.parametrize("measure", ["top", "first", "trace"])
def test_measuring_again_compiles_nothing(measure, caplog):
    params, data = network_data(8)
    MEASURES[measure](network_loss, params, cut(data, 3, 3, 2))
    with jax.log_compiles():
        MEASURES[measure](network_loss, jax.tree.map(lambda p: np.asarray(p) * 0.9, params), cut(data, 3, 3, 2))
    assert not [record for record in caplog.records if "Compiling" in record.getMessage()]
    with jax.log_compiles():
        jax.jit(lambda x: x + 1)(jnp.ones(7))
    assert [record for record in caplog.records if "Compiling" in record.getMessage()]


def test_progress():
    params, data = network_data(6)
    calls = []
    flatness.hessian_trace(
        network_loss,
        params,
        cut(data, 4, 2),
        key=KEY,
        num_probes=2,
        progress=lambda passes, batches: calls.append((passes, batches)),
    )
    # Two passes to check the loss, two products.
    assert calls == [(i, j) for i in range(4) for j in (1, 2)]
    flatness.hessian_trace(network_loss, params, cut(data, 4, 2), key=KEY, num_probes=2, progress=True)


@pytest.mark.parametrize("measure", MEASURES)
def test_a_loss_that_changes_is_refused(measure):
    params, data = network_data(6)
    noise = np.random.default_rng(0)

    def dropout_without_a_key(params, batch):
        return network_loss(params, batch) * noise.uniform(0.9, 1.1)

    with pytest.raises(ValueError, match="the loss must be deterministic, got .* measures the noise"):
        MEASURES[measure](dropout_without_a_key, params, [data])


def test_data_that_change_are_refused():
    params, data = network_data(6)
    noise = np.random.default_rng(0)

    class Augmented(Loader):
        def __iter__(self):
            return ({**batch, "x": batch["x"] + noise.normal(size=batch["x"].shape)} for batch in self.batches)

    with pytest.raises(ValueError, match="augmentation"):
        MEASURES["top"](network_loss, params, Augmented([data]))
    unchecked = MEASURES["trace"](network_loss, params, Augmented([data]), check_determinism=False)
    assert np.isfinite(unchecked)


def nan_loss(params, batch):
    return network_loss(params, batch) * jnp.nan


def vector_loss(params, batch):
    return batch["x"]


class Unhashable:
    __hash__ = None

    def __call__(self, params, batch):
        return network_loss(params, batch)


GOOD = network_data(4)


@pytest.mark.parametrize("measure", ["top", "first", "slice"])
@pytest.mark.parametrize(
    ("loss_fn", "params", "batches", "error", "message"),
    [
        (network_loss, GOOD[0], (GOOD[1] for _ in range(2)), TypeError, "generator .* can be read only once"),
        (network_loss, GOOD[0], [], ValueError, "the data are empty"),
        (network_loss, GOOD[0], {"x": np.zeros((0, 4, 3, 3, 1)), "y": np.zeros((0, 4, 2))}, ValueError, "empty"),
        (network_loss, GOOD[0], [GOOD[1], jax.tree.map(lambda x: x[:0], GOOD[1])], ValueError, "batch 1 holds no"),
        (network_loss, GOOD[0], {"x": np.ones((4, 3, 3, 1)), "y": np.ones(4)}, ValueError, r"\{\"\['y'\]\": \(4,\)\}"),
        (network_loss, GOOD[0], [{"x": GOOD[1]["x"], "y": GOOD[1]["y"][:2]}], ValueError, "pass num_examples"),
        (network_loss, GOOD[0], 3, TypeError, "got 3"),
        (nan_loss, GOOD[0], [GOOD[1]], ValueError, "the loss must be finite at the parameters, got nan"),
        (vector_loss, GOOD[0], [GOOD[1]], TypeError, r"scalar, got shape \(4, 3, 3, 1\)"),
        (Unhashable(), GOOD[0], [GOOD[1]], TypeError, "loss_fn must be hashable"),
        (network_loss, {**GOOD[0], "gain": np.array(1)}, [GOOD[1]], TypeError, "got dtype int32 at params.*gain"),
        (lambda params: jnp.zeros(()), {}, None, ValueError, "no parameters"),
    ],
)
def test_bad_input(measure, loss_fn, params, batches, error, message):
    with pytest.raises(error, match=message):
        MEASURES[measure](loss_fn, params, batches)
