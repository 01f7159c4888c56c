"""More arguments of the loss: as if it closed over them, but nothing compiles again and nothing is kept alive."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax import flatness

KEY = jax.random.key(0)
WIDE = 500_000
"""Of the model state, 2 MB."""


def loss_fn(params, batch, state, scale=1.0):
    mean = state["mean"][: batch.shape[1]]
    return scale * jnp.mean(jnp.tanh((batch - mean[None]) @ params) ** 2)


PARAMS, BATCHES = jnp.array([1.0, -2.0, 0.5]), [np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)]
MEASURES = {
    "top": lambda loss, **o: flatness.hessian_top_eigenvalues(loss, PARAMS, BATCHES, key=KEY, **o).values,
    "trace": lambda loss, **o: flatness.hessian_trace(loss, PARAMS, BATCHES, key=KEY, num_probes=3, **o).value,
    "first": lambda loss, **o: flatness.first_order_flatness(loss, PARAMS, BATCHES, 0.1, key=KEY, **o).value,
    "average": lambda loss, **o: flatness.average_sharpness(loss, PARAMS, BATCHES, 0.1, key=KEY, **o).value,
    "slice": lambda loss, **o: flatness.loss_slice(loss, PARAMS, BATCHES, PARAMS, x=[-0.5, 0.5], **o).values,
    "path": lambda loss, **o: flatness.loss_path(loss, PARAMS, 2 * PARAMS, BATCHES, **o).values,
}


SLOW = {"top", "first", "average"}


@pytest.mark.parametrize("measure", [pytest.param(m, marks=[pytest.mark.slow] * (m in SLOW)) for m in MEASURES])
def test_as_if_the_loss_closed_over_them(measure):
    state = {"mean": jnp.arange(5.0)}
    closed = MEASURES[measure](lambda params, batch: loss_fn(params, batch, state, 2.0))
    given = MEASURES[measure](loss_fn, loss_args={"state": state, "scale": 2.0})
    np.testing.assert_allclose(given, closed, rtol=1e-5)


def test_measuring_every_epoch_compiles_nothing_and_keeps_nothing(caplog):
    def epoch(i):
        state = {"mean": jnp.full(WIDE, float(i))}
        return flatness.hessian_trace(
            loss_fn, (1 + i) * PARAMS, BATCHES, key=KEY, num_probes=3, loss_args={"state": state}
        ).value

    def held():
        gc.collect()
        return sum(array.nbytes for array in jax.live_arrays())

    values, before = [epoch(0)], held()
    with jax.log_compiles():
        values += [epoch(i) for i in range(1, 6)]
    assert not [record for record in caplog.records if "Compiling" in record.getMessage()]
    assert held() - before < WIDE and len({*values}) == 6


def test_keys_and_meshes():
    def noisy(params, batch, key):
        return jnp.mean((batch @ params + jax.random.normal(key, batch.shape[:1])) ** 2)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    values = [
        flatness.zeroth_order_flatness_one_step(
            noisy, PARAMS, [np.ones((16, 3), np.float32)], 0.1, loss_args={"key": jax.random.key(i)}, mesh=mesh
        )
        for i in (0, 0, 1)
    ]
    assert values[0] == values[1] != values[2]


class Tensor:
    """An array of another library: no dtype that NumPy knows, but it can be converted."""

    dtype = "other.float32"

    def __init__(self, array, grad=False):
        self.array, self.grad, self.shape = array, grad, array.shape

    def __getitem__(self, i):
        return Tensor(self.array[i])

    def __array__(self, dtype=None, copy=None):
        if self.grad:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        return self.array


class DataLoader:
    """Batches of PyTorch: pairs, anew in each epoch."""

    def __init__(self, x, y):
        self.pairs = [[Tensor(x[:4]), Tensor(y[:4])], [Tensor(x[4:]), Tensor(y[4:])]]

    def __iter__(self):
        return iter(self.pairs)


def test_leaves_of_any_kind_are_arrays():
    x, y = np.arange(18.0, dtype=np.float32).reshape(6, 3) / 9, np.arange(6) % 2
    loss = lambda params, batch: jnp.mean((batch[0] @ params - batch[1]) ** 2)  # noqa: E731
    trace = lambda batches, **o: flatness.hessian_trace(loss, PARAMS, batches, key=KEY, num_probes=3, **o).value  # noqa: E731
    expected = trace([(x[:4], y[:4]), (x[4:], y[4:])])
    assert trace(DataLoader(x, y)) == expected
    stacked = (Tensor(x.reshape(2, 3, 3)), Tensor(y.reshape(2, 3)))
    np.testing.assert_allclose(trace(stacked), expected, rtol=1e-6)
    weighted = trace(DataLoader(x, y), num_examples=lambda batch: len(batch[1]))
    assert weighted == expected
    with pytest.raises(
        TypeError, match="batches must hold arrays of numbers, got .*Tensor.* at batch 0.*requires grad"
    ):
        trace([(Tensor(x, grad=True), y)])
