"""The maximum of a function over a closed ball, by projected gradient ascent from several starts."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from gam_jax import _climb
from gam_jax._checks import check_flag, check_integer, check_key, check_positive
from gam_jax._tree import add_scaled, global_norm, inner_product, scale_by
from gam_jax._types import LossFn, PyTree
from gam_jax.flatness._data import DataArgs
from gam_jax.flatness._geometry import Ball, Norm, check_geometry
from gam_jax.flatness._objective import Objective, measure
from gam_jax.flatness._vectors import norm, scale, shift

_BACKTRACKS = 8
_RECENT = 4  # points to extrapolate from
_promised = jax.jit(_climb.promised)
_shortened = jax.jit(_climb.shortened)


class Flatness(NamedTuple):
    """A maximum over the closed ball of radius rho around the parameters; with ``per_batch`` the mean of such.

    Attributes:
      value: the flatness measure.
      distance: the distance of the maximiser from the parameters in the norm of the ball, at most rho.
      stationarity: the largest increase that the gradient at the maximiser promises within the ball (the
        Frank-Wolfe gap), in the units of ``value``: 0 at a maximiser, large if the ascent was stopped too
        early.
      history: the measure along each ascent, float64 [1 + num_restarts, num_steps + 1]; never decreasing,
        constant after convergence. Row 0 starts at the parameters, the others at random points of the sphere
        (corners of the cube).
      maximizer: the parameters there; None with ``per_batch``, where each batch has its own.
    """

    value: float
    distance: float
    stationarity: float
    history: np.ndarray
    maximizer: PyTree | None


class Problem(NamedTuple):
    """A function on offsets from the centre of a ball, in its coordinates.

    Attributes:
      evaluate: offset -> (value, what ``ascent`` needs beside the offset).
      ascent: (offset, that) -> gradient of the value.
    """

    evaluate: Callable[[PyTree], tuple[float, Any]]
    ascent: Callable[[PyTree, Any], PyTree]


def maximize(
    make: Callable[[Objective, Ball], Problem],
    loss_fn: LossFn,
    params: PyTree,
    batches: PyTree,
    rho: float,
    *,
    key: jax.Array,
    num_steps: int,
    num_restarts: int,
    norm: Norm,
    adaptive: bool | PyTree | Callable[[PyTree], PyTree],
    mask: PyTree | Callable[[PyTree], PyTree] | None,
    per_batch: bool,
    **options: Unpack[DataArgs],
) -> Flatness:
    """The maximum over the ball of the mean over the data; or the mean over the batches of the maximum of each.

    Checks the arguments first, which are those of both flatness measures.
    """
    check_key(key)
    check_positive("rho", rho)
    check_integer("num_steps", num_steps)
    check_integer("num_restarts", num_restarts)
    check_geometry(norm, adaptive, params)
    check_flag("per_batch", per_batch)
    with measure(loss_fn, params, batches, mask=mask, **options) as objective:
        ball = Ball.around(objective, rho, norm, adaptive)
        if not per_batch:
            return _maximum(make(objective, ball), objective, ball, key, num_steps, num_restarts)
        found, weights = [], []
        for part, weight in objective.parts():
            one = _maximum(make(part, ball), part, ball, key, num_steps, num_restarts)
            found.append(one[:4])
            weights.append(weight)
    value, distance, gap, history = (np.average(np.stack(field), 0, weights) for field in zip(*found, strict=True))
    return Flatness(float(value), float(distance), float(gap), history, None)


def _maximum(
    problem: Problem, objective: Objective, ball: Ball, key: jax.Array, num_steps: int, num_restarts: int
) -> Flatness:
    """The best of the ascents from the centre and from ``num_restarts`` random starts."""
    history = np.zeros((1 + num_restarts, num_steps + 1))
    best = (-np.inf, None, None)
    for row, offset in enumerate(_starts(ball, key, num_restarts)):
        values, offset, seen = _ascend(problem, ball, offset, num_steps)
        history[row, : len(values)] = values
        history[row, len(values) :] = values[-1]
        if values[-1] > best[0]:
            best = (values[-1], offset, seen)
    value, offset, seen = best
    gap = ball.gap(problem.ascent(offset, seen), offset)
    return Flatness(value, ball.distance(offset), gap, history, objective.at(ball.point(offset)))


def _starts(ball: Ball, key: jax.Array, num_restarts: int) -> Iterator[PyTree]:
    yield scale(0.0, ball.center)
    for i in range(num_restarts):
        yield ball.start(jax.random.fold_in(key, i))


def _ascend(problem: Problem, ball: Ball, offset: PyTree, num_steps: int) -> tuple[list[float], PyTree, Any]:
    """The values along one ascent, its last point, and what was seen there.

    The steps are those of ``gam_jax._climb``, as many as it takes. After an infinite length the projection is the
    point of the ball that is farthest along the gradient.

    A power iteration is slow when the largest eigenvalues are close. So in l2, while the length is infinite, a point
    extrapolated from the last ones is tried first, and taken if it increases the value by no less than the
    gradient promises for the plain one.

    Raises:
      ValueError: if a value or a gradient is not finite.
    """

    def evaluate(offset: PyTree) -> tuple[float, Any]:
        value, seen = problem.evaluate(offset)
        if not np.isfinite(value):
            raise ValueError(f"the maximum over the ball must be finite, got {value} within rho={ball.rho}")
        return value, seen

    value, seen = evaluate(offset)
    values, length = [value], np.inf
    rtol = 10 * float(jnp.finfo(jnp.result_type(*jax.tree.leaves(offset))).eps)
    before, recent = None, []
    for _ in range(num_steps):
        gradient = problem.ascent(offset, seen)
        steepness = float(norm(gradient))
        if not np.isfinite(steepness):
            raise ValueError(f"the direction of ascent must be finite, got a norm of {steepness} within rho={ball.rho}")
        if ball.gap(gradient, offset) <= rtol * max(abs(value), ball.rho * ball.steepness(gradient)):
            break
        if before is not None:
            length = float(_next_length(length, offset, gradient, *before, ball.diameter))
        before = offset, gradient
        if length == np.inf and ball.norm == "l2":
            plain = ball.farthest(gradient)
            recent = [*recent[1 - _RECENT :], (offset, plain)]
            if len(recent) > 1:
                there = _extrapolated(recent, ball.rho)
                new_value, new_seen = evaluate(there)
                if new_value >= value + float(_promised(gradient, offset, plain)):
                    offset, value, seen = there, new_value, new_seen
                    values.append(value)
                    continue
        recent = recent[-1:] if length == np.inf else []
        for _ in range(_BACKTRACKS):
            there = _moved(ball, offset, gradient, length / steepness)
            new_value, new_seen = evaluate(there)
            if _climb.is_enough(value, new_value, float(_promised(gradient, offset, there))):
                break
            length = float(_shortened(length, ball.diameter))
        else:
            break
        offset, value, seen = there, new_value, new_seen
        values.append(value)
    return values, offset, seen


@jax.jit
def _extrapolated(recent: list[tuple[PyTree, PyTree]], rho: float) -> PyTree:
    """Anderson acceleration of the map from points to their images under the plain step.

    The images are combined, with weights of sum 1, as makes the same combination of image - point the shortest.
    """
    residuals = [add_scaled(image, -1.0, offset) for offset, image in recent]
    gram = jnp.stack([jnp.stack([inner_product(a, b) for b in residuals]) for a in residuals])
    regular = gram / jnp.trace(gram) + 10 * jnp.finfo(gram.dtype).eps * jnp.eye(len(recent), dtype=gram.dtype)
    weights = jnp.linalg.solve(regular, jnp.ones(len(recent), gram.dtype))
    weights = weights / weights.sum()
    weights = jnp.where(jnp.isfinite(weights).all(), weights, jnp.eye(len(recent), dtype=gram.dtype)[-1])
    there = scale_by(0.0, recent[0][0])
    for weight, (_, image) in zip(weights, recent, strict=True):
        there = add_scaled(there, weight, image)
    return scale_by(rho / global_norm(there), there)


@jax.jit
def _next_length(
    length: float, offset: PyTree, gradient: PyTree, last_offset: PyTree, last_gradient: PyTree, diameter: float
) -> jax.Array:
    step, change = add_scaled(offset, -1.0, last_offset), add_scaled(gradient, -1.0, last_gradient)
    return _climb.next_length(length, step, change, global_norm(gradient), diameter)


def _moved(ball: Ball, offset: PyTree, gradient: PyTree, factor: float) -> PyTree:
    """``offset + factor * gradient``, projected onto the ball."""
    return ball.farthest(gradient) if factor == np.inf else ball.projected(shift(offset, factor, gradient))
