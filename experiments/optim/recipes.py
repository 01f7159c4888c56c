"""Methods with options, mostly such as make them cheaper, by name; a comparison takes them beside the methods."""

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from experiments.optim.config import Averaging
from experiments.optim.methods import METHODS, Base, Method
from experiments.optim.methods import label as method_label
from gam_jax import Between


class Recipe(NamedTuple):
    """A method with options.

    Attributes:
      method: the method.
      label: as it stands in tables; None for the method itself.
      options: fields of :class:`experiments.optim.OptimConfig` that are not tuned.
      averaging: of the iterates.
    """

    method: Method
    label: str | None
    options: dict[str, Any]
    averaging: Averaging = "none"


def _every(method: Method, interval: int, between: Between, max_ratio: float | None = None) -> Recipe:
    label = f"{METHODS[method].label}, 1 of {interval} steps"
    label += ", held" if between == "hold" else ""
    label += "" if max_ratio is None else ", bounded"
    return Recipe(method, label, {"interval": interval, "between": between, "max_ratio": max_ratio})


def _on_a_fifth(interval: int) -> Recipe:
    held = _every("gam", interval, "hold", 1.0)
    return held._replace(label=f"{held.label}, on 1/5 of the batch", options={**held.options, "curvature_share": 5})


RECIPES: dict[str, Recipe] = {
    "gam_skip_2": _every("gam", 2, "skip"),
    "gam_skip_5": _every("gam", 5, "skip"),
    "gam_skip_10": _every("gam", 10, "skip"),
    "gam_skip_20": _every("gam", 20, "skip"),
    "gam_hold_5": _every("gam", 5, "hold"),
    "gam_hold_10": _every("gam", 10, "hold"),
    "gam_hold_20": _every("gam", 20, "hold"),
    "gam_hold_5_bounded": _every("gam", 5, "hold", 1.0),
    "gam_hold_10_bounded": _every("gam", 10, "hold", 1.0),
    "gam_rough_ascent": Recipe("gam", "GAM, rough ascent", {"ascent_hvp": "finite_difference"}),
    "gam_fifth_of_batch": Recipe("gam", "GAM on 1/5 of the batch", {"curvature_share": 5}),
    "gam_fifth_hold_2": _on_a_fifth(2),
    "gam_fifth_hold_4": _on_a_fifth(4),
    "sam_hold_2": _every("sam", 2, "hold"),
    "sam_hold_5": _every("sam", 5, "hold"),
    "look_sam_5": Recipe("sam", "LookSAM, 1 of 5 steps", {"interval": 5, "between": "look"}),
    "sam_fifth_of_batch": Recipe("sam", "SAM on 1/5 of the batch", {"curvature_share": 5}),
    "sam_late": Recipe("sam", "SAM in the last tenth", {"late": 0.1}),
    "gam_late": Recipe("gam", "GAM in the last tenth", {"late": 0.1}),
    "swad": Recipe("plain", "SWAD", {}, averaging="swad"),
}
ENTRANTS: tuple[str, ...] = (*METHODS, *RECIPES)
"""All that can be compared."""

if TYPE_CHECKING:
    RecipeName = str
else:
    RecipeName = Literal[tuple(RECIPES)]  # what the command line offers


def recipe(name: str) -> Recipe:
    """What a name stands for: a recipe, or a method as it is."""
    return RECIPES[name] if name in RECIPES else Recipe(name, None, {})


def label(name: str, base: Base) -> str:
    """A method or recipe as people write it; plain has the name of its base optimizer."""
    found = recipe(name)
    return found.label or method_label(found.method, base)


def hyperparameters(name: str) -> tuple[str, ...]:
    """What a method or recipe has to tune."""
    return METHODS[recipe(name).method].hyperparameters
