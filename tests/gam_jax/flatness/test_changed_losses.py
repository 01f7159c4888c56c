"""A loss that changes between two measurements is measured as it is, and one that does not compiles once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax import flatness

CURVATURE = jnp.array([1.0, 2.0, 3.0])


class Task:
    """A loss with a setting."""

    scale = 1.0

    def loss(self, params):
        return self.scale * jnp.sum(CURVATURE * params**2) / 2

    __call__ = loss

    def other(self, batch, params):
        return batch + self.loss(params)


def bound_method():
    task = Task()
    return task.loss, functools.partial(setattr, task, "scale")


def callable_object():
    task = Task()
    return task, functools.partial(setattr, task, "scale")


def partial_over_an_object():
    task = Task()
    return functools.partial(task.other, 1.0), functools.partial(setattr, task, "scale")


def array_changed_in_place():
    scale = np.ones(3)
    return lambda params: jnp.sum(scale * CURVATURE * params**2) / 2, lambda value: scale.fill(value)


def array_inside_a_loop():
    holder = Task()

    def loss(params):
        body = lambda total, w: (total + holder.scale * jnp.asarray([1.0]) @ w[None] ** 2, None)  # noqa: E731
        return jax.lax.scan(body, jnp.zeros(()), jnp.sqrt(CURVATURE / 2) * params)[0]

    return loss, lambda value: setattr(holder, "scale", np.float32(value))


@jax.custom_vjp
def reverse(x, factor):
    return x


reverse.defvjp(lambda x, factor: (x, factor), lambda factor, g: (g * factor, None))


def rule_of_a_derivative():
    """Only the gradient knows of the setting, the value does not."""
    task = Task()

    @jax.custom_vjp
    def scaled(x):
        return x

    scaled.defvjp(lambda x: (x, None), lambda _, g: (task.scale * g,))
    return lambda params: scaled(jnp.sum(CURVATURE * params**2) / 2), functools.partial(setattr, task, "scale")


KINDS = [
    bound_method,
    callable_object,
    partial_over_an_object,
    array_changed_in_place,
    array_inside_a_loop,
    rule_of_a_derivative,
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_measurement_sees_the_loss_of_its_time(kind):
    loss_fn, change = kind()
    traces = []
    for scale in (1.0, 10.0, 1.0):
        change(scale)
        found = flatness.hessian_trace(loss_fn, jnp.ones(3), None, key=jax.random.key(0), num_probes=3)
        traces.append(found.value)
    np.testing.assert_allclose(traces, [6, 60, 6], rtol=1e-6)


@jax.custom_jvp
def cube(x):
    return x**3


cube.defjvp(lambda x, t: (x[0] ** 3, 3 * x[0] ** 2 * t[0]))


def everything(params, batch):
    """Operations whose traces hold functions, constants, loops and branches."""
    x = jax.lax.scan(lambda x, a: (jax.nn.relu(x * a), None), batch @ params, jnp.arange(1.0, 3.0))[0]
    x = jax.checkpoint(lambda x: jnp.tanh(x) * np.array([1.0, 2.0], np.float32)[:1])(x)
    x = jax.lax.cond(x[0] > 0, lambda x: x, lambda x: 2 * x, reverse(x, 2.0))
    return jnp.mean(cube(x)) + jax.nn.logsumexp(params) + jax.random.normal(jax.random.key(0))


def test_equal_traces_compile_once(caplog):
    task, batches = Task(), [np.ones((4, 3), np.float32), np.ones((2, 3), np.float32)]

    def measure_all():
        flatness.first_order_flatness_one_step(everything, jnp.ones(3), batches, 0.1)
        flatness.zeroth_order_flatness_one_step(task.loss, jnp.ones(3), None, 0.1)

    def compiled():
        caplog.clear()
        with jax.log_compiles():
            measure_all()
        return [r.getMessage() for r in caplog.records if "Compiling" in r.getMessage()]

    measure_all()
    assert not compiled()
    task.scale = 2.0
    assert any("_run" in message for message in compiled())


def test_the_loss_is_traced_once_per_measurement():
    """Once for each kind of pass, and once more to check that it is deterministic."""
    traced = []

    def loss_fn(params, batch):
        traced.append(1)
        return jnp.sum(params**2) * jnp.mean(batch)

    for _ in range(2):
        traced.clear()
        flatness.hessian_trace(loss_fn, jnp.ones(3), [np.ones(4)] * 5, key=jax.random.key(0), num_probes=3)
        assert len(traced) == 3  # value, value again, product
