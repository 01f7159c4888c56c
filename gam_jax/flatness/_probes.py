"""Random probes of the Hessian, and the standard error of what they give."""

import jax
import numpy as np

from gam_jax._types import PyTree
from gam_jax.flatness._objective import Objective
from gam_jax.flatness._vectors import random_like, unit_like


def probe(objective: Objective, key: jax.Array, num_probes: int, i: int) -> PyTree:
    """Random signs; with a budget for all of them the unit vectors, which make every estimate exact."""
    if num_probes >= objective.size:
        return unit_like(objective.params, i)
    return random_like(jax.random.fold_in(key, i), objective.params, "signs")


def standard_error(samples: np.ndarray, exact: bool) -> np.ndarray:
    """The standard error of the mean over the first axis; infinite for a single sample."""
    if exact or len(samples) < 2:
        return np.full(samples.shape[1:], 0.0 if exact else np.inf)
    return np.std(samples, axis=0, ddof=1) / len(samples) ** 0.5
