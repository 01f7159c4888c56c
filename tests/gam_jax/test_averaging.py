"""SWAD: golden cases of start and end, against a literal transcription on lists."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gam_jax.averaging import swad


def reference(losses, start_patience, end_patience, ratio):
    """First and last segment of the average, counted from 0, or None (NOTES section 6, on the whole list)."""
    start = None
    for i in range(len(losses)):
        if start is None:
            window = losses[max(i - start_patience + 1, 0) : i + 1]
            if len(window) == start_patience and window[0] == min(window):
                start, threshold = i - start_patience + 1, (1 + ratio) * np.mean(window)
        elif i + 1 >= end_patience and min(losses[i - end_patience + 1 : i + 1]) > threshold:
            return start, i - end_patience
    return None if start is None else (start, len(losses) - 1)


def run(averaging, losses, steps=2, tail=0, jit=True):
    """Averages the iterates 1, 2, 3, ... with ``steps`` per validation; returns the state and the last iterate."""
    update, validate = (map(jax.jit, averaging[1:3])) if jit else averaging[1:3]
    params = {"w": jnp.zeros(2), "b": jnp.zeros((), jnp.bfloat16)}
    state = averaging.init(params)
    for loss in [*losses, None]:
        for _ in range(steps if loss is not None else tail):
            params = jax.tree.map(lambda x: x + 1, params)
            state = update(state, params)
        if loss is not None:
            state = validate(state, loss)
    return state, params


GOLDEN = [
    # losses, first segment, last segment (from 0) at N_s = 3, N_e = 6, r = 0.3
    ([5, 4, 3, 2, 1], None, None),
    ([5, 4, 3, 3.1, 3.2], 2, 4),
    ([3, 3, 3], 0, 2),  # ties: the oldest is a minimum
    ([5, 1, 2, 2] + [9] * 6, 1, 3),  # threshold 2.17, six losses above it
    ([5, 1, 2, 2] + [9] * 5, 1, 8),  # five are not enough
    ([5, 1, 2, 2] + [9] * 5 + [2.1] + [9] * 6 + [0.1] * 9, 1, 9),  # nothing after the end counts
    ([5, 1, 1, 1, 0.5, 0.4] + [1.29] * 9, 1, 14),  # not above 1.3
    ([5, 1, 1, 1, 0.5, 0.4] + [1.31] * 9, 1, 5),
]


@pytest.mark.parametrize(("losses", "first", "last"), GOLDEN)
@pytest.mark.parametrize("jit", [True, False])
def test_golden_starts_and_ends(losses, first, last, jit):
    averaging = swad()
    state, params = run(averaging, losses, jit=jit)
    average = averaging.average(state, params)
    if first is None:
        assert not state.started
        expected = 2.0 * len(losses)
    else:
        assert reference(losses, 3, 6, 0.3) == (first, last)
        expected = np.mean(np.arange(2 * first + 1, 2 * last + 3))
    np.testing.assert_allclose(average["w"], expected, rtol=1e-6)
    assert bool(state.ended) == (first is not None and last < len(losses) - 1)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("patience", [(3, 6), (4, 2), (1, 1), (2, 5)])
def test_random_losses_against_the_transcription(seed, patience):
    rng = np.random.default_rng(seed)
    losses = (1 + np.abs(np.linspace(-1, 1.5, 30)) + 0.5 * rng.uniform(size=30)).astype(np.float32).tolist()
    averaging = swad(start_patience=patience[0], end_patience=patience[1], tolerance_ratio=0.1)
    state, params = run(averaging, losses, steps=3)
    expected = reference(losses, *patience, 0.1)
    if expected is None:
        assert not state.started
    else:
        first, last = expected
        iterates = np.arange(3 * first + 1, 3 * last + 4)
        np.testing.assert_allclose(averaging.average(state, params)["w"], iterates.mean(), rtol=1e-5)


def test_iterates_after_the_last_validation_count():
    averaging = swad(start_patience=1)
    state, params = run(averaging, [1.0], steps=2, tail=3)
    np.testing.assert_allclose(averaging.average(state, params)["w"], 3)  # of 1, ..., 5


def test_iterates_after_the_end_do_not():
    averaging = swad(start_patience=1, end_patience=1)
    state, params = run(averaging, [1.0, 9.0], tail=5)
    np.testing.assert_allclose(averaging.average(state, params)["w"], 1.5)


def test_dtypes_and_state():
    averaging = swad(start_patience=1)
    state, params = run(averaging, [1.0, 1.0])
    average = averaging.average(state, params)
    assert average["b"].dtype == jnp.bfloat16 and average["w"].dtype == jnp.float32
    assert state.older["b"].dtype == jnp.float32
    before = jax.tree.map(lambda x: (x.shape, x.dtype), averaging.init(params))
    assert before == jax.tree.map(lambda x: (x.shape, x.dtype), state)


def test_a_diverged_iterate_after_the_end_does_not_poison_the_average():
    averaging = swad(start_patience=1, end_patience=1)
    state, params = run(averaging, [1.0, 9.0])
    broken = jax.tree.map(lambda x: x * jnp.nan, params)
    state = averaging.validate(averaging.update(state, broken), 9.0)
    np.testing.assert_allclose(averaging.average(state, params)["w"], 1.5)


def test_a_nan_loss_inside_jit_neither_starts_nor_ends():
    averaging = swad(start_patience=1, end_patience=1)
    state, _ = run(averaging, [np.nan], jit=True)
    assert not state.started
    state = jax.jit(averaging.validate)(averaging.validate(state, 1.0), np.nan)
    assert state.started and not state.ended


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"start_patience": 0}, ValueError, "got start_patience=0"),
        ({"end_patience": 1.5}, ValueError, "got end_patience=1.5"),
        ({"tolerance_ratio": -0.1}, ValueError, "got tolerance_ratio=-0.1"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        swad(**arguments)
    averaging = swad()
    with pytest.raises(ValueError, match="the validation loss must be finite, got nan"):
        averaging.validate(averaging.init(jnp.ones(1)), float("nan"))
    with pytest.raises(TypeError, match="int32"):
        averaging.init(jnp.ones(1, jnp.int32))


def test_no_inf_or_nan_stands_for_what_has_not_been():
    """So that jax_debug_nans and jax_debug_infs can hunt those that are wrong."""
    with jax.debug_nans(True), jax.debug_infs(True):
        for jit in (True, False):
            averaging = swad(start_patience=2, end_patience=3)
            state, params = run(averaging, [3, 2, 2.5, 9, 9, 9], jit=jit)
            assert bool(state.ended)
            np.testing.assert_allclose(averaging.average(state, params)["w"], np.mean(np.arange(3, 7)))


def test_a_state_with_nan_for_what_has_not_been_goes_on():
    """As versions before this one wrote it."""
    averaging = swad(start_patience=2, end_patience=2)
    state, nan = averaging.init(jnp.zeros(())), jnp.asarray(jnp.nan, jnp.float32)
    state = state._replace(recent_losses=jnp.full(2, nan), threshold=nan)
    for i, loss in enumerate([3.0, 2.0, 1.0, 1.1, 1.2, 9.0, 9.0]):
        state = averaging.validate(averaging.update(state, jnp.asarray(i + 1.0)), loss)
        assert bool(state.started) == (i >= 3)
    assert averaging.average(state, jnp.asarray(0.0)) == 4.0


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_iterates_that_are_not_finite_are_left_out(bad, jit):
    """Of 1, ..., 8 in segments of two, the third, and all of the fourth segment."""
    averaging = swad(start_patience=1)
    update = jax.jit(averaging.update) if jit else averaging.update
    state = averaging.init({"w": jnp.zeros(2), "b": jnp.zeros(())})
    for i in range(1, 9):
        w = jnp.array([float(i), bad if i in (3, 7, 8) else i])
        state = update(state, {"w": w, "b": jnp.asarray(float(i))})
        if i % 2 == 0:
            state = averaging.validate(state, 1.0)
    average = averaging.average(state, {"w": jnp.zeros(2), "b": jnp.zeros(())})
    np.testing.assert_allclose(average["w"], np.mean([1, 2, 4, 5, 6]), rtol=1e-6)
    np.testing.assert_allclose(average["b"], np.mean([1, 2, 4, 5, 6]), rtol=1e-6)
    assert state.recent_counts.sum() + state.older_count == 5
