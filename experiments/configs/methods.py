"""From one set of radii and weights to the config of any method."""

import dataclasses

from experiments.optim import Method, OptimConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Radii:
    """What the methods add to the base optimizer; the defaults are those of their papers.

    The paper's own radii for exact GAM are in an appendix that was not at hand. The defaults lie in its grid.
    """

    sam_rho: float = 0.05
    """SAM (Foret et al. 2021)."""
    asam_rho: float = 0.5
    """ASAM (Kwon et al. 2021)."""
    gam_rho: float = 0.1
    gam_alpha: float = 0.5
    accelerated: dict[str, float]
    """Of :func:`gam_jax.accelerated_gam`."""


_ORTHOGONAL = 0.4
"""gamma of GSAM (Zhuang et al. 2022, ResNets)."""
_PENALTY = 0.04
"""Strength of the gradient-norm penalty (Zhao et al. 2022): 0.8 at a radius of 0.05."""
_C_FLAT = 0.2
"""Radius and strength of C-Flat (NeurIPS 2024)."""


def optimizer(plain: OptimConfig, method: Method, radii: Radii) -> OptimConfig:
    """The config of a method on top of a base optimizer."""
    a = radii.accelerated
    own: dict[Method, dict[str, float]] = {
        "sam": {"sam_rho": radii.sam_rho},
        "gam": {"gam_rho": radii.gam_rho, "gam_alpha": radii.gam_alpha},
        "sam+gam": {"sam_rho": radii.sam_rho, "gam_rho": radii.gam_rho, "gam_alpha": radii.gam_alpha},
        "accelerated_gam": {
            "sam_rho": a["rho_prime"],
            "gam_rho": a["rho"],
            "gam_alpha": a["alpha"],
            "beta": a["beta"],
            "gamma": a["gamma"],
        },
        "asam": {"sam_rho": radii.asam_rho},
        "gsam": {"sam_rho": radii.sam_rho, "gamma": _ORTHOGONAL},
        "gradient_norm_penalty": {"strength": _PENALTY},
        "c_flat": {"gam_rho": _C_FLAT, "strength": _C_FLAT},
        "fad": {"gam_rho": radii.gam_rho, "gam_alpha": 0.5, "beta": 1.0},
    }
    return dataclasses.replace(plain, method=method, **own.get(method, {}))
