"""The mean loss over a whole data set, its gradient and its Hessian-vector products, streamed batch by batch.

The loss is traced anew for each measurement, and compiled only if that trace is new (see ``_programs``): a second
measurement with the same function and the same shapes compiles nothing.
"""

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from gam_jax._checks import check_arrays, check_function, check_params
from gam_jax._loss import bind
from gam_jax._tree import cast_like, widen
from gam_jax._types import LossFn, PyTree
from gam_jax.flatness._data import (
    DataArgs,
    DataOptions,
    ProgressFn,
    automatic,
    check_batch,
    count_examples,
    reader,
    replicate,
    spread,
)
from gam_jax.flatness._programs import Programs


def _call(loss_fn: LossFn, has_aux: bool, params: PyTree, args: tuple[Any, ...]) -> jax.Array:
    return bind(loss_fn, has_aux)(params, (args, {}))[0]


def _value(loss_fn: LossFn, has_aux: bool, params: PyTree, args: Any) -> tuple[jax.Array, Any]:
    return _call(loss_fn, has_aux, params, args), ()


def _gradient(loss_fn: LossFn, has_aux: bool, params: PyTree, args: Any) -> tuple[jax.Array, PyTree]:
    value, grad = jax.value_and_grad(functools.partial(_call, loss_fn, has_aux))(params, args)
    return value, jax.tree.map(widen, grad)


def _product(loss_fn: LossFn, has_aux: bool, params: PyTree, v: PyTree, args: Any) -> tuple[jax.Array, PyTree]:
    # jax.linearize, not jax.jvp: losses with a custom_vjp inside have no jvp of their gradient.
    loss = functools.partial(_call, loss_fn, has_aux)
    grad_and_value = lambda params: jax.value_and_grad(loss)(params, args)[::-1]  # noqa: E731
    _, product, value = jax.linearize(grad_and_value, params, has_aux=True)
    return value, jax.tree.map(widen, product(cast_like(v, params)))


_PASSES = {"value": _value, "gradient": _gradient, "product": _product}


@functools.partial(jax.jit, donate_argnums=0)
def _accumulate(total: PyTree, weight: float, tree: PyTree) -> PyTree:
    return jax.tree.map(lambda t, x: t + jnp.asarray(weight, t.dtype) * x.astype(t.dtype), total, tree)


@jax.jit
def _divide(total: PyTree, weight: float, like: PyTree) -> PyTree:
    return jax.tree.map(lambda t, x: (t / jnp.asarray(weight, t.dtype)).astype(x.dtype), total, like)


def _strong(leaf: Any) -> jax.Array:
    """The leaf as an array that is not weakly typed: a program compiled for one kind does not serve the other."""
    return jnp.asarray(leaf, jnp.result_type(leaf))


def count_parameters(params: PyTree) -> int:
    """The number of parameters, which are checked.

    Raises:
      TypeError: unless they are a pytree of real floating-point arrays.
      ValueError: if there are none.
    """
    check_arrays("params", params)
    check_params(params, params)
    size = sum(np.size(leaf) for leaf in jax.tree.leaves(params))
    if size == 0:
        raise ValueError(f"params hold nothing to measure, got no parameters: {params!r}")
    return size


def _check_loss(loss_fn: LossFn, num_arguments: int) -> None:
    check_function("loss_fn", loss_fn, " (params, batch) -> scalar")
    try:
        hash(loss_fn)
    except TypeError:
        raise TypeError(f"loss_fn must be hashable, so that it compiles once, got {loss_fn!r}") from None
    try:
        signature = inspect.signature(loss_fn)
    except ValueError:  # of a builtin
        return
    try:
        signature.bind(*range(num_arguments))
    except TypeError as error:
        taken = "(params, batch)" if num_arguments == 2 else "(params), with batches=None"
        raise TypeError(f"loss_fn must take {taken}, got {loss_fn!r} with the signature {signature}: {error}") from None


class Objective:
    r"""``L(params) = sum_b n_b L_b(params) / sum_b n_b`` over the batches b with n_b examples, and its derivatives.

    Attributes:
      params: the parameters at which it was made, on the mesh if there is one.
      value: the loss there, in float64.
      size: the number of parameters.
      machine_epsilon: that of the narrowest dtype among them.
      passes: finished passes over the data.
    """

    def __init__(self, loss_fn: LossFn, params: PyTree, batches: Any, options: DataOptions, progress: ProgressFn):
        self.size = count_parameters(params)
        _check_loss(loss_fn, 1 if batches is None else 2)
        self._loss = (loss_fn, options.has_aux)
        self._programs = Programs(self._loss)
        self._options = options
        self._mesh = None if options.mesh is None else automatic(options.mesh)
        self._read = reader(batches)
        self._progress = progress
        self.passes = 0
        self.params = replicate(jax.tree.map(_strong, params), self._mesh)
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
        v = replicate(v, self._mesh)
        return self._mean(lambda args: self._run("product", params, v, args))[1]

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

    def product(self, v: PyTree) -> PyTree:
        """``H v`` at the parameters."""
        return self.product_at(self.params, v)

    def stream(self) -> Iterator[tuple[tuple[Any, ...], float]]:
        """One pass: what the loss takes after the parameters, and its weight."""
        index = -1
        for index, args in enumerate(self._read()):
            check_batch(index, args)
            weight = count_examples(args, self._options.num_examples)
            if weight == 0:
                raise ValueError(f"batch {index} holds no examples, got {jax.tree.map(jnp.shape, args[0])}")
            yield spread(args, self._mesh), weight
            self._progress(self.passes, index + 1)
        if index < 0:
            raise ValueError("batches: the data are empty, got no batches (an iterator that was read before?)")
        self.passes += 1

    def _run(self, name: str, *args: Any, programs: Programs | None = None) -> tuple[jax.Array, PyTree]:
        fn = functools.partial(_PASSES[name], *self._loss)
        return (programs or self._programs)(name, fn, *args)

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
        anew = Programs(self._loss)
        again = self._mean(lambda args: self._run("value", self.params, args, programs=anew))[0]
        if self.value != again:
            raise ValueError(
                f"the loss must be deterministic, got {self.value!r} and then {again!r} at the same parameters. "
                "Curvature is measured by comparing many evaluations of one function: dropout, augmentation or "
                "shuffling that changes between them measures the noise. Switch these off (or fix their keys); on a "
                "GPU XLA_FLAGS=--xla_gpu_deterministic_ops=true may be needed. check_determinism=False skips "
                "this check"
            )


@contextlib.contextmanager
def measure(loss_fn: LossFn, params: PyTree, batches: Any, **options: Unpack[DataArgs]) -> Iterator[Objective]:
    """The objective for the time of one measurement, with its progress bar."""
    settings = DataOptions(**options)
    with contextlib.ExitStack() as stack:
        progress = settings.progress
        if progress is True:
            progress = stack.enter_context(_bar())
        yield Objective(loss_fn, params, batches, settings, progress or (lambda passes, batches: None))


@contextlib.contextmanager
def _bar() -> Iterator[ProgressFn]:
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()) as bar:
        task = bar.add_task("compiling")

        def progress(passes: int, batches: int) -> None:
            bar.update(task, description=f"pass {passes + 1}, batch {batches}")

        yield progress
