r"""Problems of stochastic convex optimization on which flat minima do not generalize (Schliserman et al. 2025).

Each is a loss ``f(w, z)`` that is convex, smooth and at least 0. The empirical risk is its mean over the n rows z of a
sample, the population risk its expectation over z, whose :math:`2^n` entries are fair coins. Often some entry is the
same in all n rows, and then the sample says nothing about it.

Matan Schliserman, Shira Vansover-Hager, Tomer Koren: Flat Minima and Generalization: Insights from Stochastic Convex
Optimization. 2025. https://arxiv.org/abs/2511.03548. Rebuilt from its claims; each is checked in
``tests/experiments/measure/test_instances.py``.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

Params = dict[str, jax.Array]


def coins(key: jax.Array, rows: int, entries: int) -> jax.Array:
    """A sample of z, zeros and ones [rows, entries]."""
    return jax.random.bernoulli(key, shape=(rows, entries)).astype(float)


def unseen(z: jax.Array) -> jax.Array:
    """The entries that are 0 in every row, as indices."""
    return jnp.flatnonzero(z.sum(axis=0) == 0)


def sample(n: int, accept: Callable[[jax.Array], bool]) -> jax.Array:
    """The first sample of n rows and ``2**n`` entries, of keys 0, 1, 2, ..., that is accepted."""
    draws = (coins(jax.random.key(seed), n, 2**n) for seed in range(10_000))
    return next(z for z in draws if accept(z))


def _beyond(square: jax.Array, rho: float) -> jax.Array:
    """``max(0, length - rho)^2 / 2`` of a squared length; its derivative at length 0 is 0."""
    length = jnp.sqrt(jnp.where(square > 0, square, 1))
    return jnp.where(square > 0, jnp.maximum(length - rho, 0) ** 2 / 2, 0)


class FlatMinimum(NamedTuple):
    r"""(a) A flat minimum of the empirical risk whose population risk is of order 1, and a sharp one whose risk is 0.

    .. math:: f(w, z) = \tfrac12 \max(0, \|(z \circ x, y)\| - \rho)^2, \qquad w = (x, y)

    half the squared distance to a cylinder: where z is 0, x is free. If entry i is 0 in the whole sample, then around
    ``x = e_i`` the empirical risk is 0 in the whole ball of radius rho; the population risk there is
    :math:`(1 - \rho)^2 / 4`.
    """

    rho: float

    def loss(self, w: Params, z: jax.Array) -> jax.Array:
        """The mean over the rows of z."""
        return _beyond(z @ w["x"] ** 2 + w["y"] ** 2, self.rho).mean()

    def flat(self, z: jax.Array) -> Params:
        """The unit vector of the first unseen entry."""
        return {"x": jnp.zeros(z.shape[1]).at[unseen(z)[0]].set(1), "y": jnp.zeros(())}

    def sharp(self, z: jax.Array) -> Params:
        """At the rim of the cylinder, where all z agree."""
        return {"x": jnp.zeros(z.shape[1]), "y": jnp.asarray(self.rho)}


class SlowDrift(NamedTuple):
    r"""(b) SA-GD finds a flat minimum of the empirical risk, fast, and its population risk is of order 1.

    .. math:: f(w, s) = \tfrac12 \max\bigl(0, \bigl\|(s_i x_{ij})_+\bigr\| - \rho\bigr)^2, \qquad s = 2 z - 1

    with T numbers :math:`x_{ij}` for each entry i. At 0 nothing has a gradient, but in a ball of radius r > rho the
    worst case is ``(r - rho)^2 / 2``, along an entry on which all rows agree, and each step of SA-GD moves against it,
    to where other rows disagree.
    """

    rho: float

    def loss(self, x: jax.Array, z: jax.Array) -> jax.Array:
        """The mean over the rows of z, for x [entries, T]."""
        above, below = (jnp.maximum(part, 0) ** 2 for part in (x, -x))
        return _beyond(z @ above.sum(axis=1) + (1 - z) @ below.sum(axis=1), self.rho).mean()

    def worst_step(self, x: jax.Array, z: jax.Array, radius: float, step: int) -> jax.Array:
        """The maximum in the ball around x that the theorem takes at this step, from 0 on, of all that there are.

        It is that along the next of the T numbers of the first unseen entry, downwards.
        """
        return x.at[unseen(z)[0], step].add(-radius)


def half_parabola(w: jax.Array) -> jax.Array:
    """(c) ``max(0, w)^2 / 2``: 0 is its sharpest minimum, and has no gradient for SAM to follow."""
    return jnp.maximum(w, 0) ** 2 / 2


class Chain(NamedTuple):
    r"""(d) SAM goes to a minimum of the empirical risk whose population risk is of order 1, and SGD does not.

    .. math::
        f(w, z) = \tfrac12 \sum_i z_i \sum_{j \ge 2} x_{ij}^2
          + \tfrac12 \sum_{i, j \ge 2} \max(0, x_{ij} - \delta (x_{i,j-1} + \lambda [j = 2]))^2
          + \tfrac\gamma2 \max(0, \langle v_z, w \rangle + \delta_1)^2

    The last term is a trigger: its gradient at 0 is tiny, but SAM goes the whole radius r along it, to where the chain
    in the middle starts to pull :math:`x_{i2}, x_{i3}, \dots` of an unseen entry i below 0, one a step. Nothing in the
    sample pulls them back.

    Attributes:
      entries: of z, ``2**n``.
      steps: T, the length of the chain.
      radius: r.
      rate: the learning rate eta.
      delta: the coupling of the chain.
    """

    entries: int
    steps: int
    radius: float
    rate: float = 1 / 24
    delta: float = 0.03

    @classmethod
    def saturated(cls, n: int, steps: int, rate: float = 1 / 24) -> "Chain":
        """With the largest radius of the theorem, ``rate * radius = 1 / (2 sqrt(T))``."""
        return cls(2**n, steps, 1 / (2 * rate * math.sqrt(steps)), rate)

    @property
    def size(self) -> int:
        """d, the number of parameters."""
        return self.entries * self.steps + 1

    @property
    def trigger(self) -> tuple[float, float, float]:
        r""":math:`\lambda, \gamma, \delta_1`; the last two depend on each other."""
        slack = self.radius / (4 * self.size * (self.size - 1))
        gamma = offset = 0.0
        for _ in range(50):
            gamma = slack / (max(1.0, self.rate) * (self.radius + offset))
            offset = self.rate * gamma * self.radius / (2 * math.sqrt(self.size) - self.rate * gamma)
        return slack, gamma, offset

    def start(self) -> Params:
        """The origin."""
        return {"x": jnp.zeros((self.entries, self.steps)), "y": jnp.zeros(())}

    def loss(self, w: Params, z: jax.Array) -> jax.Array:
        """The mean over the rows of z."""
        slack, gamma, offset = self.trigger
        x, rest = w["x"], w["x"][:, 1:]
        before = x[:, :-1].at[:, 0].add(slack)
        pull = jnp.maximum(rest - self.delta * before, 0)
        direction = jnp.where(z == 1, 1.0, -1 / (2 * (self.size - 1)))
        gate = jnp.maximum(direction @ x[:, 0] + w["y"] + offset, 0)
        seen = (z.mean(axis=0) * (rest**2).sum(axis=1)).sum()
        return seen / 2 + (pull**2).sum() / 2 + gamma * (gate**2).mean() / 2

    def population_risk_at_least(self, w: Params) -> jax.Array:
        """The expectation of the first of the three terms, exactly; the least population risk is 0."""
        return (w["x"][:, 1:] ** 2).sum() / 4
