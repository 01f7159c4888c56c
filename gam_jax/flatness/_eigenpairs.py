"""Lanczos' method for a few eigenpairs: which Ritz pairs are wanted, when they are found, what to restart with."""

import warnings
from typing import Literal

import numpy as np

from gam_jax.flatness._krylov import Krylov

Which = Literal["largest", "smallest", "magnitude"]
_ORDER = {"largest": lambda x: -x, "smallest": lambda x: x, "magnitude": lambda x: -np.abs(x)}


def top_ritz_pairs(
    krylov: Krylov, k: int, which: Which, rtol: float, max_products: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k wanted Ritz values and their coordinates in the rows of the basis."""
    size = krylov.size
    set_aside = np.full(k, np.nan)  # the values found before the present search for what they hide
    searching = False
    krylov.start_at_random()
    while True:
        krylov.step()
        values, coordinates, residuals = krylov.ritz()
        order = np.argsort(_ORDER[which](values), kind="stable")
        wanted = order[:k]
        found = values[wanted], coordinates[:, wanted]
        bound = rtol * np.abs(values).max()
        full, exhausted = krylov.length == size, krylov.beta == 0
        converged = krylov.length >= (k if exhausted else k + 2) and bool((residuals[wanted] <= bound).all())
        unhidden = k == 1 or np.abs(found[0] - set_aside).max() <= bound if converged else False
        if krylov.length == krylov.dimension or (unhidden and (full or exhausted or not searching)):
            return found
        if krylov.products >= max_products:
            _warn(krylov.products, residuals[wanted].max(), bound, converged)
            return found
        if converged and (full or exhausted or not searching):
            set_aside, searching = found[0], True
            krylov.restart(*found, keep_residual=False)
            krylov.start_at_random()
        elif exhausted:
            krylov.start_at_random()
        elif full:
            searching = False
            kept = order[: k + (size - k) // 3]
            krylov.restart(values[kept], coordinates[:, kept], keep_residual=True)


def _warn(products: int, residual: float, bound: float, converged: bool) -> None:
    missing = (
        "did not confirm that no eigenvalue is repeated or missing"
        if converged
        else f"did not bring all residuals below {bound:.3g}, got {residual:.3g}"
    )
    warnings.warn(
        f"{products} Hessian-vector products {missing}: give a larger max_products, basis_size or rtol",
        RuntimeWarning,
        stacklevel=4,
    )
