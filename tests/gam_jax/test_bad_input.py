"""What is passed to init, update, value_and_grad and swad, what losses return, and what options ask of each other."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gam_jax
from tests.gam_jax.bad_values import (
    BAD_LEAVES,
    BAD_PARAMS,
    BATCH,
    COUNT,
    KEY,
    NO_ARGUMENT,
    OPAQUE,
    PARAMS,
    STRUCTURE,
    assert_refused,
    evaluate,
    never,
    rows,
    update,
)
from tests.gam_jax.family import FACTORIES, FAMILY

SHAPES = [
    ({**PARAMS, "b": jnp.ones(())}, ValueError, r"got \(\) for \(3,\) at updates\['b'\]"),
    ({**PARAMS, "b": 1.0}, ValueError, r"got \(\) for \(3,\) at updates\['b'\]"),
    ({**PARAMS, "w": np.ones((1, 2))}, ValueError, r"got \(1, 2\) for \(2,\) at updates\['w'\]"),
]
OTHERS = [None, "x", OPAQUE, 3, 1.0, [], {}, {"w": PARAMS["w"]}, {**PARAMS, "b": None}, {**PARAMS, "c": 1.0}]
UPDATES = [
    *[(value, ValueError, STRUCTURE) for value in OTHERS],
    *[(value, TypeError, shown.replace("params", "updates")) for value, _, shown in BAD_LEAVES],
    *SHAPES,
]
SAM = gam_jax.sam(never, 0.1)
STATES = [
    *rows([None, "x", 3, OPAQUE], TypeError),
    *[
        (state, TypeError, "like the first one")
        for state in (
            (), {}, optax.EmptyState(), optax.sgd(0.1, momentum=0.9).init(PARAMS),
            optax.chain(SAM).init(PARAMS), gam_jax.sam(never, 0.1, drop_nonfinite=True).init(PARAMS),
            gam_jax.friendly_sam(never, 0.1, interval=2, between="hold").init(PARAMS), SAM.init(PARAMS)[:2],
        )
    ],
    *[
        (lambda state, c=count: state._replace(count=c), ValueError, r"count .*" + re.escape(repr(count)))
        for count in ("x", 1.5, jnp.ones(2, int))
    ],
]  # fmt: skip
OTHER_PARAMS = [
    ({"w": PARAMS["w"]}, TypeError, "like the first one"),
    ({**PARAMS, "b": jnp.ones(2)}, ValueError, r"\['b'\] must have the shape \(2,\).* got Array"),
]
NO_LOSSES = [
    *rows(["x", None, True, 1j, OPAQUE, [1.0], {}, KEY, jnp.ones(2), np.ones(1), len], TypeError),
    *rows([np.nan, np.inf, -np.inf], ValueError),
]
COUNTS = [
    *[row for row in COUNT[1:] if row[0] is not None],  # 0 is a count
    *rows([NO_ARGUMENT], ValueError),
    (None, TypeError, "count=step"),
]
RESULTS = [
    *rows(["x", None, OPAQUE, len], TypeError),
    *[(v, TypeError, type(v).__name__) for v in ([1.0], (), (1.0, 0), (1.0, 2.0, 3.0), {"loss": 1.0})],
    (jnp.ones(2), TypeError, r"shape \(2,\)"),
    *[(v, TypeError, "dtype") for v in (1, True, 1j, KEY, jnp.ones((), int), np.bool_(True))],
]
RESULTS_WITH_AUX = [
    *[(v, TypeError, type(v).__name__) for v in (1.0, jnp.ones(2), None, [1.0, 0], (1.0,), (1.0, 2.0, 3.0), {}, "ab")],
    *[((v, 0), error, shown) for v, error, shown in RESULTS],
]


@pytest.mark.parametrize("name", FACTORIES)
def test_what_init_and_update_are_given(name):
    tx = FAMILY[name](never)
    assert_refused(tx.init, "param", BAD_PARAMS)
    assert_refused(lambda v: update(tx, params=v), "param", BAD_PARAMS)
    assert_refused(lambda v: update(tx, updates=v), "updates", UPDATES)


@pytest.mark.parametrize("name", FACTORIES)
def test_states_of_another_origin(name):
    tx = FAMILY[name](never)

    def with_state(state):
        state = state(tx.init(PARAMS)) if callable(state) else state
        return jax.eval_shape(lambda: tx.update(PARAMS, state, PARAMS, batch=BATCH))

    assert_refused(with_state, "state", STATES)


def test_what_value_and_grad_is_given():
    fn = gam_jax.gam_value_and_grad(never, 0.1, 0.5, interval=2)
    assert_refused(lambda v: evaluate(fn, params=v), "param", BAD_PARAMS)
    assert_refused(lambda v: evaluate(fn, count=v), "count", COUNTS)
    for given in ({"batches": BATCH}, {}, {"batch": BATCH, "key": KEY}):
        with pytest.raises(TypeError, match=r"loss_fn takes \(batch\) beside the parameters: .*'(batch|batches|key)'"):
            fn(PARAMS, **given, count=0)


@pytest.mark.parametrize("link", [True, False])
def test_what_losses_return(link):
    def step(has_aux, result):
        loss_fn = lambda params, batch: result  # noqa: E731
        if link:
            return update(gam_jax.gam(loss_fn, 0.1, 0.5, has_aux=has_aux))
        return evaluate(gam_jax.gam_value_and_grad(loss_fn, 0.1, 0.5, has_aux=has_aux))

    assert_refused(functools.partial(step, False), "loss_fn", RESULTS)
    assert_refused(functools.partial(step, True), "loss", RESULTS_WITH_AUX)


# What is averaged


AVERAGING = gam_jax.swad()


def test_what_swad_is_given():
    state = AVERAGING.init(PARAMS)
    bad_states = [
        *rows([None, "x", OPAQUE, (), optax.EmptyState(), tuple(state)], TypeError),
        (gam_jax.swad(end_patience=2).init(PARAMS), ValueError, r"recent\['b'\] must have the shape \(6, 3\)"),
        (state._replace(older={"w": PARAMS["w"]}), TypeError, "like the first one"),
        (state._replace(current=None), (TypeError, ValueError), "like the first one|params=None"),
    ]
    assert_refused(AVERAGING.init, "param", BAD_PARAMS)
    for function in (AVERAGING.update, AVERAGING.average):
        assert_refused(lambda v: function(v, PARAMS), "(state|params)", bad_states)  # noqa: B023
        assert_refused(lambda v: function(state, v), "param", BAD_PARAMS)  # noqa: B023
        assert_refused(lambda v: function(state, v), "state", OTHER_PARAMS)  # noqa: B023
    assert_refused(lambda v: AVERAGING.validate(v, 1.0), "(state|params)", bad_states)
    assert_refused(lambda v: AVERAGING.validate(state, v), "validation loss", NO_LOSSES)
    with pytest.raises(TypeError, match="validation loss must be a real scalar, got .*Tracer"):
        jax.eval_shape(AVERAGING.validate, state, jnp.ones(2))
    for name in ("start_patience", "end_patience"):
        with pytest.raises(TypeError, match=f"{name} must be known now.*Tracer"):
            jax.eval_shape(lambda n: gam_jax.swad(**{name: n}).init(PARAMS), 2)  # noqa: B023


def test_diagnostics_reads_any_state_but_no_transformation():
    for nothing in (None, "x", 3, OPAQUE, {}, (), [SAM.init], optax.EmptyState()):
        assert gam_jax.diagnostics(nothing) == {}
    with pytest.raises(TypeError, match="opt_state must be what .* init and update return, got GradientTransf"):
        gam_jax.diagnostics(SAM)


# What options and losses ask of each other


def test_unknown_options():
    for name in FACTORIES:
        with pytest.raises(TypeError, match="intervall"):
            FAMILY[name](never, intervall=2)
    with pytest.raises(TypeError, match="ascent_hvp"):
        gam_jax.sam(never, 0.1, ascent_hvp="jvp")


def test_holding_on_no_steps():
    for name in FACTORIES:
        with pytest.raises(ValueError, match="between='hold'.*interval=1"):
            FAMILY[name](never, between="hold")


def test_nothing_to_train():
    """An empty pytree is a pytree: there is nothing to do, and that is done."""
    for name in FACTORIES:
        tx = FAMILY[name](lambda params: 1.0)
        updates, state = tx.update({}, tx.init({}), {})
        assert updates == {} and state.count == 1
    averaging = gam_jax.swad(start_patience=1)
    assert averaging.average(averaging.validate(averaging.update(averaging.init({}), {}), 1.0), {}) == {}


@pytest.mark.parametrize("name", FAMILY)
def test_missing_loss_argument(name):
    with pytest.raises(TypeError, match=r"missing \['batch'\].*Got \['bach', 'value'\]"):
        jax.eval_shape(lambda: (tx := FAMILY[name](never)).update(PARAMS, tx.init(PARAMS), PARAMS, bach=0, value=1.0))


def test_optional_and_arbitrary_loss_arguments():
    """Defaults need not be given, and a loss with **kwargs gets all names."""
    seen, loss_fn = {}, lambda p, batch: jnp.sum(batch["x"] @ p["w"])

    def with_default(p, batch, scale=2.0):
        return scale * loss_fn(p, batch)

    def with_kwargs(p, **kwargs):
        seen.update(kwargs)
        return loss_fn(p, kwargs["batch"])

    jax.eval_shape(lambda: update(gam_jax.gam(with_default, 0.1, 0.5)))
    jax.eval_shape(lambda: update(gam_jax.gam(with_kwargs, 0.1, 0.5), value=1.0))
    assert set(seen) == {"batch", "value"}


def test_microbatches_that_do_not_fit():
    with pytest.raises(ValueError, match=r"same for all, got .*batch\['weights'\]\": 2.*batch\['x'\]\": 4"):
        update(gam_jax.gam(never, 0.1, 0.5, num_microbatches=2), batch=BATCH | {"weights": jnp.ones(2)})
    with pytest.raises(ValueError, match="no argument of the loss is an array"):
        update(gam_jax.gam(lambda p: jnp.sum(p["w"] ** 2), 0.1, 0.5, num_microbatches=4))
    with pytest.raises(TypeError, match="num_microbatches must be a Python integer.*Tracer"):
        jax.jit(lambda n: update(gam_jax.gam(never, 0.1, 0.5, num_microbatches=n)))(2)


def test_inside_optax_masked_says_what_to_do():
    mask = {"w": True, "b": False}
    with pytest.raises(ValueError, match="optax.masked.*perturb_mask"):
        update(optax.masked(gam_jax.gam(never, 0.1, 0.5), mask))


def test_value_and_grad_has_nowhere_to_hold():
    with pytest.raises(ValueError, match="use the link.*between='hold'"):
        gam_jax.gam_value_and_grad(never, 0.1, 0.5, interval=2, between="hold")


def test_value_and_grad_without_the_count_it_needs():
    for fn in (
        gam_jax.gam_value_and_grad(never, 0.1, 0.5, interval=2),
        gam_jax.gam_value_and_grad(never, optax.constant_schedule(0.1), 0.5),
    ):
        with pytest.raises(TypeError, match="count=step"):
            fn(PARAMS, BATCH)
