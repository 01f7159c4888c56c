"""What composes must compose: any options, on any pytree, in any dtype, for one update of every method."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gam_jax.family import FACTORIES, FAMILY

DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]
SHAPES = [(), (1,), (3,), (0,), (2, 0), (2, 3)]
BATCH = jnp.linspace(-1, 1, 8)


def pytrees(leaves):
    """Arrays in dicts, lists and tuples, with None and empty subtrees between."""
    children = lambda inner: st.one_of(  # noqa: E731
        st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
        st.lists(inner, max_size=2),
        st.tuples(inner, st.none()),
    )
    return st.recursive(leaves, children, max_leaves=4)


@st.composite
def parameters(draw, dtypes=DTYPES):
    """A pytree of parameters between 0.5 and 1.5, with or without any array in it."""
    shapes = draw(pytrees(st.sampled_from(SHAPES).map(lambda shape: np.zeros(shape))))
    kinds = draw(st.lists(st.sampled_from(dtypes), min_size=4, max_size=4))
    leaves, structure = jax.tree.flatten(shapes)
    return jax.tree.unflatten(structure, [_ramp(x.shape, kinds[i % 4]) for i, x in enumerate(leaves)])


def _ramp(shape, dtype):
    return jnp.asarray(np.linspace(0.5, 1.5, int(np.prod(shape))).reshape(shape), dtype)


def _mask(params):
    leaves, structure = jax.tree.flatten(params)
    return jax.tree.unflatten(structure, [i % 2 == 0 for i in range(len(leaves))])


@st.composite
def options(draw):
    """Any that every method takes, and that do not exclude each other."""
    maybe = lambda **values: {k: draw(v) for k, v in values.items() if draw(st.booleans())}  # noqa: E731
    chosen = maybe(
        max_ratio=st.sampled_from([0.1, 10.0, jnp.float32(1)]),
        hvp=st.sampled_from(["linearize", "jvp", "reverse", "finite_difference"]),
        perturb_mask=st.sampled_from([None, _mask]),
        adaptive=st.sampled_from([False, True, lambda params: jax.tree.map(lambda p: jnp.abs(p) + 0.5, params)]),
        eps=st.sampled_from([0, 0.0, 1e-6, jnp.float32(1e-3)]),
        drop_nonfinite=st.booleans(),
        has_aux=st.booleans(),
        mismatch=st.booleans(),
        share=st.sampled_from([1, 2]),
        groups=st.sampled_from([1, 2]),
        groups_by=st.sampled_from(["scan", "vmap"]),
        num_microbatches=st.sampled_from([None, 1, 2]),
        microbatched=st.sampled_from([None, "batch", ("batch",), {"batch": True}]),
        microbatch_weight=st.just(lambda batch: jnp.sum(batch**2)),
        interval=st.sampled_from([1, 2, np.int64(3), lambda count: True, lambda count: count < 1]),
    )
    if callable(chosen.get("interval", 1)) or chosen.get("interval", 1) > 1:
        chosen |= maybe(between=st.sampled_from(["skip", "hold", "look"]), look_ratio=st.sampled_from([0, 0.5, 2.0]))
    return chosen


def loss_of(has_aux):
    def loss_fn(params, batch):
        waves = [jnp.sum(jnp.cos(leaf.astype(float))) for leaf in jax.tree.leaves(params)]
        value = sum(waves, jnp.zeros(())) * jnp.mean(1 + batch**2)
        return (value, batch) if has_aux else value

    return loss_fn


def link(name, chosen, **coefficients):
    return FAMILY[name](loss_of(chosen.get("has_aux", False)), **coefficients, **chosen)


def gradients(params):
    return jax.tree.map(lambda p: (-jnp.sin(p.astype(float)) * jnp.mean(1 + BATCH**2)).astype(p.dtype), params)


def abstract(tree):
    return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree), jax.tree.structure(tree)


def check_types(name, chosen, params):
    """Updates as they came in, the state as it was before: traced, not run."""
    tx = link(name, chosen)
    state = tx.init(params)
    updates, after = jax.eval_shape(lambda g, s, p: tx.update(g, s, p, batch=BATCH), params, state, params)
    assert abstract(updates) == abstract(params)
    assert abstract(after) == abstract(state)
    weak = [x.weak_type for x in jax.tree.leaves((updates, after))]
    assert not any(weak)  # as lax.scan asks of a carry


def step(name, chosen, params, **coefficients):
    tx, grads = link(name, chosen, **coefficients), gradients(params)
    return grads, *tx.update(grads, tx.init(params), params, batch=BATCH)


def check_numbers(name, chosen, params):
    """A smooth loss gives finite updates, and the step is counted."""
    _, updates, state = step(name, chosen, params)
    for leaf in jax.tree.leaves((updates, state)):
        assert np.isfinite(np.asarray(leaf, np.float64)).all()
    assert state.count == 1


def check_nothing_added(name, coefficient, chosen, params):
    """Nothing at all; the mean over groups of unequal weights rounds."""
    grads, updates, _ = step(name, chosen, params, **{coefficient: 0.0})
    rounds = chosen.get("groups", 1) > 1 and "microbatch_weight" in chosen
    for update, grad in zip(jax.tree.leaves(updates), jax.tree.leaves(grads), strict=True):
        rtol = float(jnp.finfo(grad.dtype).eps) if rounds else 0
        np.testing.assert_allclose(np.asarray(update, np.float64), np.asarray(grad, np.float64), rtol=rtol)


def some(examples):
    return settings(derandomize=True, database=None, deadline=None, max_examples=examples)


methods = pytest.mark.parametrize("name", FACTORIES)
additive = pytest.mark.parametrize(
    ("name", "coefficient"), [("gam", "alpha"), ("gam", "rho"), ("gradient_norm_penalty", "strength")]
)
anything = given(chosen=options(), params=parameters())


@methods
@some(8)
@anything
def test_structure_and_dtypes_stay(name, chosen, params):
    check_types(name, chosen, params)


@some(8)
@anything
def test_structure_and_dtypes_stay_in_float64(chosen, params):
    with jax.enable_x64(True):
        check_types("gam", chosen, jax.tree.map(lambda p: p.astype(jnp.float64), params))


@some(8)
@anything
def test_numbers_stay_finite(chosen, params):
    check_numbers("gam", chosen, params)


@additive
@some(4)
@anything
def test_nothing_is_added_by_a_coefficient_of_zero(name, coefficient, chosen, params):
    check_nothing_added(name, coefficient, chosen, params)


@pytest.mark.slow
@methods
@some(30)
@anything
def test_structure_and_dtypes_stay_in_many_cases(name, chosen, params):
    check_types(name, chosen, params)


@pytest.mark.slow
@methods
@some(20)
@anything
def test_numbers_stay_finite_in_many_cases(name, chosen, params):
    check_numbers(name, chosen, params)


@pytest.mark.slow
@additive
@some(20)
@anything
def test_nothing_is_added_in_many_cases(name, coefficient, chosen, params):
    check_nothing_added(name, coefficient, chosen, params)
