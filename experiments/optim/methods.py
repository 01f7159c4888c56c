"""The methods, a row each: all that is known of one stands in its row, and everything else reads the table."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import optax

import gam_jax

Base = Literal["sgd", "adamw"]
"""The optimizer at the end of the chain, under every method."""
BASE = ("learning_rate", "weight_decay")
"""What every method has to tune for its base optimizer."""
SHARED = {"sam_rho": 0.05, "gam_rho": 0.1, "gam_alpha": 0.5}
"""What a config gives to its methods in common, unless it says otherwise: SAM's radius (Foret et al. 2021); radius and
weight of exact GAM lie in the paper's grid, its own are in an appendix that was not at hand."""

Link = Callable[[Callable[..., Any], Mapping[str, Any], Mapping[str, Any]], optax.GradientTransformationExtraArgs]
"""``link(loss_fn, numbers, options)``: a link of an optax chain, from the method's numbers by name."""


class Row(NamedTuple):
    """A method.

    Attributes:
      label: as it stands in tables.
      color: in all pictures.
      trial_seed: decides which points of its grid a study tries; never changed, so that finished studies stay valid.
      own: its hyper-parameters beside those of the base optimizer, with their values in a config. None is the value
        that the config gives to all its methods (``SHARED``).
      links: what comes before the base optimizer, by name.
      at_once: for a method with Hessian-vector products, gradient and link in one function, which shares their passes
        by construction (:func:`gam_jax.gam_value_and_grad`); made as a link is.
      shares: those of its hyper-parameters that are shares: values above 1 in a common grid are not for them.
    """

    label: str
    color: str
    trial_seed: int
    own: Mapping[str, float | None]
    links: dict[str, Link]
    shares: tuple[str, ...] = ()
    at_once: Callable[..., Any] | None = None

    @property
    def second_order(self) -> bool:
        """Whether it has Hessian-vector products."""
        return "gam" in self.links or self.at_once is not None

    @property
    def hyperparameters(self) -> tuple[str, ...]:
        """All that it has to tune."""
        return (*BASE, *self.own)


def released(**settings: float) -> dict[str, float]:
    """The numbers of accelerated GAM from the settings of the authors' released program."""
    found = gam_jax.released_coefficients(**settings)
    names = {"sam_rho": "rho_prime", "gam_rho": "rho", "gam_alpha": "alpha", "beta": "beta", "gamma": "gamma"}
    return {ours: found[theirs] for ours, theirs in names.items()}


def _sam(loss_fn: Callable[..., Any], n: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    return gam_jax.sam(loss_fn, n["sam_rho"], **options)


def _gam(loss_fn: Callable[..., Any], n: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    return gam_jax.gam(loss_fn, n["gam_rho"], n["gam_alpha"], **options)


METHODS: dict[str, Row] = {
    "plain": Row("SGD", "#555555", 0, {}, {}),
    "sam": Row("SAM", "#0072b2", 1, {"sam_rho": None}, {"sam": _sam}),
    "gam": Row(
        "GAM",
        "#d55e00",
        2,
        {"gam_rho": None, "gam_alpha": None},
        {"gam": _gam},
        at_once=lambda loss_fn, n, options: gam_jax.gam_value_and_grad(
            loss_fn, n["gam_rho"], n["gam_alpha"], **options
        ),
    ),
    "sam+gam": Row(
        "SAM + GAM",
        "#009e73",
        3,
        {"sam_rho": None, "gam_rho": None, "gam_alpha": None},
        {"sam": _sam, "gam": _gam},
    ),
    "accelerated_gam": Row(
        "accelerated GAM",
        "#e69f00",
        4,
        released(rho=0.2, rho_prime=0.03, alpha=0.1, beta=0.1, gamma=0.05),  # for CIFAR-10
        {
            "accelerated_gam": lambda loss_fn, n, options: gam_jax.accelerated_gam(
                loss_fn, n["gam_rho"], n["sam_rho"], n["gam_alpha"], n["beta"], n["gamma"], **options
            )
        },
        shares=("gam_alpha", "beta"),
    ),
    "asam": Row(
        "ASAM",
        "#56b4e9",
        5,
        {"sam_rho": 0.5},  # Kwon et al. 2021
        {"asam": lambda loss_fn, n, options: gam_jax.sam(loss_fn, n["sam_rho"], adaptive=True, **options)},
    ),
    "gsam": Row(
        "GSAM",
        "#3b4cc0",
        6,
        {"sam_rho": None, "gamma": 0.4},  # Zhuang et al. 2022, ResNets
        {"gsam": lambda loss_fn, n, options: gam_jax.sam(loss_fn, n["sam_rho"], gamma=n["gamma"], **options)},
    ),
    "gradient_norm_penalty": Row(
        "gradient-norm penalty",
        "#cc79a7",
        7,
        {"strength": 0.04},  # Zhao et al. 2022: 0.8 at a radius of 0.05
        {
            "gradient_norm_penalty": lambda loss_fn, n, options: gam_jax.gradient_norm_penalty(
                loss_fn, n["strength"], **options
            )
        },
        at_once=lambda loss_fn, n, options: gam_jax.gradient_norm_penalty_value_and_grad(
            loss_fn, n["strength"], **options
        ),
    ),
    "c_flat": Row(
        "C-Flat",
        "#7a4f9f",
        8,
        {"gam_rho": 0.2, "strength": 0.2},  # NeurIPS 2024
        {"c_flat": lambda loss_fn, n, options: gam_jax.c_flat(loss_fn, n["gam_rho"], n["strength"], **options)},
    ),
    "fad": Row(
        "FAD",
        "#b5a900",
        9,
        {"gam_rho": None, "gam_alpha": 0.5, "beta": 1.0},
        {"fad": lambda loss_fn, n, options: gam_jax.fad(loss_fn, n["gam_rho"], n["gam_alpha"], n["beta"], **options)},
        shares=("gam_alpha",),
    ),
    "friendly_sam": Row(
        "Friendly SAM",
        "#8c564b",
        10,
        {"sam_rho": None},
        {"friendly_sam": lambda loss_fn, n, options: gam_jax.friendly_sam(loss_fn, n["sam_rho"], **options)},
    ),
}
TUNABLE = frozenset(name for row in METHODS.values() for name in row.hyperparameters)

if TYPE_CHECKING:
    Method = str
else:
    Method = Literal[tuple(METHODS)]  # what the command line offers


def label(method: Method, base: Base) -> str:
    """A method as people write it; plain has the name of its base optimizer."""
    return "AdamW" if (method, base) == ("plain", "adamw") else METHODS[method].label
