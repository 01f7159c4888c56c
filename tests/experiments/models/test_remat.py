"""Less memory or fewer FLOPs by other programs for the same network: remat and unroll, with every kind of product."""

import functools
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gam_jax
from experiments.common.hlo import parse
from experiments.common.hlo_cost import matmul_flops
from experiments.data import Batch
from experiments.models import resnet, vit
from experiments.models.config import ModelConfig
from experiments.train.step import make_loss
from gam_jax import HvpMode

SHAPE, SIZE = (8, 8, 1), 32


def make(network, **options):
    if network == "vit":
        architecture = vit.Architecture(patch=2, embedding=8, heads=2, depth=2)
        return vit.model(architecture, ModelConfig(name="vit", **options), SHAPE, 10)
    return resnet.model(resnet.Architecture((2, 1), 8, 8, 8), ModelConfig(name="resnet18", **options), SHAPE, 10)


@functools.cache
def variables(network):
    """Parameters and state, whatever the options."""
    return jax.jit(make(network).init)(jax.random.key(0))


def problem(network, **options):
    """Loss, parameters, and the loss's other arguments."""
    model, (params, model_state) = make(network, **options), variables(network)
    images = jax.random.normal(jax.random.key(1), (SIZE, *SHAPE))
    batch = Batch(images, jnp.arange(SIZE) % 10, jnp.arange(SIZE), jnp.ones(SIZE))
    arguments = {"batch": batch, "model_state": model_state, "key": jax.random.key(0)}
    return make_loss(model, 0.0), params, arguments


def compiled(network, method, **options):
    """The program of a method as a link behind the gradient, and the updates that it returns."""
    loss_fn, params, arguments = problem(network, **options)
    tx = method(loss_fn, has_aux=True)

    def chain(params):
        gradient = jax.grad(loss_fn, has_aux=True)(params, **arguments)[0]
        return tx.update(gradient, tx.init(params), params, **arguments)[0]

    program = jax.jit(chain).lower(params).compile()
    return program, jax.tree.map(np.asarray, program(params))


def memory(program):
    return program.memory_analysis().temp_size_in_bytes


def flops(program):
    return parse(program.as_text()).total(matmul_flops)


def remat_memory(network, hvp):
    """Memory with remat relative to that without, when both give the same updates; with one product."""
    method = functools.partial(gam_jax.gradient_norm_penalty, strength=0.1, hvp=hvp)
    (plain, expected), (remat, found) = (compiled(network, method, remat=remat) for remat in ("none", "all"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4), found, expected)
    return memory(remat) / memory(plain)


@pytest.mark.slow
def test_remat_of_a_scanned_network_saves_memory_with_gam():
    assert remat_memory("vit", "jvp") < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("hvp", get_args(HvpMode))
@pytest.mark.parametrize("network", ["vit", "resnet"])
def test_remat_with_every_product(network, hvp):
    """Blocks that are written out save no memory on the CPU, where XLA finds what is computed twice."""
    assert remat_memory(network, hvp) < {"vit": 0.7, "resnet": 1.3}[network]


def test_unrolled_layers_are_the_scanned_ones():
    _, params, arguments = problem("vit")
    images = arguments["batch"].image
    apply = lambda unroll: functools.partial(make("vit", unroll=unroll).apply, train=False)  # noqa: E731
    logits = [jax.jit(apply(unroll))(params, {}, images)[0] for unroll in (False, True)]
    np.testing.assert_allclose(*logits, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_unrolled_layers_cost_six_gradients():
    gam, _ = compiled("vit", functools.partial(gam_jax.gam, rho=0.1, alpha=0.5), unroll=True)
    plain, _ = compiled("vit", lambda loss_fn, has_aux: optax.with_extra_args_support(optax.identity()), unroll=True)
    assert 5.5 < flops(gam) / flops(plain) < 6.05
