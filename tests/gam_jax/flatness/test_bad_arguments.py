"""Every argument of every public function is checked where it enters: the error names it and shows the value.

A row is a function, an argument, a bad value, and what the error must be. The loss must not be called, so that every
error comes before any work, and none is one of JAX's own.
"""

import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gam_jax import flatness

KEY = jax.random.key(0)
PARAMS = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
BATCHES = [np.ones((4, 2), np.float32)]


def never(params, batch):
    raise AssertionError("the loss was called before the arguments were checked")


GOOD = {
    "loss_fn": never,
    "params": PARAMS,
    "batches": BATCHES,
    "rho": 0.1,
    "key": KEY,
    "k": 1,
    "direction_x": PARAMS,
    "direction_y": PARAMS,
    "other": PARAMS,
    "vectors": {"w": jnp.ones((2, 3)), "b": jnp.ones(2)},
    "others": {"w": jnp.ones((2, 3)), "b": jnp.ones(2)},
    "logits": jnp.ones(2),
    "networks": {"one": PARAMS},
}
FUNCTIONS = {name: getattr(flatness, name) for name in flatness.__all__ if inspect.isfunction(getattr(flatness, name))}
del FUNCTIONS["follow_top_eigenvalue"]  # gets its loss alone, and the rest later: test_follow.py


def signature(name):
    return inspect.signature(FUNCTIONS[name]).parameters


def call(name, argument, value):
    taken = {known: good for known, good in GOOD.items() if known in signature(name)}
    return FUNCTIONS[name](**{**taken, argument: value})


class Opaque:
    def __repr__(self):
        return "<opaque>"


OPAQUE = Opaque()


def rows(values, error, but=()):
    """Bad values that the error shows as they are; ``error`` may be a function of the value."""
    kind = error if callable(error) and not isinstance(error, type) else lambda value: error
    return [(value, kind(value), re.escape(repr(value))) for value in values if not any(value is x for x in but)]


def integer_error(value):
    return ValueError if type(value) is int else TypeError


INTEGERS = rows([0, -1, 1.5, True, "3", None, np.nan, [2], jnp.ones(2), 1j, OPAQUE], integer_error)
NATURALS = [row for row in INTEGERS if type(row[0]) is not int or row[0] != 0]
OPTIONAL_INTEGERS = [row for row in INTEGERS if row[0] is not None]
NO_POSITIVES = [0, -0.1, np.nan, np.inf, -np.inf, "0.1", True, None, [0.1], jnp.ones(2), 1j, OPAQUE, {}]
POSITIVES, OPTIONAL_POSITIVES = rows(NO_POSITIVES, ValueError), rows(NO_POSITIVES, ValueError, but=[None])
FLAGS = rows(["False", 0, 1, None, 0.0, [True]], TypeError)
FUNCTION_VALUES = rows(["mean", 3, OPAQUE], TypeError)
NUMBERS = rows(
    [[], [np.nan], [0.0, np.inf], [[0.0]], 0.5, "abc", ["a"], [None], [1j], [[0.0], [0.0, 1.0]], OPAQUE], ValueError
)
DIRECTIONS = [
    *rows(["x", OPAQUE, None], TypeError),
    ({"w": PARAMS["w"]}, ValueError, r"got \{'w': \(2, 3\)\}"),
    ({**PARAMS, "b": jnp.ones(2)}, ValueError, r"'b': \(2,\)"),
    ({**PARAMS, "b": OPAQUE}, TypeError, r"\['b'\]=<opaque>"),
    ({**PARAMS, "b": jnp.full(3, np.nan)}, ValueError, r"\['b'\]=Array\(\[nan, nan, nan\]"),
    ({**PARAMS, "b": np.array([1, np.inf, 1])}, ValueError, r"\['b'\]=Array\(\[ 1., inf,  1.\]"),
    ({**PARAMS, "b": np.full(3, 1j)}, TypeError, r"0.\+1.j"),
    ({**PARAMS, "b": np.array(["a"] * 3)}, TypeError, r"\['b'\]=array\(\['a', 'a', 'a'\]"),
]

VECTORS = [
    *rows([None, "x", OPAQUE], TypeError),
    ({"w": jnp.ones((2, 3)), "b": jnp.ones(3)}, ValueError, r"\(2, 3\)"),
    ({"w": jnp.ones(())}, ValueError, r"\(\)"),
]

# For each argument, whichever function has it: bad values, the error, and how it shows the value.
BAD = {
    "loss_fn": [
        *FUNCTION_VALUES,
        (None, TypeError, "loss_fn=None"),
        (lambda: 0.0, TypeError, r"with the signature \(\)"),
        (lambda params: 0.0, TypeError, r"with the signature \(params\)"),
        (lambda params, batch, key: 0.0, TypeError, r"\(params, batch, key\).*'key'"),
    ],
    "params": [
        *rows([None, "weights", OPAQUE], TypeError),
        ({"w": "x"}, TypeError, r"params\['w'\]='x'"),
        ({"w": OPAQUE}, TypeError, r"params\['w'\]=<opaque>"),
        ({"w": True}, TypeError, r"params\['w'\]=True"),
        ({"w": KEY}, TypeError, r"params\['w'\]=Array\(\(\), dtype=key"),
        ({"w": jnp.ones(2, int)}, TypeError, r"int32 at params\['w'\]"),
        ({"w": 1j}, TypeError, r"1j at params\['w'\]"),
        ({}, ValueError, r"\{\}"),
        ({"w": jnp.ones(0)}, ValueError, r"shape=\(0,\)"),
    ],
    "batches": [
        *rows([3, "abc", b"abc", OPAQUE, len], TypeError),
        (iter(BATCHES), TypeError, "list_iterator"),
        (jnp.ones(()), ValueError, r"\(\)"),
        (np.ones(3), ValueError, r"\(3,\)"),
        ([], ValueError, "no batches"),
        (np.ones((0, 4)), ValueError, "no batches"),
        ([np.ones((0, 2))], ValueError, r"\(0, 2\)"),
        ([np.array(["a"])], TypeError, r"array\(\['a'\]"),
        ([{"x": OPAQUE}], TypeError, r"<opaque> at batch 0\['x'\]"),
        ([np.array([None])], TypeError, r"array\(\[None\]"),
        ({"x": np.ones((2, 3)), "y": np.ones((3, 3))}, ValueError, r"\(2, 3\).*\(3, 3\)"),
        ([{"x": np.ones(2), "y": np.ones(3)}], ValueError, r"2, .*3\}.*num_examples"),
    ],
    "rho": POSITIVES,
    "key": [
        *rows([None, 0, np.array([0, 1], np.uint32), "key", OPAQUE], TypeError),
        (jax.random.split(KEY), ValueError, r"shape \(2,\)"),
    ],
    "k": [*INTEGERS, (10, ValueError, "at most 9.*k=10")],
    "which": rows(["LM", None, 1, ["largest"], np.ones(2)], ValueError),
    "rtol": OPTIONAL_POSITIVES,
    "basis_size": [*OPTIONAL_INTEGERS, (2, ValueError, "at least 3.*=2"), (10, ValueError, "at most 9.*=10")],
    "max_products": [*OPTIONAL_INTEGERS, (5, ValueError, "at least 9.*=5")],
    "return_vectors": FLAGS,
    "num_probes": [*INTEGERS, (1, ValueError, "at least 2.*=1")],
    "num_steps": INTEGERS,
    "num_restarts": INTEGERS,
    "num_directions": [*INTEGERS, (1, ValueError, "at least 2.*=1")],
    "num": INTEGERS,
    "step_size": POSITIVES,
    "threshold": [row for row in OPTIONAL_POSITIVES if row[0] is not NO_POSITIVES[0]],
    "bandwidth": OPTIONAL_POSITIVES,
    "grid": NUMBERS,
    "x": NUMBERS,
    "y": NUMBERS,
    "direction_x": DIRECTIONS,
    "direction_y": [row for row in DIRECTIONS if row[0] is not None],
    "filter_axis": [*rows(["last", None, True, 1.0, [0], OPAQUE], TypeError), *rows([2, -3], ValueError)],
    "norm": rows(["L2", None, 2, ["l2"], OPAQUE], ValueError),
    "adaptive": [
        *rows(["yes", None, 1, 0.5], TypeError),
        ({"w": 1.0}, ValueError, r"\{'w': \*\}"),
        ({"w": 1.0, "b": "x"}, TypeError, r"'x' at adaptive\['b'\]"),
        ({"w": 1.0, "b": jnp.ones(2)}, ValueError, r"\(2,\) for \(3,\) at adaptive\['b'\]"),
    ],
    "mask": [
        *rows(["w", True, OPAQUE], ValueError),
        ({"w": True}, ValueError, r"\{'w': \*\}"),
        ({"w": True, "b": 1}, TypeError, r"1 at mask\['b'\]"),
        ({"w": False, "b": False}, ValueError, "nothing to measure"),
        (lambda params: {"w": True}, ValueError, r"\{'w': \*\}"),
    ],
    "per_batch": FLAGS,
    "operator": [*rows(["GGN", None, 1, OPAQUE], ValueError), ("ggn", TypeError, "SplitLoss.*loss_fn=<function never")],
    "loss_args": [
        *rows([3, "stats", ["stats"], OPAQUE], TypeError),
        ({1: np.ones(2)}, TypeError, r"\{1: array"),
        ({"stats": OPAQUE}, TypeError, r"<opaque> at loss_args\['stats'\]"),
        ({"stats": {"mean": "x"}}, TypeError, r"'x' at loss_args\['stats'\]\['mean'\]"),
        ({"stats": np.ones(2)}, TypeError, r"\['stats'\], got <function never"),
    ],
    "networks": [
        *rows([None, 3, "one", {}, [PARAMS], OPAQUE], TypeError),
        ({1: PARAMS}, TypeError, r"networks=\{1: "),
        ({"one": PARAMS, "two": {"w": "x"}}, TypeError, r"\['two'\]: .*params\['w'\]='x'"),
    ],
    "radii": [*NUMBERS, ([0.1, 0.0], ValueError, r"\[0.1, 0.0\]")],
    "density_probes": [*NATURALS, (1, ValueError, "at least 2.*=1")],
    "density_steps": INTEGERS,
    "num_lines": NATURALS,
    "own_args": [
        *rows([3, "one", OPAQUE], TypeError),
        ({"one": 3}, TypeError, r"\{'one': 3\}"),
        ({"three": {}}, ValueError, r"own_args of \['three'\]"),
    ],
    "num_samples": [*INTEGERS, (1, ValueError, "at least 2.*=1")],
    "num_points": [*INTEGERS, (2, ValueError, "at least 3.*=2")],
    "other": DIRECTIONS,
    "vectors": VECTORS,
    "others": [*VECTORS, ({"w": jnp.ones((2, 4)), "b": jnp.ones(2)}, ValueError, r"'w': \(4,\)")],
    "logits": rows([None, 3, [1.0], jnp.ones(2, int), OPAQUE], TypeError),
    "has_aux": FLAGS,
    "accumulate_in_float64": FLAGS,
    "check_determinism": FLAGS,
    "num_examples": [
        *FUNCTION_VALUES,
        (lambda batch: -1, ValueError, r"\(batch\)=-1"),
        (lambda batch: np.nan, ValueError, r"\(batch\)=nan"),
        (lambda batch: "4", ValueError, r"\(batch\)='4'"),
        (lambda batch: np.ones(2), ValueError, r"\(batch\)=array\(\[1., 1.\]"),
    ],
    "mesh": rows(["data", PartitionSpec("data"), 8, True, OPAQUE], TypeError),
    "progress": rows(["yes", None, 1, 0, OPAQUE], TypeError),
}
NAMES = {"params": "param", "batches": "batch"}
ROWS = [(name, argument) for name in FUNCTIONS for argument in BAD if argument in signature(name)]
NUM_ROWS = sum(len(BAD[argument]) for _, argument in ROWS)


def test_no_argument_is_left_out():
    assert {argument for name in FUNCTIONS for argument in signature(name)} == set(BAD)
    assert NUM_ROWS > 900


@pytest.mark.parametrize(("name", "argument"), ROWS)
def test_bad_values_are_refused(name, argument):
    for value, error, shown in BAD[argument]:
        with pytest.raises(error, match=f"(?s){NAMES.get(argument, argument)}.*{shown}"):
            call(name, argument, value)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if "params" in signature(name)])
def test_not_inside_jit(name):
    with pytest.raises(TypeError, match="params must be known now.*inside jit.*Tracer"):
        jax.jit(lambda params: call(name, "params", params))(PARAMS)


def test_parameters_that_are_not_finite():
    bad = {**PARAMS, "b": jnp.array([1.0, np.nan, 1.0])}
    with pytest.raises(ValueError, match=r"params must be finite, got params\['b'\]=Array\(\[ 1., nan,  1.\]"):
        flatness.filter_normalized_directions(bad, key=KEY)


@pytest.mark.parametrize(
    "measure",
    [
        flatness.zeroth_order_flatness_one_step,
        flatness.first_order_flatness_one_step,
        functools.partial(flatness.zeroth_order_flatness, key=KEY),
        functools.partial(flatness.first_order_flatness, key=KEY),
    ],
)
def test_a_radius_whose_loss_overflows(measure):
    with pytest.raises(ValueError, match="must be finite.*got .*rho=1e[+]25"):
        measure(lambda w: jnp.sum(w**2) ** 2, jnp.ones(2), None, 1e25)
