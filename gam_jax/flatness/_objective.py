"""The mean loss over a whole data set, its gradient and its Hessian-vector products, streamed batch by batch.

The loss is traced anew for each measurement, and compiled only if that trace is new (see ``_programs``): a second
measurement with the same function and the same shapes compiles nothing.
"""

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from gam_jax._types import LossFn, PyTree
from gam_jax.flatness._block import Block, count_parameters
from gam_jax.flatness._data import (
    DataArgs,
    DataOptions,
    ProgressFn,
    as_arrays,
    automatic,
    count_examples,
    reader,
    replicate,
    spread,
)
from gam_jax.flatness._passes import Context, Operator, Passes, check_loss, check_operator, named, strong
from gam_jax.flatness._programs import Programs


@functools.partial(jax.jit, donate_argnums=0)
def _accumulate(total: PyTree, weight: float, tree: PyTree) -> PyTree:
    return jax.tree.map(lambda t, x: t + jnp.asarray(weight, t.dtype) * x.astype(t.dtype), total, tree)


@jax.jit
def _divide(total: PyTree, weight: float, like: PyTree) -> PyTree:
    return jax.tree.map(lambda t, x: (t / jnp.asarray(weight, t.dtype)).astype(x.dtype), total, like)


class Objective:
    r"""``L(params) = sum_b n_b L_b(params) / sum_b n_b`` over the batches b with n_b examples, and its derivatives.

    Attributes:
      params: the parameters at which it was made, on the mesh if there is one; with a mask a list of its leaves, and
        all vectors are lists of these.
      value: the loss there, in float64.
      size: the number of parameters.
      machine_epsilon: that of the narrowest dtype among them.
      passes: finished passes over the data.
    """

    def __init__(
        self, loss_fn: LossFn, params: PyTree, batches: Any, mask: Any, options: DataOptions, progress: ProgressFn
    ):
        self.size = count_parameters(params, mask)
        loss_args = dict(options.loss_args or {})
        check_loss(loss_fn, 1 if batches is None else 2, loss_args)
        self._programs = functools.partial(Programs, (loss_fn, options.has_aux))
        self._compiled = self._programs()
        self._options = options
        self._mesh = None if options.mesh is None else automatic(options.mesh)
        self._read = reader(batches)
        self._progress = progress
        self.passes = 0
        self._block = Block(replicate(jax.tree.map(strong, params), self._mesh), mask)
        self.params = self._block.params
        self._passes = Passes(loss_fn, options.has_aux, self._block)
        self._context = Context(self._block.frozen, replicate(jax.tree.map(strong, loss_args), self._mesh))
        dtypes = {leaf.dtype for leaf in jax.tree.leaves(self.params)}
        self.machine_epsilon = max((float(jnp.finfo(dtype).eps) for dtype in dtypes), default=0.0)
        self.value = self.value_at(self.params)
        if not math.isfinite(self.value):
            raise ValueError(f"the loss must be finite at the parameters, got {self.value}")
        if options.check_determinism:
            self._check_determinism()

    def value_at(self, params: PyTree) -> float:
        """The loss at ``params``; one pass without gradients."""
        return self._mean(lambda args: self._run("value", params, args))[0]

    def gradient_at(self, params: PyTree) -> tuple[float, PyTree]:
        """Loss and gradient, the latter in float32 or wider; one pass, 1 gradient evaluation."""
        return self._mean(lambda args: self._run("gradient", params, args))

    def product_at(self, params: PyTree, v: PyTree) -> PyTree:
        """``H(params) v`` in float32 or wider; one pass, 3 gradient evaluations."""
        return self._product_at("hessian", params, v)

    def values_at(self, points: Callable[[], Iterator[PyTree]]) -> np.ndarray:
        """The loss at many parameters, float64 [points]; one pass, in which ``points`` is called once per batch."""
        total, weights = 0.0, 0.0
        for args, weight in self.stream():
            values = []
            for params in points():
                values.append(self._run("value", params, args)[0])
                if len(values) > 2:
                    values[-3] = float(values[-3])
            total = total + weight * np.array([float(value) for value in values])
            weights += weight
        return np.asarray(total / weights)

    def product(self, operator: Operator) -> Callable[[PyTree], PyTree]:
        """``v -> H v`` at the parameters, or ``v -> G v`` with the Gauss-Newton matrix G."""
        return functools.partial(self._product_at, operator, self.params)

    def whole(self, vector: PyTree) -> PyTree:
        """A vector in the structure of the parameters, 0 outside the mask; with leading axes, if it has them."""
        leaves = jax.tree.leaves(vector)
        shape = leaves[0].shape[: leaves[0].ndim - jax.tree.leaves(self.params)[0].ndim]
        return self._block.whole(vector, [jnp.zeros(shape + leaf.shape) for leaf in self._context.frozen])

    def at(self, params: PyTree) -> PyTree:
        """All parameters, where those of the mask are these."""
        return self._block.whole(params, self._context.frozen)

    def of_block(self, make: Callable[[PyTree], PyTree | None]) -> PyTree | None:
        """What a function makes of all parameters, on the leaves of the mask; or None."""
        made = make(self.at(self.params))
        return None if made is None else self._block.select(replicate(made, self._mesh))

    def parts(self) -> Iterator[tuple["Objective", float]]:
        """One pass: the objective of each batch alone, and its weight."""
        for args, weight in self.stream():
            part = copy.copy(self)
            part._read, part._progress = lambda args=args: iter([args]), lambda passes, batches: None
            part.value = part.value_at(part.params)
            yield part, weight

    def stream(self) -> Iterator[tuple[tuple[Any, ...], float]]:
        """One pass: what the loss takes after the parameters, and its weight."""
        index = -1
        for index, args in enumerate(self._read()):
            args = as_arrays(index, args)
            weight = count_examples(args, self._options.num_examples)
            if weight == 0:
                raise ValueError(f"batch {index} holds no examples, got {jax.tree.map(jnp.shape, args[0])}")
            yield spread(args, self._mesh), weight
            self._progress(self.passes, index + 1)
        if index < 0:
            raise ValueError("batches: the data are empty, got no batches (an iterator that was read before?)")
        self.passes += 1

    def _product_at(self, operator: Operator, params: PyTree, v: PyTree) -> PyTree:
        v = replicate(v, self._mesh)
        return self._mean(lambda args: self._run(operator, params, v, args))[1]

    def _run(self, name: str, *args: Any, compiled: Programs | None = None) -> tuple[jax.Array, PyTree]:
        return (compiled or self._compiled)(name, named(self._passes, name), *args, self._context)

    def _mean(self, fn: Callable[[Any], tuple[jax.Array, PyTree]]) -> tuple[float, PyTree]:
        """The weighted mean of a value (in float64) and of a pytree over one pass."""
        values, weights = [], []
        total = tree = None
        for args, weight in self.stream():
            value, tree = fn(args)
            with self._accumulator():
                total = _accumulate(self._zeros(tree) if total is None else total, weight, tree)
            values.append(value)
            weights.append(weight)
            if len(values) > 2:  # bounded memory: no more than two batches on their way to the device
                values[-3] = float(values[-3])
        with self._accumulator():
            mean = _divide(total, math.fsum(weights), tree)
        products = [float(value) * weight for value, weight in zip(values, weights, strict=True)]
        finite = all(map(math.isfinite, products))
        return (math.fsum(products) if finite else sum(products)) / math.fsum(weights), mean

    def _zeros(self, tree: PyTree) -> PyTree:
        dtype = jnp.float64 if self._options.accumulate_in_float64 else None
        return jax.tree.map(lambda x: jnp.zeros_like(x, dtype), tree)

    def _accumulator(self) -> Any:
        return jax.enable_x64(True) if self._options.accumulate_in_float64 else contextlib.nullcontext()

    def _check_determinism(self) -> None:
        """Raises if the loss differs when it is traced and evaluated again.

        A random number from outside is frozen when the loss is traced. So the second evaluation has a trace of its
        own, and reads the data again.
        """
        anew = self._programs()
        again = self._mean(lambda args: self._run("value", self.params, args, compiled=anew))[0]
        if self.value != again:
            raise ValueError(
                f"the loss must be deterministic, got {self.value!r} and then {again!r} at the same parameters. "
                "Curvature is measured by comparing many evaluations of one function: dropout, augmentation or "
                "shuffling that changes between them measures the noise. Switch these off (or fix their keys); on a "
                "GPU XLA_FLAGS=--xla_gpu_deterministic_ops=true may be needed. check_determinism=False skips "
                "this check"
            )


@contextlib.contextmanager
def measure(
    loss_fn: LossFn,
    params: PyTree,
    batches: Any,
    *,
    mask: Any = None,
    operator: Operator = "hessian",
    **options: Unpack[DataArgs],
) -> Iterator[Objective]:
    """The objective for the time of one measurement, with its progress bar; of an operator that it must have."""
    settings = DataOptions(**options)
    check_operator(operator, loss_fn)
    with contextlib.ExitStack() as stack:
        progress = settings.progress
        if progress is True:
            progress = stack.enter_context(_bar())
        yield Objective(loss_fn, params, batches, mask, settings, progress or (lambda passes, batches: None))


@contextlib.contextmanager
def _bar() -> Iterator[ProgressFn]:
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()) as bar:
        task = bar.add_task("compiling")

        def progress(passes: int, batches: int) -> None:
            bar.update(task, description=f"pass {passes + 1}, batch {batches}")

        yield progress
