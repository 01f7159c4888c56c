"""The options that every method of the family shares, and the checks of what a caller gives."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Container
from typing import Any, TypedDict, TypeVar, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from gam_jax._types import Between, HvpMode, PyTree

Factory = TypeVar("Factory", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Options:
    """What every method of the family accepts beside its own coefficients.

    Attributes:
      has_aux: the loss returns ``(loss, aux)``. A chain link drops aux; ``gam_value_and_grad`` returns it.
      interval: the method acts on steps 0, k, 2k, ... only; the others cost nothing beyond the caller's gradient. An
        integer k >= 1, or a function step count -> bool. A Python bool (not an array) decides while tracing: for two
        programs, one for the steps that act and one for the others, between which the training loop chooses.
      between: what happens on the other steps. "skip" (default) passes the updates on unchanged. "hold" adds the last
        term again: what the method added to the updates on the last step on which it acted, coefficients included
        (for a method that replaces them, the difference of its result to the clean gradient). The state then holds
        one buffer like the parameters, see :class:`gam_jax.Held`.
      max_ratio: what is added, fresh or held, is shortened where its norm exceeds this multiple of the norm of the
        incoming updates (with ``per_replica``: each replica's own). None (default) is no limit. Terms far longer than
        the gradient, and above all held ones, are what makes a cheap recipe diverge.
      hvp: how Hessian-vector products are computed, in the methods that have any. "linearize" (default) and "jvp" are
        forward over reverse, exact; "linearize" also serves losses with a custom_vjp inside. "reverse" is reverse
        over reverse, exact, for losses without forward mode. "finite_difference" is
        ``(grad(w + rho_prime v) - grad(w)) / rho_prime`` and loses to low precision.
      rho_prime: the step of the finite difference, along a unit direction.
      perturb_mask: a pytree of bools with the structure of the parameters, or a function from the parameters to one.
        Leaves with False neither move in an ascent nor enter a norm. They still receive their part of the gradient.
      adaptive: ascents and norms in the metric ``T = |w|`` (ASAM).
      axis_name: the mesh axis or axes of the replicas, inside shard_map or pmap. The updates that come out are
        averaged over it, whether those that come in are or not.
      per_replica: each replica perturbs with its own gradient (m-sharpness); one average, at the end. With
        ``between="hold"`` acting steps take one more, of the term.
      num_microbatches: the leading axis of the array arguments of the loss is split in so many parts, and every
        pass accumulates over them. None is 1.
      eps: the xi of Algorithm 1, added to norms that divide.
    """

    has_aux: bool = False
    interval: int | Callable[[jax.Array], Any] = 1
    between: Between = "skip"
    max_ratio: float | jax.Array | None = None
    hvp: HvpMode = "linearize"
    rho_prime: float | jax.Array = 1e-3
    perturb_mask: PyTree | Callable[[PyTree], PyTree] | None = None
    adaptive: bool = False
    axis_name: Any = None
    per_replica: bool = False
    num_microbatches: int | None = None
    eps: float | jax.Array = 1e-12

    def __post_init__(self):
        check_choice("hvp", self.hvp, get_args(HvpMode))
        check_choice("between", self.between, get_args(Between))
        check_coefficient("eps", self.eps)
        check_coefficient("rho_prime", self.rho_prime, positive=True)
        if not callable(self.interval):
            _check_count("interval", self.interval, "or a function count -> bool")
            if self.between == "hold" and not isinstance(self.interval, Tracer) and self.interval == 1:
                raise ValueError("between='hold' has no steps to act on: it needs interval > 1, got interval=1")
        if self.max_ratio is not None:
            check_coefficient("max_ratio", self.max_ratio, positive=True)
        if self.num_microbatches is not None:
            if isinstance(self.num_microbatches, Tracer):
                raise TypeError("num_microbatches must be static: in optax.inject_hyperparams name it in static_args")
            _check_count("num_microbatches", self.num_microbatches, "or None")
        if self.per_replica and self.axis_name is None:
            raise ValueError("per_replica=True needs the axis_name of the replicas, got axis_name=None")


class OptionArgs(TypedDict, total=False):
    """The fields of :class:`Options` as keyword arguments."""

    has_aux: bool
    interval: int | Callable[[jax.Array], Any]
    between: Between
    max_ratio: float | jax.Array | None
    hvp: HvpMode
    perturb_mask: PyTree | Callable[[PyTree], PyTree] | None
    adaptive: bool
    axis_name: Any
    per_replica: bool
    num_microbatches: int | None
    eps: float | jax.Array


def show_options(options: type, names: Container[str]) -> Callable[[Factory], Factory]:
    """Shows fields of a dataclass of options one by one in the signature of a function that takes ``**options``.

    So help() lists them, and optax.inject_hyperparams finds them.
    """

    def show(factory: Factory) -> Factory:
        signature = inspect.signature(factory)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        shared = [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
            for f in dataclasses.fields(options)
            if f.name in names
        ]
        factory.__signature__ = signature.replace(parameters=[*own, *shared])
        return factory

    return show


with_options = show_options(Options, OptionArgs.__annotations__)


def check_coefficient(name: str, value: Any, *, positive: bool = False, at_most: float = math.inf) -> None:
    """Raises unless the value is a finite number >= 0 (> 0 if ``positive``), a traced scalar or a schedule."""
    if callable(value) or isinstance(value, Tracer):
        return
    allowed = f"a finite number {'> 0' if positive else '>= 0'}{f' and <= {at_most}' if at_most < math.inf else ''}"
    message = f"{name} must be {allowed}, a traced scalar or a schedule, got {name}={value!r}"
    if isinstance(value, str | bool) or not (np.isscalar(value) or hasattr(value, "dtype")):
        raise TypeError(message)
    number = np.asarray(value, np.float64)
    if number.shape or not 0 <= number <= at_most or number == math.inf or (positive and number == 0):
        raise ValueError(message)


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raises unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {name}={value!r}")


def _check_count(name: str, value: Any, otherwise: str) -> None:
    message = f"{name} must be an integer >= 1 {otherwise}, got {name}={value!r}"
    if isinstance(value, bool) or not jnp.issubdtype(jnp.result_type(value), jnp.integer) or jnp.shape(value):
        raise ValueError(message)
    if not isinstance(value, Tracer) and value < 1:
        raise ValueError(message)


def check_params(params: PyTree, updates: PyTree) -> None:
    """Raises unless the parameters are a pytree of real floating arrays, and the updates one of the same shapes."""
    if params is None:
        raise ValueError(
            "the loss is evaluated at the parameters: call update(grads, state, params, ...), got params=None"
        )
    nodes = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
    if any(isinstance(node, optax.MaskedNode) for node in nodes):
        raise ValueError(
            "got parameters masked by optax.masked or optax.partition, with which the loss cannot be evaluated: put "
            "this transformation outside, and use its perturb_mask"
        )
    for path, leaf in jax.tree.leaves_with_path(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"parameters must be real floating-point arrays, got dtype {jnp.result_type(leaf)} at "
                f"params{jax.tree_util.keystr(path)}: close over what is not trained"
            )
    if jax.tree.structure(params) != jax.tree.structure(updates):
        raise ValueError(
            f"updates must have the structure of the parameters, {jax.tree.structure(params)}, got "
            f"{jax.tree.structure(updates)}"
        )


def resolve_mask(mask: Any, params: PyTree) -> PyTree | None:
    """The mask as a pytree of Python bools with the structure of the parameters."""
    if callable(mask):
        mask = mask(params)
    if mask is None:
        return None
    if jax.tree.structure(mask) != jax.tree.structure(params):
        raise ValueError(
            f"perturb_mask must have the structure of the parameters, {jax.tree.structure(params)}, got "
            f"{jax.tree.structure(mask)}"
        )
    for path, leaf in jax.tree.leaves_with_path(mask):
        if not isinstance(leaf, bool | np.bool_):
            raise TypeError(f"perturb_mask must hold bools, got {leaf!r} at {jax.tree_util.keystr(path)}")
    return jax.tree.map(bool, mask)
