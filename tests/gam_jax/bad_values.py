"""Bad values, the errors that they must get, and how a table of them is checked."""

import decimal
import fractions
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gam_jax

HERE = pathlib.Path(gam_jax.__file__).parent
KEY = jax.random.key(0)
PARAMS = {"w": jnp.ones(2), "b": jnp.ones(3)}
BATCH = {"x": np.ones((4, 2), np.float32), "y": np.ones(4, np.float32)}


class Opaque:
    def __repr__(self):
        return "<opaque>"


OPAQUE = Opaque()


def never(params, batch):
    raise AssertionError("the loss was called before the arguments were checked")


def update(tx, params=PARAMS, updates=PARAMS, state=None, **extra):
    """One step, traced: errors must come before anything runs."""
    state = tx.init(PARAMS) if state is None else state
    return jax.eval_shape(lambda: tx.update(updates, state, params, **({"batch": BATCH} | extra)))


def evaluate(value_and_grad, params=PARAMS, batch=BATCH, count=0, memory=PARAMS):
    """The same in the form without a state; who needs neither count nor memory leaves them out."""
    return jax.eval_shape(lambda: value_and_grad(params, batch, count=count, memory=memory))


def rows(values, error, but=()):
    """Bad values, the error, and how it shows them: as they are."""
    return [(value, error, re.escape(repr(value))) for value in values if not any(value is x for x in but)]


def returns(values, error, shown="{}"):
    """Functions of one argument that return bad values."""
    return [(lambda _, v=value: v, error, shown.format(re.escape(repr(value)))) for value in values]


PREFIXES = [[0.1], {"w": 0.1}]
NOT_NUMBERS = [
    "0.1", b"1", None, True, np.True_, jnp.asarray(True), 1j, np.complex64(1j), [], {}, (), *PREFIXES, OPAQUE, KEY,
    np.array("a"), np.array(None), decimal.Decimal("0.1"), fractions.Fraction(1, 2), len,
    jax.ShapeDtypeStruct((), jnp.float32),
]  # fmt: skip
BAD_NUMBERS = [
    -0.1, -1, np.nan, np.inf, -np.inf, 10**400, np.float32(-2.5), np.float64(np.nan), jnp.asarray(-0.1), jnp.ones(2),
    np.ones(1), np.array([]),
]  # fmt: skip
NO_ARGUMENT = lambda: 0.1  # noqa: E731
TWO_ARGUMENTS = lambda a, b: 0.1  # noqa: E731
SIGNATURES = [(NO_ARGUMENT, TypeError, r"signature \(\)"), (TWO_ARGUMENTS, TypeError, r"signature \(a, b\)")]

NUMBER = [*rows(NOT_NUMBERS, TypeError), *rows(BAD_NUMBERS, ValueError), *rows([lambda count: 0.1], TypeError)]
POSITIVE = [*NUMBER, *rows([0, 0.0, jnp.zeros(())], ValueError)]
SCHEDULED = ["0.1", None, True, jnp.ones(2), 1j, OPAQUE, KEY, jnp.asarray(True), len]
COEFFICIENT = [
    *rows(NOT_NUMBERS, TypeError, but=[len]),
    *rows(BAD_NUMBERS, ValueError),
    *SIGNATURES,
    *returns([*SCHEDULED, [0.1], {}, {"w": 0.1, "b": 0.1}], TypeError),
]
RADII = [
    *rows(NOT_NUMBERS, TypeError, but=[len, *PREFIXES]),
    *rows(BAD_NUMBERS, ValueError),
    *SIGNATURES,
    *returns(SCHEDULED, TypeError),
    *[(radii, ValueError, "structure of the parameters.*prefix.*got") for radii in (*PREFIXES, {"a": 0.1})],
    *returns([[0.1], {}, {"w": 0.1}], ValueError, "structure of the parameters.*prefix.*got"),
    *returns([{"w": 0.1, "b": "x"}], TypeError, "'x'"),
    ({"w": 0.1, "b": "x"}, TypeError, r"rho\['b'\]='x'"),
    ({"w": -1, "b": 0.1}, ValueError, r"rho\['w'\]=-1"),
    ({"w": jnp.ones(2), "b": 0.1}, ValueError, r"rho\['w'\]=Array"),
    ({"w": NO_ARGUMENT, "b": 0.1}, TypeError, r"rho\['w'\].*signature"),
]
COUNT = rows(
    [0, -3, 2.5, True, np.True_, "2", b"2", None, np.nan, np.inf, [2], {"k": 2}, (2,), 1j, OPAQUE, KEY,
     jnp.ones(2, int), jnp.asarray(2.0), np.array(None), np.array("2"), 2**31, 10**400],
    ValueError,
)  # fmt: skip
PARTS = [*COUNT, (3, ValueError, "=3 and a batch of 4"), (8, ValueError, "=8 and a batch of 4")]
INTEGER = [
    *rows([2.5, True, "2", None, np.nan, [2], {}, 1j, OPAQUE, KEY, jnp.ones(2, int), np.array("2"), len], TypeError),
    *rows([0, -3], ValueError),
]
FLAG = rows(["False", "", b"", 0, 1, None, 0.0, np.nan, [True], {}, (), OPAQUE, jnp.asarray(True), len, 1j], TypeError)
CHOICE = rows(
    ["hessian", "", "SKIP", b"skip", 0, 1.0, True, ["skip"], ("jvp",), {}, OPAQUE, np.ones(2), np.array("skip"), 1j],
    ValueError,
)  # fmt: skip
NO_FUNCTION = ["mean", 3, True, 0.5, 1j, OPAQUE, [len], {}, np.ones(2), KEY]
STRUCTURE = "must have the structure of the parameters, .*'b'.*got .*"
BAD_LEAVES = [
    ({**PARAMS, "b": value}, TypeError, re.escape(shown) + r" at params\['b'\]")
    for value, shown in [
        ("x", "'x'"), (OPAQUE, "<opaque>"), (3, "3"), (True, "True"), (KEY, "key<fry>"), (len, repr(len)),
        (jnp.ones(3, int), "int32"), (np.ones(3, complex), "complex64"), (np.array(["a"]), "<U1"),
        (np.array([None]), "object"), (jnp.ones(3, bool), "bool"),
    ]
]  # fmt: skip
BAD_PARAMS = [
    (None, ValueError, "params=None"),
    *rows(["x", b"x", OPAQUE, 3, True, 1j, len], TypeError),
    *BAD_LEAVES,
    ({**PARAMS, "b": optax.MaskedNode()}, ValueError, "optax.masked.*perturb_mask"),
]


def complaint(function, argument, value, error, shown):
    """What is wrong with the error, if anything."""
    try:
        result = function(value)
    except Exception as got:
        trace = got.__traceback__
        while trace.tb_next:
            trace = trace.tb_next
        raised_in = pathlib.Path(trace.tb_frame.f_code.co_filename)
        if not isinstance(got, error) or not re.search(f"(?s){argument}.*{shown}", str(got)):
            return f"{argument}={value!r}: {type(got).__name__} in {raised_in}: {got}"
        if HERE not in raised_in.parents:
            return f"{argument}={value!r}: raised in {raised_in}"
        return None
    return f"{argument}={value!r} gave {result!r}"


def assert_refused(function, argument, rows):
    wrong = [complaint(function, argument, *row) for row in rows]
    assert not any(wrong), "\n".join(filter(None, wrong))
