"""Every argument of every public function is checked where it enters: the error names it and shows the value.

A row is a function, an argument, a bad value, and what the error must be: raised in gam_jax, not in JAX. The loss must
not be called, so that every error comes before any work. The methods and their options come from ``family`` and from
their signatures, so that a new one is in the table, or misses its rows.
"""

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gam_jax
from tests.gam_jax.bad_values import (
    BAD_PARAMS,
    BATCH,
    CHOICE,
    COEFFICIENT,
    COUNT,
    FLAG,
    INTEGER,
    KEY,
    NO_FUNCTION,
    NUMBER,
    OPAQUE,
    PARAMS,
    PARTS,
    POSITIVE,
    RADII,
    SIGNATURES,
    STRUCTURE,
    assert_refused,
    evaluate,
    never,
    returns,
    rows,
    update,
)
from tests.gam_jax.family import FACTORIES, FAMILY


class Callee(NamedTuple):
    """A function, good arguments, and what is done with its result."""

    function: Callable[..., Any]
    good: Mapping[str, Any]
    use: Callable[..., Any] = lambda result: result
    fractions: tuple[str, ...] = ()


LINKS = {
    name: Callee(m.factory, {"loss_fn": never, **m.coefficients, **m.options}, update, m.fractions)
    for name, m in FAMILY.items()
    if name in FACTORIES
}
FUNCTIONS = {
    f"{name}_value_and_grad": Callee(
        getattr(gam_jax, f"{name}_value_and_grad"), {**good, "interval": lambda count: True}, evaluate, fractions
    )
    for name, (_, good, _, fractions) in {**LINKS, "sam_gam": Callee(never, {"loss_fn": never})}.items()
}
DRAWS = Callee(
    gam_jax.random_perturbation,
    {"loss_fn": never, "bound": 0.1},
    lambda loss: jax.eval_shape(lambda: loss(PARAMS, BATCH, noise_key=KEY)),
)
MEANS = gam_jax.class_prototypes(jnp.ones((4, 2)), jnp.arange(4), 4)
SMALLER = gam_jax.class_prototypes(jnp.ones((4, 2)), jnp.arange(4), 3)
RELEASED = {"rho": 0.2, "rho_prime": 0.02, "alpha": 0.6, "beta": 0.5, "gamma": 0.03}
CALLEES = (
    LINKS
    | FUNCTIONS
    | {
        "Options": Callee(gam_jax.Options, {}, lambda options: update(gam_jax.gam(never, 0.1, 0.5, **vars(options)))),
        "asam_scaling": Callee(gam_jax.asam_scaling, {"params": PARAMS}),
        "late_phase": Callee(gam_jax.late_phase, {"steps": 10, "fraction": 0.5}, fractions=("fraction",)),
        "released_coefficients": Callee(gam_jax.released_coefficients, RELEASED, fractions=("alpha", "beta")),
        "swad": Callee(gam_jax.swad, {}),
        "random_perturbation": DRAWS,
        "discrete_beta": Callee(gam_jax.discrete_beta, {"key": KEY, "shape": (2,)}),
        "clamp_to": Callee(gam_jax.clamp_to, {"bound": 0.1}),
        "class_prototypes": Callee(
            gam_jax.class_prototypes, {"features": jnp.ones((4, 2)), "labels": jnp.arange(4), "num_classes": 4}
        ),
        "prototype_distance": Callee(gam_jax.prototype_distance, {"prototypes": MEANS, "to": MEANS}),
        "prototype_logits": Callee(gam_jax.prototype_logits, {"features": jnp.ones((3, 2)), "prototypes": MEANS}),
    }
)
NEEDS = {
    "between": {"interval": 2},
    "look_ratio": {"interval": 2, "between": "look"},
    "microbatched": {"num_microbatches": 2},
    "microbatch_weight": {"num_microbatches": 2},
}
"""What gives an option its meaning."""


def call(name, argument, value):
    callee = CALLEES[name]
    result = callee.function(**{**callee.good, **NEEDS.get(argument, {}), argument: value})
    return callee.use(result)


# For each argument, whichever function has it.
BAD = {
    "loss_fn": [
        *rows([None, *NO_FUNCTION], TypeError),
        (lambda: 0.0, TypeError, "first argument"),
        (lambda *, params: 0.0, TypeError, "first argument"),
        (lambda **params: 0.0, TypeError, "first argument"),
        (min, TypeError, "<built-in function min>"),
    ],
    "rho": RADII,
    "has_aux": FLAG,
    "sam_rho": RADII,
    "steps": INTEGER,
    "fraction": NUMBER,
    "has_diagnostics": FLAG,
    "mismatch": FLAG,
    "groups_by": CHOICE,
    "groups": PARTS,
    "share": [row for row in PARTS if not (type(row[0]) is int and row[0] == 3)],  # which it need not divide
    "look_ratio": NUMBER,
    "per_replica": [*FLAG, (True, ValueError, "axis_name=None")],
    "drop_nonfinite": FLAG,
    "interval of late_phase": INTEGER,
    "interval": [
        *COUNT,
        *SIGNATURES,
        *returns([0, 1, 1.0, "x", None, [True], {}, OPAQUE, jnp.ones(2, bool), jnp.ones(()), 1j, KEY], TypeError),
    ],
    "between": [*CHOICE, *rows([None], ValueError)],
    "hvp": [*CHOICE, *rows([None], ValueError)],
    "ascent_hvp": CHOICE,
    "ascent_steps": INTEGER,
    "restarts": [
        *rows([3, "3", True, 0.5, 1j, OPAQUE, {}, (), [KEY], len, np.ones(2), jnp.ones(2, "uint32")], TypeError),
        (KEY, ValueError, r"keys of shape \(\)"),
        (jax.random.split(KEY, (2, 2)), ValueError, r"keys of shape \(2, 2\)"),
        (jax.random.split(KEY, 0), ValueError, r"keys of shape \(0,\)"),
    ],
    "max_ratio": [row for row in POSITIVE if row[0] is not None],
    "rho_prime": POSITIVE,
    "eps": NUMBER,
    "perturb_mask": [
        *rows(["w", b"w", 1, 0.0, 1j, OPAQUE, KEY, np.ones(2), jnp.asarray(True)], TypeError),
        *SIGNATURES,
        *[(v, ValueError, STRUCTURE) for v in (True, [True], {}, (), {"w": True}, {"w": True, "b": None})],
        ({"w": True, "b": 1}, TypeError, r"1 at perturb_mask\['b'\]"),
        ({"w": "x", "b": True}, TypeError, r"'x' at perturb_mask\['w'\]"),
        ({"w": True, "b": np.ones(3, bool)}, TypeError, r"array\(\[ True.*at perturb_mask\['b'\]"),
        *returns([None, "x", 1, True, OPAQUE, [], {}, {"w": True}], ValueError, STRUCTURE),
        *returns([{"w": True, "b": jnp.asarray(True)}, {"w": True, "b": "x"}, {"w": 0, "b": True}], TypeError, "bools"),
    ],
    "adaptive": [
        *rows(["True", "", 1, 0, 0.5, None, 1j], TypeError),
        *SIGNATURES,
        *[(v, ValueError, STRUCTURE) for v in (OPAQUE, KEY, np.ones(2), jnp.ones(()), b"w", [1.0], {}, {"w": 1.0})],
        *[
            ({"w": v, "b": 1.0}, TypeError, re.escape(f"{v!r} at adaptive['w']"))
            for v in ("x", 1, True, 1j, OPAQUE, KEY, jnp.ones(2, int), np.array(["a", "b"]))
        ],
        ({"w": jnp.ones(3), "b": 1.0}, ValueError, r"\(3,\) for \(2,\) at adaptive\['w'\]"),
        *returns([None, "x", 1, True, 0.5, OPAQUE, [], {}, {"w": 1.0}, jnp.ones(2)], ValueError, STRUCTURE),
        *returns([{"w": "x", "b": 1.0}, {"w": 1, "b": 1.0}, {"w": 1j, "b": 1.0}], TypeError, r"at adaptive\['w'\]"),
    ],
    "axis_name": [
        *rows(["nowhere", OPAQUE, b"d", len], ValueError),
        *[(v, ValueError, "'nowhere'") for v in (("nowhere",), ["nowhere"])],
        *rows([True, 7, 0.5, {}, {"d": 1}, [["d"]], np.ones(2), jnp.ones(2), ("d", {})], TypeError),
    ],
    "num_microbatches": [
        *[row for row in PARTS if row[0] is not None],
    ],
    "microbatched": [
        *rows([3, 0.5, True, 1j, OPAQUE, [], {}, (), b"batch", ["batch", 3], [None], {3: True}, np.ones(2)], TypeError),
        *rows(["nonsense"], ValueError),
        (("batch", "nonsense"), ValueError, r"\['nonsense'\], of \['batch'\]"),
        *[({"batch": v}, TypeError, re.escape(f"{v!r} at microbatched['batch']")) for v in ("x", 1, OPAQUE)],
        ({"batch": {"x": True}}, ValueError, "structure of the arguments"),
        ({"batch": None}, ValueError, "structure of the arguments"),
        ({"batch": {"x": True, "z": True}}, ValueError, "structure of the arguments"),
        ({"batch": False}, ValueError, "False.*no array with a leading axis"),
    ],
    "microbatch_weight": [
        *rows(NO_FUNCTION, TypeError),
        *SIGNATURES,
        *returns(["x", None, OPAQUE, [[1.0], []]], TypeError),
        *returns([jnp.ones(2), jnp.ones(2, complex), True, 1j, KEY], TypeError, "real scalar, got shape"),
    ],
    "params": BAD_PARAMS,
    "eta": NUMBER,
    "biases": [
        *[(v, ValueError, STRUCTURE) for v in ("b", True, 3, OPAQUE, [], {}, {"b": True}, {"w": None, "b": True})],
        *[({"w": v, "b": True}, TypeError, re.escape(f"{v!r} at biases['w']")) for v in ("x", 0, jnp.zeros(2), OPAQUE)],
    ],
    "bound": NUMBER,
    "draws": INTEGER,
    "spread": NUMBER,
    "draws_by": CHOICE,
    "noise": [
        *rows(NO_FUNCTION, TypeError),
        (lambda key: 0.1, TypeError, r"signature \(key\)"),
        *[
            (lambda key, shape, v=v: v, TypeError, r"shape \(\d,\)")
            for v in (0.1, "x", None, jnp.ones(5), jnp.ones(3, bool))
        ],
    ],
    "key": [*rows([None, 0, np.array([0, 1], np.uint32), "key"], TypeError), (jax.random.split(KEY), ValueError, "2,")],
    "shape": rows([3, None, "x", (-1,), (2.0,), jnp.ones(2)], TypeError),
    "features": rows([None, 3, "x", jnp.ones(2), jnp.ones((2, 2), int), [[1.0]]], TypeError),
    "labels": rows([None, [0, 1, 2, 3], jnp.arange(3), jnp.ones(4), jnp.ones((4, 1), int)], TypeError),
    "num_classes": INTEGER,
    "prototypes": rows([None, jnp.ones((4, 2)), (1, 2), OPAQUE], TypeError),
    "to": [*rows([None, jnp.ones((4, 2)), (1, 2), OPAQUE], TypeError), (SMALLER, TypeError, r"\(3, 2\)")],
    "start_patience": COUNT,
    "end_patience": COUNT,
    "tolerance_ratio": NUMBER,
}  # fmt: skip


def signature(name):
    return inspect.signature(CALLEES[name].function).parameters


def bad(name, argument):
    """The rows of an argument: of coefficients by their type, of the others by their name."""
    above = rows([1.5, 2], ValueError) if argument in CALLEES[name].fractions else []
    if name == "released_coefficients":
        return [*NUMBER, *above]
    if not argument.endswith("rho") and "ScalarOrSchedule" in str(signature(name)[argument].annotation):
        return [*COEFFICIENT, *above]
    return BAD.get(f"{argument} of {name}", BAD.get(argument))


SHARED = FUNCTIONS.keys() - {"gam_value_and_grad"}
"""Their options are those of the links and of that one function."""
ROWS = [
    (name, argument)
    for name in CALLEES
    for argument in signature(name)
    if name not in SHARED or argument not in signature("Options")
]


def test_no_function_is_left_out():
    public = {name for name in gam_jax.__all__ if inspect.isfunction(getattr(gam_jax, name))}
    assert public | {"Options"} == CALLEES.keys() | {"diagnostics"}
    assert sum(len(bad(*row)) for row in ROWS) > 1500


@pytest.mark.parametrize(("name", "argument"), ROWS)
def test_bad_values_are_refused(name, argument):
    names = {"params": "param", "loss_fn": "loss|argument"}
    assert_refused(functools.partial(call, name, argument), f"({names.get(argument, argument)})", bad(name, argument))
