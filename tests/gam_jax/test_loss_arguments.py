"""How the arguments of a loss reach it: by name through update, by position to the loss, never swallowed."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import gam_jax
from tests.gam_jax.family import FACTORIES, FAMILY

x = jnp.linspace(-1, 1, 8)
params = jnp.array([1.0, -2.0])


def loss_fn(params, x, power=2, scale=1.0):
    return scale * jnp.mean((params[0] * x + params[1]) ** power)


def by_hand(power, scale):
    """SAM: the gradient g, and that at w + 0.1 g / |g|."""
    grad = jax.grad(lambda w: loss_fn(w, x, power, scale))
    g = grad(params)
    return g, grad(params + 0.1 * g / jnp.linalg.norm(g))


def positional(params, x, power, scale, /):
    return loss_fn(params, x, power, scale)


def positional_with_defaults(params, x, power=2, scale=1.0, /):
    return loss_fn(params, x, power, scale)


def by_name_only(params, *, x, scale=1.0, power=2):
    return loss_fn(params, x, power, scale)


def with_rest(params, x, **rest):
    return loss_fn(params, x, rest["power"], rest["scale"])


def over_devices(loss):
    """shard_map takes no keywords."""
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    mean = lambda params, x: jax.lax.pmean(loss(params, x), "d")  # noqa: E731
    return jax.shard_map(mean, mesh=mesh, in_specs=(P(), P("d")), out_specs=P())


def with_shardings(loss):
    """Nor does jit with in_shardings."""
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    return jax.jit(loss, in_shardings=(NamedSharding(mesh, P()), NamedSharding(mesh, P("d")), None, None))


@pytest.mark.parametrize(
    ("loss", "extra"),
    [
        (loss_fn, {"scale": 3.0}),  # power is left out
        (jax.jit(loss_fn, static_argnames="power"), {"power": 4, "scale": 3.0}),
        (jax.checkpoint(loss_fn, static_argnums=2), {"power": 4, "scale": 3.0}),  # takes no keywords
        (with_shardings(loss_fn), {"power": 4, "scale": 3.0}),
        (over_devices(loss_fn), {}),
        (positional, {"power": 4, "scale": 3.0}),
        (positional_with_defaults, {"scale": 3.0}),
        (by_name_only, {"scale": 3.0}),
        (with_rest, {"power": 4, "scale": 3.0}),
        (functools.partial(loss_fn, power=2), {"scale": 3.0}),
    ],
)
def test_every_kind_of_parameter(loss, extra):
    """The arguments arrive where the signature has them."""
    g, want = by_hand(**{"power": 2, "scale": 1.0} | extra)
    tx = gam_jax.sam(loss, 0.1)
    got = tx.update(g, tx.init(params), params, x=x, **extra)[0]
    np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("taken", ["updates", "state", "params"])
def test_names_that_update_has_for_itself(name, taken):
    """Refused when the link is made, given a default or not; as the first argument they are the parameters."""
    takes = {
        "updates": lambda p, batch, updates: 0.0,
        "state": lambda p, batch, state=None: 0.0,
        "params": lambda p, params, batch: 0.0,
    }
    with pytest.raises(TypeError, match=f"argument named '{taken}'.*update.*rename it.*lambda params, loss_{taken}"):
        FAMILY[name](takes[taken])
    FAMILY[name]({"updates": lambda updates: 0.0, "state": lambda state: 0.0, "params": lambda params: 0.0}[taken])
    FAMILY[name](functools.partial(takes[taken], **{taken: 0}))  # is bound already, and not passed


@pytest.mark.parametrize("name", FACTORIES)
def test_arguments_without_a_name(name):
    for bad in (lambda params, *batch: 0.0, lambda *args: 0.0, lambda params, *args, **kwargs: 0.0):
        with pytest.raises(TypeError, match=r"takes \*(batch|args).*travel by name.*functools.wraps"):
            FAMILY[name](bad)


def test_a_loss_whose_signature_is_hidden():
    with pytest.raises(TypeError, match="cannot tell which arguments.*min.*lambda params, batch"):
        gam_jax.gam(min, 0.1, 0.5)


def test_count_belongs_to_the_loss_where_nothing_else_needs_it():
    def counted(params, x, count=1.0):
        return count * loss_fn(params, x)

    want = counted(params, x, 3.0)
    fn = gam_jax.gam_value_and_grad(counted, 0.1, 0.5)
    for value, _ in (fn(params, x, count=3.0), fn(params, x, 3.0), fn(params, x=x, count=3.0)):
        np.testing.assert_allclose(value, want)
    np.testing.assert_allclose(gam_jax.gam_value_and_grad(loss_fn, 0.1, 0.5)(params, x, count=3)[0], want / 3)
    for options in ({"interval": 2}, {"rho": optax.constant_schedule(0.1)}):
        with pytest.raises(TypeError, match="argument named 'count'.*value_and_grad with a schedule.*rename it"):
            gam_jax.gam_value_and_grad(counted, **{"rho": 0.1, "alpha": 0.5} | options)


def test_value_and_grad_of_a_loss_with_an_argument_named_params():
    """As with jax.value_and_grad, the parameters come by position."""
    value, _ = gam_jax.gam_value_and_grad(lambda w, params: params * loss_fn(w, x), 0.1, 0.5)(params, params=2.0)
    np.testing.assert_allclose(value, 2 * loss_fn(params, x))


# Models of libraries in which the model is a pytree


class Model(nnx.Module):
    def __init__(self):
        self.line = nnx.Linear(1, 1, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.line(x[:, None])[:, 0]


def of_model(model, x):
    return jnp.mean((model(x) - 1) ** 2)


def test_nnx_models_are_split():
    model = Model()
    grads = nnx.grad(of_model)(model, x)
    optimizer = nnx.Optimizer(model, optax.chain(gam_jax.sam(of_model, 0.1), optax.sgd(1.0)), wrt=nnx.Param)
    with pytest.raises(TypeError, match="not callable.*nnx.split.*loss_fn\\(params, rest, ...\\).*nnx.merge"):
        optimizer.update(model, grads, x=x)

    graphdef, before, rest = nnx.split(model, nnx.Param, ...)
    flat, unravel = jax.flatten_util.ravel_pytree(before)

    def split(params, rest, x):
        return of_model(nnx.merge(graphdef, params, rest, copy=True), x)

    gradient = jax.grad(lambda w: split(unravel(w), rest, x))
    g = gradient(flat)
    want = flat - gradient(flat + 0.1 * g / jnp.linalg.norm(g))
    optimizer = nnx.Optimizer(model, optax.chain(gam_jax.sam(split, 0.1), optax.sgd(1.0)), wrt=nnx.Param)
    optimizer.update(model, grads, rest=rest, x=x)
    np.testing.assert_allclose(jax.flatten_util.ravel_pytree(nnx.state(model, nnx.Param))[0], want, rtol=1e-5)


def test_equinox_models_are_split():
    model = eqx.nn.MLP("scalar", "scalar", 2, 1, key=jax.random.key(0))
    loss = lambda model, x: of_model(jax.vmap(model), x)  # noqa: E731
    tx = gam_jax.sam(loss, 0.1)
    with pytest.raises(TypeError, match=r"got <.*at params\.activation: close over what is not trained"):
        tx.init(model)
    arrays, static = eqx.partition(model, eqx.is_inexact_array)
    with pytest.raises(TypeError, match=r"not callable.*eqx.partition.*eqx.combine\(params, static\)"):
        tx.update(eqx.filter_grad(loss)(model, x), tx.init(arrays), arrays, x=x)
    with pytest.raises(TypeError, match="eqx.partition"):  # wherever it lies
        gam_jax.gam_value_and_grad(lambda p, x: loss(p["model"], x), 0.1, 0.5)({"model": arrays}, x)

    merged = gam_jax.gam_value_and_grad(lambda params, x: loss(eqx.combine(params, static), x), 0.1, 0.5)
    np.testing.assert_allclose(merged(arrays, x)[0], loss(model, x), rtol=1e-6)


def test_errors_of_the_loss_itself_stay():
    def broken(params, x):
        return None.nothing  # pyright: ignore

    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'nothing'"):
        gam_jax.gam_value_and_grad(broken, 0.1, 0.5)(params, x)


@pytest.mark.parametrize(
    "leaf",
    [jnp.tanh, "relu", 3, True, np.array(["a"]), np.arange(2)],
    ids=["function", "text", "int", "bool", "texts", "ints"],
)
def test_leaves_that_cannot_be_trained(leaf):
    with pytest.raises(TypeError, match=r"at params\['net'\]\[1\]: close over what is not trained"):
        gam_jax.sam(loss_fn, 0.1).init({"net": [params, leaf]})
