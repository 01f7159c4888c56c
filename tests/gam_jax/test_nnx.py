"""The seam to Flax NNX: gradients by dense oracles, and models that move as nnx.value_and_grad moves them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import gam_jax
from tests.gam_jax.nnx_models import (
    GAM,
    Counting,
    Network,
    Tied,
    assert_flat,
    assert_same,
    batch,
    compiled,
    gam,
    linear,
    loss_of,
    models,
    oracle,
    plain,
)
from tests.gam_jax.step_cost import compile_and_count

pytestmark = pytest.mark.filterwarnings("ignore:scatter inputs:FutureWarning")  # Flax keeps statistics in float32


@pytest.fixture(autouse=True)
def _ranks():
    """Flax adds a bias of rank 1."""
    with jax.numpy_rank_promotion("allow"):
        yield


@models
def test_a_method_that_does_nothing_is_that_of_nnx(make, loss_fn, x64):
    model, expected = make(nnx.Rngs(0)), make(nnx.Rngs(0))
    got = gam_jax.nnx.value_and_grad(loss_fn, method=plain)(model, batch())
    want = nnx.value_and_grad(loss_fn)(expected, batch())
    assert_same(got, want)
    assert_same(nnx.state(model), nnx.state(expected))
    assert nnx.graphdef(model) == nnx.graphdef(expected)


@models
def test_gam_and_one_clean_pass(make, loss_fn, x64):
    """All passes see the masks of the clean one, and the model moves once, in every call of a compiled step."""
    model, expected = make(nnx.Rngs(0)), make(nnx.Rngs(0))
    step, gradient = compiled(loss_fn), nnx.jit(nnx.value_and_grad(loss_fn))
    for _ in range(2):
        want = oracle(model, lambda copy: loss_fn(copy, batch()))
        loss, grads = step(model, batch())
        clean_loss, clean = gradient(expected, batch())
        assert_flat(grads, want)
        np.testing.assert_allclose(loss, clean_loss, rtol=1e-10)
        assert jax.tree.structure(grads) == jax.tree.structure(clean)
        assert_same(nnx.state(model), nnx.state(expected))


def test_the_link_around_a_split_model_gives_the_same(x64):
    model = Network(nnx.Rngs(0))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def split(params, rest, batch):
        return loss_of(nnx.merge(graphdef, params, rest, copy=True), batch)

    tx = gam_jax.gam(split, **GAM)
    clean = jax.jit(jax.grad(split))(params, rest, batch())
    want, _ = jax.jit(tx.update)(clean, tx.init(params), params, rest=rest, batch=batch())
    assert_same(compiled(loss_of)(model, batch())[1], want)


def test_aux_and_what_a_method_returns_beyond(x64):
    def with_aux(model, batch):
        return loss_of(model, batch), model(batch["x"])

    def talkative(loss_fn, has_aux):
        return lambda *args: (*jax.value_and_grad(loss_fn, has_aux=has_aux)(*args), "seen")

    model, expected = Network(nnx.Rngs(0)), Network(nnx.Rngs(0))
    got = gam_jax.nnx.value_and_grad(with_aux, has_aux=True, method=talkative)(model, batch())
    assert_same(got[:2], nnx.value_and_grad(with_aux, has_aux=True)(expected, batch()))
    assert got[2] == "seen"
    (loss, aux), _ = gam(with_aux, has_aux=True)(Network(nnx.Rngs(0)), batch())
    assert_same((loss, aux), got[0])
    assert model.drop.rngs.count[...] == 2


@pytest.mark.parametrize("parts", [1, 2])
def test_modules_among_the_arguments(parts, x64):
    """Random keys, a metric and a frozen teacher, by position and by name: they move once, and are never split."""

    def distil(model, rngs, batch, teacher, metric):
        x = batch["x"]
        noise = jax.random.normal(rngs.noise(), x.shape, float)
        loss = jnp.mean((model(x) - jax.lax.stop_gradient(teacher(x + noise))) ** 2)
        metric.update(values=jnp.ones(()))
        return loss

    def arguments():
        teacher = linear(4, 4, nnx.Rngs(2))
        return nnx.Rngs(noise=5), batch(), {"teacher": teacher, "metric": nnx.metrics.Average()}

    model = Tied(nnx.Rngs(0))
    rngs, data, others = arguments()
    rngs_then, _, others_then = arguments()
    want = nnx.value_and_grad(distil)(model, rngs_then, data, **others_then)
    options = {"num_microbatches": 2} if parts == 2 else {}
    same_value = gam_jax.nnx.value_and_grad(distil, **GAM, **options)(model, rngs, data, **others)
    if parts == 1:
        np.testing.assert_allclose(same_value[0], want[0], rtol=1e-10)
    assert_same(nnx.state((rngs, others)), nnx.state((rngs_then, others_then)))
    assert rngs.noise.count[...] == 1 and others["metric"].compute() == 1


def test_statistics_of_microbatches(x64):
    """The mean of those of the parts; counters of one part; what is sown, part by part."""

    class Both(nnx.Module):
        def __init__(self, rngs):
            self.network, self.counting = Network(rngs), Counting(rngs)

        def __call__(self, x):
            return self.network(x) + self.counting(x)

    model = Both(nnx.Rngs(0))
    parts = [nnx.clone(model) for _ in range(2)]
    grads = compiled(loss_of, num_microbatches=2)(model, batch())[1]
    halves = [jax.tree.map(lambda leaf: leaf[k::2], batch()) for k in range(2)]  # noqa: B023
    want = oracle(parts[0], lambda copy: sum(loss_of(nnx.clone(copy), half) for half in halves) / 2)
    assert_flat(grads, want)
    for part, half in zip(parts, halves, strict=True):
        part(half["x"])
    assert_same(model.counting.seen[...], jnp.stack([part.counting.seen[...] for part in parts]))
    moved = [nnx.state(part, (nnx.BatchStat, nnx.RngCount)) for part in parts]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *moved)
    assert_same(
        nnx.state(model, (nnx.BatchStat, nnx.RngCount)),
        jax.tree.map(lambda m, a: m.astype(a.dtype), mean, moved[0]),
        rtol=1e-6,
    )
    np.testing.assert_allclose(model.counting.largest, sum(part.counting.largest for part in parts) / 2)
    assert model.counting.calls[...] == 1


@pytest.mark.parametrize("options", [{"groups": 2}, {"groups": 2, "num_microbatches": 2}, {"share": 4}], ids=str)
def test_statistics_do_not_depend_on_how_the_batch_is_split(options, x64):
    """With momentum 0 the running mean is that of the batch, which is the mean of those of its parts."""
    model = nnx.Sequential(linear(4, 3, nnx.Rngs(0)), nnx.BatchNorm(3, momentum=0.0, rngs=nnx.Rngs(0)))
    want = model.layers[0](batch()["x"]).mean(0)
    *_, seen = compiled(loss_of, has_diagnostics=True, **options)(model, batch())
    np.testing.assert_allclose(model.layers[1].mean[...], want, rtol=1e-5)
    assert seen.first_order_flatness > 0


def test_a_method_with_a_memory(x64):
    """Friendly SAM's mean goes in and comes out as a State, in a compiled step."""
    model, lone = Network(nnx.Rngs(0)), Network(nnx.Rngs(0))
    mean = optax.tree.zeros_like(nnx.state(model, nnx.Param))
    options = {"rho": 0.1, "decay": 0.5, "method": gam_jax.friendly_sam_value_and_grad}
    _, _, mean = nnx.jit(gam_jax.nnx.value_and_grad(loss_of, **options))(model, batch(), memory=mean)
    assert_same(mean, jax.tree.map(lambda g: 0.5 * g, nnx.value_and_grad(loss_of)(lone, batch())[1]))


def test_replicas_are_microbatches(x64):
    """In shard_map, statistics are averaged over the axis."""
    graphdef, state = nnx.split(Network(nnx.Rngs(0)))

    def step(state, batch, **options):
        model = nnx.merge(graphdef, state)
        loss, grads = gam(loss_of, **options)(model, batch)
        return loss, grads, nnx.state(model)

    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    on_two = jax.jit(
        jax.shard_map(functools.partial(step, axis_name="data"), mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
    )
    by_shard = jax.tree.map(lambda leaf: jnp.concatenate([leaf[0::2], leaf[1::2]]), batch())
    with jax.set_mesh(mesh):
        got = on_two(state, by_shard)
    assert_same(got, jax.jit(functools.partial(step, num_microbatches=2))(state, batch()), rtol=1e-6)


def lora(rngs):
    return nnx.Sequential(
        nnx.LoRA(4, 2, 5, base_module=linear(4, 5, rngs), param_dtype=float, rngs=rngs), nnx.tanh, linear(5, 3, rngs)
    )


@pytest.mark.parametrize("wrt", [nnx.LoRAParam, nnx.PathContains("lora_b")], ids=["LoRAParam", "path"])
def test_what_is_trained(wrt, x64):
    """The rest has no part in norms, and nnx.Optimizer moves the trained alone."""
    model, before = lora(nnx.Rngs(0)), nnx.state(lora(nnx.Rngs(0)))
    optimizer = nnx.Optimizer(model, optax.sgd(1.0), wrt=wrt)
    want = oracle(model, lambda copy: loss_of(copy, batch()), wrt)
    _, grads = compiled(loss_of, wrt=wrt)(model, batch())
    assert_flat(grads, want)
    optimizer.update(model, grads)
    after = nnx.state(model)
    moved = jax.tree.map(lambda a, b, g: a - b, *(nnx.filter_state(s, wrt) for s in (before, after)), grads)
    assert_same(moved, grads, rtol=1e-8)
    assert_same(nnx.filter_state(after, nnx.Not(wrt)), nnx.filter_state(before, nnx.Not(wrt)))


@pytest.mark.parametrize("param_dtype", [pytest.param(jnp.float32, marks=pytest.mark.slow), jnp.bfloat16])
def test_bfloat16(param_dtype):
    """Computation in bfloat16; gradients in the dtypes of the parameters, near those in float32."""

    def make(**dtypes):
        rngs = nnx.Rngs(0)
        layers = nnx.Linear(4, 8, rngs=rngs, **dtypes), nnx.BatchNorm(8, rngs=rngs, **dtypes), nnx.tanh
        return nnx.Sequential(*layers, nnx.Linear(8, 3, rngs=rngs, **dtypes))

    data = {"x": batch()["x"].astype(jnp.float32), "y": batch()["y"]}
    model, exact = make(dtype=jnp.bfloat16, param_dtype=param_dtype), make()
    nnx.update(exact, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), nnx.state(model)))
    optimizer = nnx.Optimizer(model, optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)), wrt=nnx.Param)
    _, grads = compiled(loss_of)(model, data)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype(param_dtype)}
    got, want = (
        jax.flatten_util.ravel_pytree(g)[0].astype(jnp.float32) for g in (grads, compiled(loss_of)(exact, data)[1])
    )
    assert jnp.linalg.norm(got - want) < 0.1 * jnp.linalg.norm(want)
    optimizer.update(model, grads)
    assert model.layers[1].mean[...].dtype == jnp.float32 and jnp.abs(model.layers[1].mean[...]).min() > 0


def test_options_by_leaf_and_schedules(x64):
    """A mask of the State of what is trained, and a count for an interval."""

    def mask(params):
        return jax.tree.map_with_path(lambda path, _: "bias" not in jax.tree_util.keystr(path), params)

    model = Tied(nnx.Rngs(0))
    step = gam(loss_of, perturb_mask=mask, interval=2)
    kernels = compiled(loss_of, wrt=nnx.PathContains("kernel"))(model, batch())[1]
    assert_same(step(model, batch(), count=0)[1]["first"]["kernel"], kernels["first"]["kernel"])
    clean = nnx.value_and_grad(loss_of)(model, batch())
    assert_same(step(model, batch(), count=1), clean)


@pytest.mark.slow
def test_cost():
    """In gradients of the same model, by the FLOPs of the compiled programs; the model's own moves included."""

    class Wide(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(64, 64, rngs=rngs) for _ in range(6)])
            self.norm, self.drop = nnx.BatchNorm(64, rngs=rngs), nnx.Dropout(0.1, rngs=rngs)

        def __call__(self, x):
            for layer in self.layers:
                x = nnx.tanh(layer(x))
            return self.drop(self.norm(x))

    graphdef, state = nnx.split(Wide(nnx.Rngs(0)))
    data = {"x": jnp.ones((64, 64)), "y": jnp.arange(64)}

    def flops(value_and_grad):
        def step(state, batch):
            model = nnx.merge(graphdef, state)
            return value_and_grad(model, batch), nnx.state(model)

        return compile_and_count(step, state, data)[0]

    gradient = flops(nnx.value_and_grad(loss_of))
    _, params, rest = nnx.split(nnx.merge(graphdef, state), nnx.Param, ...)
    split = lambda params, batch: loss_of(nnx.merge(graphdef, params, rest, copy=True), batch)  # noqa: E731
    by_hand = compile_and_count(gam_jax.gam_value_and_grad(split, **GAM), params, data)[0]
    cost = flops(gam(loss_of))
    assert cost == pytest.approx(by_hand, rel=0.01)
    assert 5.6 < cost / gradient < 6.05  # the first layer's products are cheaper
    sam = gam_jax.nnx.value_and_grad(loss_of, 0.05, method=gam_jax.sam_value_and_grad)
    assert 1.95 < flops(sam) / gradient < 2.05


def test_errors():
    model = Tied(nnx.Rngs(0))
    with pytest.raises(ValueError, match="rho=-1"):
        gam_jax.nnx.value_and_grad(loss_of, rho=-1, alpha=0.5)
    with pytest.raises(TypeError, match="must be an nnx module, got dict"):
        gam(loss_of)(batch(), batch())
    with pytest.raises(ValueError, match="wrt matches no variable of the model, got wrt=.*LoRAParam"):
        gam(loss_of, wrt=nnx.LoRAParam)(model, batch())
    with pytest.raises(AttributeError, match="'Tied' object has no attribute 'nothing'"):  # and no recipe
        gam(lambda model: model.nothing)(model)
    with pytest.raises(TypeError, match=r"(?s)without ref=True or hijax=True, got Variable.* at \('state',\)"):
        model.state = nnx.Variable(jnp.zeros(2), ref=True)
        gam(loss_of)(model, batch())
