"""The whole family as a table: a method's row is all that the tests which run over the family need of it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import pytest

import gam_jax
from tests.gam_jax import oracles


@dataclasses.dataclass(frozen=True)
class Method:
    """A method with sensible coefficients. Called with a loss and options, it is its transformation.

    Attributes:
      factory: the function of gam_jax; ``function`` is its form of ``jax.value_and_grad``.
      coefficients: its coefficients by name.
      gradients: what a step costs, in gradient evaluations, the caller's own included.
      averages: how many parameter-sized averages a step over replicas takes: one for each gradient and product.
      oracle: ``oracle(loss, **coefficients)(w)`` is its direction in numpy (tests/gam_jax/oracles.py).
      fractions: the coefficients that may not exceed 1.
      options: what makes it this method, beside its coefficients.
    """

    factory: Callable[..., Any]
    coefficients: Mapping[str, float]
    gradients: int
    averages: int
    oracle: Callable[..., Callable[[Any], Any]]
    fractions: tuple[str, ...] = ()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __call__(self, loss_fn, **options):
        return self.factory(loss_fn, **{**self.coefficients, **self.options, **options})

    def function(self, loss_fn, **options):
        factory = getattr(gam_jax, f"{self.factory.__name__}_value_and_grad")
        return factory(loss_fn, **{**self.coefficients, **self.options, **options})


FAMILY = {
    "gam": Method(gam_jax.gam, {"rho": 0.1, "alpha": 0.5}, 6, 4, oracles.gam),
    "accelerated_gam": Method(
        gam_jax.accelerated_gam,
        {"rho": 0.2, "rho_prime": 0.05, "alpha": 0.6, "beta": 0.3, "gamma": 0.2},
        4,
        4,
        oracles.accelerated_gam,
        fractions=("alpha", "beta"),
    ),
    "sam": Method(gam_jax.sam, {"rho": 0.05}, 2, 2, oracles.sam),
    "asam": Method(gam_jax.sam, {"rho": 0.5}, 2, 2, oracles.sam, options={"adaptive": True}),
    "gsam": Method(gam_jax.sam, {"rho": 0.05, "gamma": 0.2}, 2, 2, oracles.sam),
    "sa_gd": Method(gam_jax.sam, {"rho": 0.05}, 4, 3, oracles.sa_gd, options={"ascent_steps": 3}),
    "friendly_sam": Method(
        gam_jax.friendly_sam,
        {"rho": 0.05, "sigma": 0.8, "decay": 0.7},
        2,
        2,
        oracles.FriendlySam,
        fractions=("decay",),
    ),
    "gradient_norm_penalty": Method(
        gam_jax.gradient_norm_penalty, {"strength": 0.05}, 3, 2, oracles.gradient_norm_penalty
    ),
    "c_flat": Method(gam_jax.c_flat, {"rho": 0.2, "strength": 0.3}, 4, 4, oracles.c_flat),
    "fad": Method(gam_jax.fad, {"rho": 0.1, "alpha": 0.4, "beta": 0.5}, 4, 4, oracles.fad, fractions=("alpha",)),
}

HELD = {
    f"{name}, held": dataclasses.replace(
        method, options={**method.options, "interval": 2, "between": "hold", "max_ratio": 1.0}
    )
    for name, method in FAMILY.items()
}
"""Every method acting on every second step, its term held between and bounded."""

FACTORIES = list({method.factory: name for name, method in reversed(FAMILY.items())}.values())
"""One method of each factory, the first of the table."""


KINDS = ("gam", "sam", "accelerated_gam", "friendly_sam")
"""One method of each kind: adds to the gradient, replaces it by one or by several others, has a memory."""


def parametrize(*names, slow=()):
    """A test for each of these methods (by default all); another of a kind seen before, or a slow one, is slow."""
    slow = {*slow, *FAMILY.keys() - set(KINDS)}
    marks = {True: [pytest.mark.slow], False: []}
    return pytest.mark.parametrize("name", [pytest.param(n, marks=marks[n in slow]) for n in names or FAMILY])
