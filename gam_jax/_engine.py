"""What a rule sees: the derivatives of one loss on one batch, and the ascent in one metric."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gam_jax._curvature import Curvature, Point
from gam_jax._loss import Arguments, Loss
from gam_jax._metric import Metric, resolve_mask, resolve_scaling
from gam_jax._options import Options
from gam_jax._parts import Parts
from gam_jax._replicas import as_varying, axes_apart, mean_over
from gam_jax._shards import Apart
from gam_jax._types import HvpMode, PyTree


class NormGradient(NamedTuple):
    """The gradient norm at one point, with its gradient.

    Attributes:
      point: value, aux and gradient g of the loss.
      norm: ``||g||`` in the metric of the ascent.
      grad: ``H g / (||g|| + xi)``, the gradient of the norm (Eq. 8 of the paper).
    """

    point: Point
    norm: jax.Array
    grad: PyTree


@dataclasses.dataclass(frozen=True)
class Engine:
    """One step's loss, parameters and options. All passes see the same arguments and the same random key."""

    params: PyTree
    curvature: Curvature
    metric: Metric
    options: Options

    @classmethod
    def create(cls, loss: Loss, params: PyTree, arguments: Arguments, options: Options) -> "Engine":
        """The engine of one step."""
        params = jax.tree.map(jnp.asarray, params)
        scaling = resolve_scaling(options.adaptive, params)
        apart = axes_apart(loss, params, arguments, options.axis_name)
        metric = Metric(scaling, resolve_mask(options.perturb_mask, params), options.eps, apart)
        parts = Parts.microbatches(loss, arguments, options)
        return cls(params, Curvature(loss, parts, options), metric, options)

    @property
    def apart(self) -> Apart:
        """The mesh axes over which norms and inner products are not to be summed."""
        return self.metric.apart

    def on(self, arguments: Arguments) -> "Engine":
        """The engine of the same step on other arguments, a part of these."""
        parts = Parts.microbatches(self.loss, arguments, self.options)
        return dataclasses.replace(self, curvature=dataclasses.replace(self.curvature, parts=parts))

    @property
    def loss(self) -> Loss:
        """Whose derivatives these are."""
        return self.curvature.loss

    @property
    def arguments(self) -> Arguments:
        """Of the loss, all of them."""
        return self.curvature.parts.arguments

    def gradient(self, params: PyTree) -> PyTree:
        """grad L; cost 1."""
        return self.curvature.at(params).grad

    def norm_gradient(self, params: PyTree, hvp: HvpMode | None = None) -> NormGradient:
        """||grad L|| and its gradient, a Hessian-vector product; cost 3, by finite differences 2."""
        point, product = self.curvature.linearized_at(params, hvp or self.options.hvp)
        return NormGradient(point, self.metric.norm(point.grad), product(self.metric.direction(point.grad)))

    def clean(self, updates: PyTree | None) -> Point:
        """Where the rule starts: with the gradient that the caller has computed, the updates, or with its own.

        1. With per_replica, what came in may be the average, and each replica's own is computed here; each group's
           too. The compiler finds it in the caller's program, so that it costs nothing there, but not in a loop.
        """
        own = updates is None or self.options.per_replica or self.options.groups > 1
        return self.curvature.at(self.params) if own else Point(None, None, updates)

    def ascend(self, start: PyTree, toward: PyTree, radius: PyTree) -> PyTree:
        """``start + radius * toward / (||toward|| + xi)`` in the metric."""
        return self.metric.ascend(start, toward, radius)

    def before(self, updates: PyTree) -> PyTree:
        """Incoming updates: averaged over the replicas, unless that is left for the end."""
        if self.options.per_replica:
            return as_varying(self.options.axis_name, updates)
        return mean_over(self.options.axis_name, updates, self.curvature.parts.share)

    def after(self, results: PyTree) -> PyTree:
        """What comes out: averaged over the replicas, which it is already unless each went its own way."""
        if not self.options.per_replica:
            return results
        return mean_over(self.options.axis_name, results, self.curvature.parts.share)
