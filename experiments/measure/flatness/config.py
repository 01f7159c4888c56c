"""What is measured of trained networks."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from experiments.common.errors import require, require_at_least, require_distinct, require_seed
from experiments.common.identity import to_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """What every measurement of trained networks has."""

    checkpoint: tuple[Path, ...]
    """Folders of training runs, for their last checkpoint, or of checkpoints (DIR/checkpoints/STEP)."""
    output: Path
    """Folder of the results. Started again on the same folder, the same command goes on where it stopped."""
    seed: int = 0
    """Of the random directions and probes; every checkpoint gets the same."""

    def __post_init__(self):
        require_distinct("checkpoint", tuple(map(str, self.checkpoint)))
        require_seed("seed", self.seed)

    def identity(self) -> dict[str, Any]:
        """Whatever decides the numbers of one checkpoint, as JSON holds it."""
        return to_json(self, ("checkpoint", "output"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlatnessConfig(MeasureConfig):
    """Measures of flatness, of the mean loss over the whole training set with the labels that were trained on."""

    rho: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    """Radii of R0, the largest increase of the loss, and R1, rho times the largest gradient norm."""
    ascent_steps: int = 100
    """Ascent steps from each start, at most."""
    restarts: int = 9
    """Random starts of the ascent, beside the one at the parameters; the largest maximum found counts."""
    k: int = 50
    """Number of top Hessian eigenvalues."""
    trace_probes: int = 100
    """Random vectors for the trace of the Hessian."""
    density_probes: int = 10
    """Random vectors for the spectral density."""
    density_steps: int = 80
    """Lanczos steps for each of them."""
    directions: int = 100
    """Random directions along which local minima are counted, in 10 steps of 0.01."""

    def __post_init__(self):
        super().__post_init__()
        require_distinct("rho", self.rho)
        require(all(math.isfinite(r) and r > 0 for r in self.rho), f"rho must hold finite numbers > 0, got {self.rho}")
        require_at_least(self, 1, "ascent_steps", "restarts", "k", "density_steps")
        require_at_least(self, 2, "trace_probes", "density_probes", "directions")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LandscapeConfig(MeasureConfig):
    """Slices of the training loss along random filter-normalised directions, the same for every checkpoint."""

    points: int = 51
    """Points along each axis; odd, so that the middle one is the network."""
    radius: float = 1.0
    """Where the axes end; at 1 a direction is as long as the weights, filter by filter."""
    directions: int = 10
    """Number of one-dimensional slices. The two-dimensional one is along the first two directions."""

    def __post_init__(self):
        super().__post_init__()
        require(self.points >= 3 and self.points % 2 == 1, f"points must be odd and at least 3, got {self.points}")
        require_at_least(self, 2, "directions")
        require(math.isfinite(self.radius) and self.radius > 0, f"radius must be > 0, got {self.radius}")
