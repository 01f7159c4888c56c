"""The number of local minima and maxima of the loss around a point (Fig. 2 of the GAM paper)."""

from collections.abc import Iterator
from typing import NamedTuple, Unpack

import jax
import numpy as np

from gam_jax._checks import check_integer, check_key, check_positive
from gam_jax._types import LossFn, PyTree
from gam_jax.flatness._data import DataArgs, with_data_options
from gam_jax.flatness._objective import measure
from gam_jax.flatness._vectors import norm, random_like, scale, shift


class LocalExtrema(NamedTuple):
    """Local minima and maxima along random directions.

    Attributes:
      mean_minima: the mean number of local minima along a direction.
      minima_standard_error: its standard error over the directions.
      mean_maxima: the mean number of local maxima along a direction.
      maxima_standard_error: its standard error.
      minima: the number along each direction, int [num_directions].
      maxima: likewise.
      losses: the loss at each point, float64 [num_directions, num_steps + 1], the first at the parameters.
    """

    mean_minima: float
    minima_standard_error: float
    mean_maxima: float
    maxima_standard_error: float
    minima: np.ndarray
    maxima: np.ndarray
    losses: np.ndarray


@with_data_options
def count_local_minima(
    loss_fn: LossFn,
    params: PyTree,
    batches: PyTree,
    *,
    key: jax.Array,
    num_directions: int = 100,
    num_steps: int = 10,
    step_size: float = 0.01,
    threshold: float | None = None,
    **options: Unpack[DataArgs],
) -> LocalExtrema:
    """Counts the local minima and maxima of the loss along random directions (section 5.1 of the GAM paper).

    From the parameters the loss is evaluated after each of ``num_steps`` steps of length ``step_size`` along a
    random unit direction. A minimum is counted where the loss turns from falling to rising, a maximum where it
    turns from rising to falling; the two end points are neither. The loss turns once it has moved by more than
    ``threshold`` from the lowest or highest value since the last turn: without a threshold, rounding makes
    minima in flat places.

    Cost: ``num_directions * num_steps`` evaluations of the loss on the whole data, without gradients; the data
    are read once. Memory: 3 copies of the parameters; directions are drawn again for each batch.

    Args:
      loss_fn: ``loss_fn(params, batch) -> scalar``, the mean over the examples of the batch;
        ``loss_fn(params)`` with ``batches=None``. The paper uses the training loss.
      params: pytree of floating-point arrays.
      batches: as in :func:`hessian_top_eigenvalues`.
      key: typed random key, for the directions.
      num_directions: at least 2. The paper's value is the default, as for the next two.
      num_steps: steps along each direction.
      step_size: length of a step, in units of the parameters.
      threshold: change of the loss that counts. Default: 8 machine epsilons of the parameters, times the loss.
      **options: see :class:`gam_jax.flatness.DataOptions`.

    Returns:
      :class:`LocalExtrema`.

    Raises:
      TypeError: for parameters that are not floating-point, a raw uint32 key, a one-shot iterator of batches.
      ValueError: for a step size or threshold out of range, empty data, a loss that is not deterministic, or
        not finite at one of the points.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gam_jax import flatness
      >>> def loss_fn(params):
      ...     return jnp.cos(100 * jnp.linalg.norm(params))
      >>> counts = flatness.count_local_minima(loss_fn, jnp.zeros(2), None, key=jax.random.key(0))
      >>> print(counts.mean_minima, counts.mean_maxima)
      2.0 1.0
    """
    check_key(key)
    check_integer("num_directions", num_directions, at_least=2)
    check_integer("num_steps", num_steps, at_least=2)
    check_positive("step_size", step_size)
    if threshold is not None:
        check_positive("threshold", threshold, or_zero=True)
    with measure(loss_fn, params, batches, **options) as objective:

        def points() -> Iterator[PyTree]:
            for i in range(num_directions):
                direction = random_like(jax.random.fold_in(key, i), objective.params)
                direction = scale(1 / norm(direction), direction)
                for step in range(1, num_steps + 1):
                    yield shift(objective.params, step * step_size, direction)

        values = objective.values_at(points).reshape(num_directions, num_steps)
        eps = objective.machine_epsilon
    losses = np.column_stack([np.full(num_directions, objective.value), values])
    if not np.isfinite(losses).all():
        direction, step = np.argwhere(~np.isfinite(losses))[0]
        raise ValueError(
            f"the loss must be finite, got {losses[direction, step]} at distance {step * step_size:.3g} ({step_size=})"
        )
    least = 8 * eps * abs(objective.value) if threshold is None else threshold
    minima, maxima = np.array([count_turns(row, least) for row in losses]).T
    means = [counts.mean() for counts in (minima, maxima)]
    errors = [counts.std(ddof=1) / num_directions**0.5 for counts in (minima, maxima)]
    return LocalExtrema(float(means[0]), float(errors[0]), float(means[1]), float(errors[1]), minima, maxima, losses)


def count_turns(values: np.ndarray, threshold: float) -> tuple[int, int]:
    """How often a sequence turns from falling to rising (minima) and from rising to falling (maxima)."""
    minima = maxima = 0
    lowest = highest = values[0]
    rising = falling = False
    for value in values[1:]:
        lowest, highest = min(lowest, value), max(highest, value)
        if not rising and value > lowest + threshold:
            minima += falling
            rising, falling, highest = True, False, value
        elif not falling and value < highest - threshold:
            maxima += rising
            rising, falling, lowest = False, True, value
    return minima, maxima
