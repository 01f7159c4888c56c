# pyright: strict, reportMissingTypeStubs=false
"""What a type checker tells a user of gam_jax. Never run: pyright reads it, `make types` and `make wheel`."""

from collections.abc import Callable
from typing import Any, assert_type

import jax
import numpy as np
import optax

import gam_jax
from gam_jax import flatness

Params = dict[str, jax.Array]
Function = Callable[..., tuple[Any, ...]]


def loss_fn(params: Params, batch: jax.Array) -> jax.Array:
    return ((batch @ params["w"]) ** 2).mean()


def links(schedule: optax.Schedule, opt_state: optax.OptState) -> optax.GradientTransformationExtraArgs:
    assert_type(gam_jax.gam(loss_fn, rho=schedule, interval=2, between="hold"), optax.GradientTransformationExtraArgs)
    assert_type(gam_jax.sam(loss_fn, 0.05, groups=4), optax.GradientTransformationExtraArgs)
    assert_type(gam_jax.accelerated_gam(loss_fn, 0.1, 0.05, 0.5, 1.0, 0.1), optax.GradientTransformationExtraArgs)
    assert_type(gam_jax.friendly_sam(loss_fn, 0.05), optax.GradientTransformationExtraArgs)
    assert_type(gam_jax.gradient_norm_penalty(loss_fn, 0.1), optax.GradientTransformationExtraArgs)
    assert_type(gam_jax.c_flat(loss_fn), optax.GradientTransformationExtraArgs)
    assert_type(gam_jax.fad(loss_fn, 0.1, 0.5, 0.5), optax.GradientTransformationExtraArgs)
    assert_type(gam_jax.diagnostics(opt_state), dict[str, jax.Array])
    return optax.chain(gam_jax.sam(loss_fn, 0.05), gam_jax.gam(loss_fn), optax.sgd(0.1))


def functions(params: Params, batch: jax.Array) -> Params:
    assert_type(gam_jax.gam_value_and_grad(loss_fn, 0.1, 0.5, has_diagnostics=True), Function)
    assert_type(gam_jax.sam_value_and_grad(loss_fn), Function)
    assert_type(gam_jax.sam_gam_value_and_grad(loss_fn), Function)
    assert_type(gam_jax.accelerated_gam_value_and_grad(loss_fn, 0.1, 0.05, 0.5, 1.0, 0.1), Function)
    assert_type(gam_jax.friendly_sam_value_and_grad(loss_fn, 0.05), Function)
    assert_type(gam_jax.gradient_norm_penalty_value_and_grad(loss_fn, 0.1), Function)
    assert_type(gam_jax.c_flat_value_and_grad(loss_fn), Function)
    assert_type(gam_jax.fad_value_and_grad(loss_fn, 0.1, 0.5, 0.5), Function)
    assert_type(gam_jax.nnx.value_and_grad(loss_fn), Function)
    assert_type(gam_jax.equinox.filter_value_and_grad(loss_fn), Function)
    _, grads = gam_jax.gam_value_and_grad(loss_fn)(params, batch)
    return grads


def averages(params: Params) -> None:
    averaging = gam_jax.swad()
    assert_type(averaging, gam_jax.Swad)
    assert_type(averaging.update(averaging.init(params), params), gam_jax.SwadState)


def instruments(params: Params, batches: list[jax.Array], key: jax.Array) -> None:
    first = flatness.first_order_flatness(loss_fn, params, batches, rho=0.1, key=key)
    assert_type(first, flatness.Flatness)
    assert_type((first.value, first.distance), tuple[float, float])
    assert_type(flatness.zeroth_order_flatness(loss_fn, params, batches, rho=0.1, key=key), flatness.Flatness)
    assert_type(flatness.first_order_flatness_one_step(loss_fn, params, batches, rho=0.1), float)
    assert_type(flatness.zeroth_order_flatness_one_step(loss_fn, params, batches, rho=0.1), float)
    top = flatness.hessian_top_eigenvalues(loss_fn, params, batches, k=2, key=key)
    assert_type(top, flatness.Eigenvalues)
    assert_type(top.values, np.ndarray)
    assert_type(flatness.hessian_trace(loss_fn, params, batches, key=key), flatness.TraceEstimate)
    assert_type(flatness.hessian_density(loss_fn, params, batches, key=key), flatness.SpectralDensity)
    assert_type(flatness.count_local_minima(loss_fn, params, batches, key=key), flatness.LocalExtrema)
    (direction,) = flatness.filter_normalized_directions(params, key=key, num=1)
    assert_type(flatness.loss_slice(loss_fn, params, batches, direction), flatness.LossSlice)
