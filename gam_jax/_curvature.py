"""Value, gradient and Hessian-vector products of one loss on one batch, in microbatches and over a mesh axis."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from gam_jax._linearize import linearize
from gam_jax._loss import Loss
from gam_jax._options import Options
from gam_jax._parts import Parts
from gam_jax._replicas import as_varying, mean_over
from gam_jax._tree import add_scaled, cast_like, scale_by, subtract
from gam_jax._types import HvpMode, PyTree


class Point(NamedTuple):
    """The loss at one point.

    Attributes:
      value: the loss, a scalar; None where the caller has computed the gradient.
      aux: what the loss returns beside its value; with microbatches, stacked along a new leading axis.
      grad: the gradient, in the dtypes of the parameters.
    """

    value: jax.Array | None
    aux: Any
    grad: PyTree


Product = Callable[[PyTree], PyTree]


@dataclasses.dataclass(frozen=True)
class Curvature:
    """The derivatives of ``loss(params, arguments)`` with the arguments held fixed.

    Every evaluation runs on all microbatches (``lax.scan``, in float32 or wider) and, unless ``per_replica``,
    averages over ``axis_name``, so that a loss that is the mean over its batch gives the single-device result. Where
    it is a mean over something else, ``microbatch_weight`` says how much each part and each replica counts.
    """

    loss: Loss
    parts: Parts
    options: Options

    def at(self, params: PyTree) -> Point:
        """Value and gradient; cost 1 gradient."""
        local = self._local(params)
        return Point(*self._mean(lambda arguments: self._gradient(local, arguments)))

    def linearized_at(self, params: PyTree, hvp: HvpMode) -> tuple[Point, Product]:
        """Value, gradient and a function ``v -> H v``; cost 1 gradient, and 2 for each product (1 by differences).

        With microbatches the intermediate values of the gradient are gone when the product is asked for, so that a
        product costs 3 (2 by differences).
        """
        local = self._local(params)
        if self.parts.number == 1:
            point, product = self._linearized(local, self.parts.arguments, hvp)
            point = Point(self._pmean(point.value), point.aux, self._pmean(point.grad))
            return point, self._checked(product, local, hvp)

        def in_parts(v: PyTree) -> PyTree:
            return self._mean(lambda arguments: (None, None, self._linearized(local, arguments, hvp)[1](v)))[2]

        return self.at(params), self._checked(in_parts, local, hvp)

    def _gradient(self, params: PyTree, arguments: Any) -> Point:
        (value, aux), grad = jax.value_and_grad(self.loss, has_aux=True)(params, arguments)
        return Point(value, aux, grad)

    def _linearized(self, params: PyTree, arguments: Any, hvp: HvpMode) -> tuple[Point, Product]:
        """Gradient and Hessian-vector product on one microbatch, on one replica."""

        def gradient(params: PyTree) -> tuple[PyTree, tuple[Any, Any]]:
            value, aux, grad = self._gradient(params, arguments)
            return grad, (value, aux)

        def difference(v: PyTree) -> PyTree:
            shifted = gradient(add_scaled(params, self.options.rho_prime, v))[0]
            return scale_by(1 / self.options.rho_prime, subtract(shifted, grad))

        match hvp:
            case "linearize":
                grad, (value, aux), product = linearize(gradient, params)
            case "jvp":
                grad, (value, aux) = gradient(params)
                product = lambda v: jax.jvp(gradient, (params,), (v,), has_aux=True)[1]  # noqa: E731
            case "reverse":
                grad, transpose, (value, aux) = jax.vjp(gradient, params, has_aux=True)
                product = lambda v: transpose(v)[0]  # noqa: E731  (the Hessian is symmetric)
            case "finite_difference":
                grad, (value, aux) = gradient(params)
                product = difference
        return Point(value, aux, grad), product

    def _checked(self, product: Product, params: PyTree, hvp: HvpMode) -> Product:
        """The product on directions of any float dtype, averaged over replicas, in the dtypes of the parameters."""

        def apply(v: PyTree) -> PyTree:
            v = self._local(v)
            if hvp != "finite_difference":
                v = cast_like(v, params)
            return self._pmean(cast_like(product(v), params))

        return apply

    def _mean(self, fn: Callable[[Any], tuple[Any, Any, Any]]) -> tuple[Any, Any, Any]:
        """``fn: arguments -> (value, aux, tree)``, value and tree averaged over microbatches and replicas."""
        value, aux, tree = self.parts.mean(fn)
        return self._pmean(value), aux, self._pmean(tree)

    def _pmean(self, tree: PyTree) -> PyTree:
        return tree if self.options.per_replica else mean_over(self.options.axis_name, tree, self.parts.share)

    def _local(self, params: PyTree) -> PyTree:
        return as_varying(self.options.axis_name, params)
