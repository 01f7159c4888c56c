"""Compiled programs of one measurement: every function is traced once per measurement, and compiled if that is new.

``jax.jit`` finds a program by the function object. A bound method, a callable object or a closure stays the same
object when an attribute or a variable behind it changes, and the old program would go on giving the old numbers. So
a measurement traces anew, which is cheap, and shares a compiled program only with equal traces.
"""

import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np


class _Trace:
    """What a function computes at arguments of these types; equal to others of the same operations and constants."""

    def __init__(self, owner: Hashable, fn: Callable[..., Any], args: tuple[Any, ...]):
        jaxpr, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
        # Copies: JAX keeps a converted NumPy array for as long as a trace holds it, though the array may change.
        consts = [np.array(const) if isinstance(const, np.ndarray) else const for const in jaxpr.consts]
        self.jaxpr = jex.ClosedJaxpr(jaxpr.jaxpr, consts)
        self.out_tree = jax.tree.structure(shapes)
        self._identity = (owner, _identity(self.jaxpr, {}))
        self._hash = hash(self._identity)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Trace) and self._identity == other._identity


@functools.partial(jax.jit, static_argnums=0)
def _run(trace: _Trace, *leaves: Any) -> list[Any]:
    return jex.jaxpr_as_fun(trace.jaxpr)(*leaves)


class Programs:
    """Calls functions compiled, with one trace of each in the life of this object.

    Args:
      owner: traces of different owners never share a program. Hashable.
    """

    def __init__(self, owner: Hashable):
        self._owner = owner
        self._traces: dict[Any, _Trace] = {}

    def __call__(self, name: str, fn: Callable[..., Any], *args: Any) -> Any:
        """``fn(*args)``; calls of one name with arguments of the same types share the trace of the first."""
        leaves, structure = jax.tree.flatten(args)
        signature = (name, structure, tuple(map(jax.typeof, leaves)))
        if signature not in self._traces:
            self._traces[signature] = _Trace((name, self._owner), fn, args)
        trace = self._traces[signature]
        return jax.tree.unflatten(trace.out_tree, _run(trace, *leaves))


def _identity(value: Any, names: dict[Any, int]) -> Hashable:
    """A hashable description of a jaxpr, or of a parameter of an operation: equal where the computations are."""
    if isinstance(value, jex.ClosedJaxpr | jex.Jaxpr):  # one class from JAX 0.11 on
        consts = getattr(value, "consts", ())
        return _operations(getattr(value, "jaxpr", value)), tuple(_identity(const, names) for const in consts)
    if isinstance(value, jex.Literal):
        return value.aval, _identity(value.val, names)
    if isinstance(value, jex.Var):
        return names.setdefault(value, len(names))
    if isinstance(value, tuple | list):
        return tuple(_identity(x, names) for x in value)
    if isinstance(value, dict):
        return tuple((key, _identity(x, names)) for key, x in value.items())
    if isinstance(value, float):
        return repr(value)  # nan equals itself, and -0.0 is not 0.0
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return str(value.dtype), _identity(jax.random.key_data(value), names)
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return _Same(value)
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        array = np.asarray(value)
        return array.shape, str(array.dtype), array.tobytes()
    try:
        hash(value)
    except TypeError:
        return _Same(value)
    return value


def _operations(jaxpr: Any) -> Hashable:
    names: dict[Any, int] = {}
    inputs = tuple((_identity(v, names), v.aval) for v in (*jaxpr.constvars, *jaxpr.invars))
    operations = []
    for equation in jaxpr.eqns:
        params = equation.params
        if equation.primitive.name.startswith(("custom_jvp", "custom_vjp")):
            # Rules are made anew in each trace, and do not matter: what is run here is differentiated already.
            params = {k: v for k, v in params.items() if isinstance(v, jex.Jaxpr | jex.ClosedJaxpr)}
        operands = _identity(equation.invars, names)
        results = tuple((_identity(v, names), v.aval) for v in equation.outvars)
        operations.append((equation.primitive, operands, results, _identity(params, names)))
    return inputs, tuple(operations), _identity(jaxpr.outvars, names)


class _Same:
    """Equal to the same object only."""

    def __init__(self, value: Any):
        self._value = value

    def __hash__(self) -> int:
        return id(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._value is other._value
