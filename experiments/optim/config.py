"""An optimizer as a config value."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Literal

import tyro

from experiments.common.errors import nearest, require, require_at_least, require_momentum
from experiments.optim.methods import METHODS, SHARED, TUNABLE, Base, Method, label
from gam_jax import Between, HvpMode

Averaging = Literal["none", "swad", "ema"]
"""What to do with the iterates: take the last one, or average them (gam_jax.averaging.swad, experiments.train.ema)."""


RhoSchedule = Literal["constant", "proportional", "inverse_sqrt"]
"""How the radii change with the step t: not at all; as the learning rate does; as 1 / sqrt(t) (Theorem 4.4)."""


STATIC = (
    *("method", "base", "warmup", "rho_schedule", "interval", "late", "between", "ascent_hvp"),
    *("curvature_share", "groups"),
)
"""Fields that decide what is compiled; the others are numbers, arguments of a compiled program."""


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """A method and its hyper-parameters; those that the method does not have are None.

    It is a pytree in which the numbers to tune are leaves and the rest is static: a jitted function is compiled once
    per method, whatever the numbers.
    """

    method: Method
    """The method; plain is the base optimizer alone."""
    learning_rate: Annotated[float, tyro.conf.arg(aliases=("--lr",))]
    """Peak learning rate; cosine to 0."""
    weight_decay: float
    """With sgd added to the gradient after the method, biases included; with adamw decoupled, of matrices only."""
    momentum: float
    """Momentum of sgd, or the first decay rate of adamw."""
    base: Base = "sgd"
    """The base optimizer."""
    warmup: float = 0.0
    """Fraction of the steps in which the learning rate rises linearly to its peak."""
    rho_schedule: RhoSchedule = "constant"
    """How the radii change: not at all, in proportion to the learning rate, or with the inverse root of the step."""
    interval: int = 1
    """Apply the method on every so many-th step, and the base optimizer alone on the others."""
    late: float = 1.0
    """Apply the method in this last fraction of the steps alone; 0.1 and the like cost little (gam_jax.late_phase)."""
    between: Between = "skip"
    """What the other steps add to the gradient: nothing, what the method added last (hold), or along the part of it
    orthogonal to the gradient (look, as LookSAM does)."""
    look_ratio: float = 0.5
    """Length of what look adds, as a multiple of the norm of the gradient; LookSAM has 0.2 to 0.7."""
    max_ratio: float | None = None
    """Bound of what the method adds, as a multiple of the norm of the gradient; none if not given."""
    clip: float | None = None
    """Bound of the norm of what the base optimizer gets, all parameters together; none if not given."""
    ascent_hvp: HvpMode | None = None
    """How GAM's ascent direction is computed; finite_difference makes a step 5 gradients rather than 6."""
    curvature_share: int = 1
    """The method's own passes see every so many-th image of the batch; the gradient sees all (share in gam_jax)."""
    groups: int = 1
    """The batch in so many groups, each of which perturbs with its own gradient (m-sharpness)."""
    sam_rho: float | None = None
    """Radius rho of gam_jax.sam and its kin: of the ascent of the loss. In accelerated GAM it is rho_prime."""
    gam_rho: float | None = None
    """Radius rho of gam_jax.gam and its kin: of the ascent of the gradient norm."""
    gam_alpha: float | None = None
    """Weight of GAM's flatness term; in accelerated GAM alpha of Algorithm 2, in FAD the share of SAM's part."""
    beta: float | None = None
    """Weight beta of accelerated GAM, or of FAD."""
    gamma: float | None = None
    """Weight of the orthogonal component in accelerated GAM, or in GSAM."""
    strength: float | None = None
    """Weight of the gradient-norm penalty, or of C-Flat's term."""

    def tuned(self) -> dict[str, float]:
        """The method's hyper-parameters by name."""
        return {name: getattr(self, name) for name in METHODS[self.method].hyperparameters}

    @property
    def rests(self) -> bool:
        """Whether there are steps on which the method does not act."""
        return self.interval > 1 or self.late < 1

    @property
    def acting_share(self) -> float:
        """The fraction of the steps on which the method acts."""
        return self.late / self.interval

    @property
    def label(self) -> str:
        """The method as people write it."""
        return label(self.method, self.base)


def check_optim(optim: OptimConfig) -> None:
    """Refuses values that make no sense, and what the method does not have."""
    require(optim.method in METHODS, f"unknown method {optim.method!r}{nearest(optim.method, METHODS)}")
    names = METHODS[optim.method].hyperparameters
    for field in dataclasses.fields(OptimConfig):
        name, value = field.name, getattr(optim, field.name)
        if name in names:
            require(value is not None, f"{optim.method!r} needs {name}")
            require(math.isfinite(value) and value >= 0, f"{name} must be a finite number >= 0, got {value}")
        elif name in TUNABLE:
            require(value is None, f"{optim.method!r} has no {name}: its hyper-parameters are {', '.join(names)}")
    require_momentum(optim.momentum)
    require(0 <= optim.warmup < 1, f"warmup must be a fraction of the steps in [0, 1), got {optim.warmup}")
    require(0 < optim.late <= 1, f"late must be a fraction of the steps in (0, 1], got {optim.late}")
    require_at_least(optim, 1, "interval", "curvature_share", "groups")
    require(
        math.isfinite(optim.look_ratio) and optim.look_ratio >= 0,
        f"look_ratio must be a finite number >= 0, got {optim.look_ratio}",
    )
    for name in ("max_ratio", "clip"):
        bound = getattr(optim, name)
        require(
            bound is None or (math.isfinite(bound) and bound > 0), f"{name} must be a finite number > 0, got {bound}"
        )
    require(
        optim.between == "skip" or optim.interval > 1,
        f"between={optim.between!r} needs an interval above 1, got {optim.interval}",
    )
    _check_recipe(optim)


def _check_recipe(optim: OptimConfig) -> None:
    """Refuses options that the method does not have."""
    defaults = {field.name: field.default for field in dataclasses.fields(OptimConfig)}
    absent = ()
    if optim.method == "plain":
        absent = ("interval", "late", "between", "look_ratio", "max_ratio", "rho_schedule", "curvature_share", "groups")
    if "gam" not in METHODS[optim.method].links:
        absent += ("ascent_hvp",)
    if optim.between != "look":
        absent += ("look_ratio",)
    for name in absent:
        value = getattr(optim, name)
        owner = repr(optim.method) if name != "look_ratio" else f"between={optim.between!r}"
        require(value == defaults[name], f"{owner} has no {name}, got {value}")


def with_method(
    plain: OptimConfig,
    method: Method,
    shared: Mapping[str, float] | None = None,
    own: Mapping[str, Mapping[str, float]] | None = None,
) -> OptimConfig:
    """The config of a method on top of a base optimizer.

    Args:
      plain: the base optimizer.
      method: the method.
      shared: in place of ``SHARED``, numbers that all methods of a config have in common.
      own: numbers of single methods, by method, in place of everything else.
    """
    common = SHARED | dict(shared or {})
    numbers = {name: common[name] if value is None else value for name, value in METHODS[method].own.items()}
    return dataclasses.replace(plain, method=method, **{**numbers, **(own or {}).get(method, {})})
