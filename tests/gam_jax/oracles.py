"""Literal, slow, numpy float64 transcriptions of the papers' algorithms, with equation and line numbers.

A method of the family is ``method(loss, **coefficients)``, a function of the point that gives the direction there.
"""

import functools

import jax
import numpy as np

XI = 1e-12


class LogisticQuartic:
    """L(w) = mean_i log(1 + exp(-y_i x_i.w)) + c/4 sum_j w_j^4, with gradient and Hessian by hand."""

    def __init__(self, seed=0, examples=12, size=7, quartic=0.3):
        rng = np.random.default_rng(seed)
        self.x, self.y = rng.normal(size=(examples, size)), rng.choice([-1.0, 1.0], size=examples)
        self.quartic = quartic
        self.start = rng.normal(size=size)

    def value(self, w):
        return np.mean(np.log1p(np.exp(-self.y * (self.x @ w)))) + self.quartic / 4 * np.sum(w**4)

    def gradient(self, w):
        margin = self.y * (self.x @ w)
        weight = -self.y / (1 + np.exp(margin))
        return self.x.T @ weight / len(self.y) + self.quartic * w**3

    def hessian(self, w):
        probability = 1 / (1 + np.exp(-self.y * (self.x @ w)))
        weight = probability * (1 - probability)
        return self.x.T @ (weight[:, None] * self.x) / len(self.y) + np.diag(3 * self.quartic * w**2)


class Dense:
    """Any loss of one flat vector, with its gradient and its whole Hessian, in the form that the algorithms take."""

    def __init__(self, loss):
        self.value, self.gradient, self.hessian = jax.jit(loss), jax.jit(jax.grad(loss)), jax.jit(jax.hessian(loss))


def algorithm_1(loss, w, h_loss, rho, alpha):
    """Lines 5 to 10 of Algorithm 1: the direction that the base optimizer descends."""
    g = loss.gradient(w)
    f = loss.hessian(w) @ (g / (np.linalg.norm(g) + XI))  # line 6
    w_adv = w + rho * f / (np.linalg.norm(f) + XI)  # line 7
    g_adv = loss.gradient(w_adv)
    h_norm = rho * loss.hessian(w_adv) @ (g_adv / (np.linalg.norm(g_adv) + XI))  # line 8
    return h_loss + alpha * h_norm  # line 10


def pointwise(direction):
    """A method without memory: ``direction(loss, w, **coefficients)`` as ``method(loss, **coefficients)(w)``."""
    return functools.partial(functools.partial, direction)


def unit(x):
    return x / (np.linalg.norm(x) + XI)


def orthogonal(x, to):
    """The component of x orthogonal to the other."""
    return x - to * (x @ to) / (to @ to)


@pointwise
def gam(loss, w, rho, alpha):
    return algorithm_1(loss, w, loss.gradient(w), rho, alpha)


@pointwise
def accelerated_gam(loss, w, rho, rho_prime, alpha, beta, gamma):
    """Algorithm 2, as printed."""
    g0 = loss.gradient(w)
    w1 = w + rho_prime * g0 / (np.linalg.norm(g0) + XI)
    g1 = loss.gradient(w1)
    h0 = g1 - g0
    w2 = w + rho * h0 / (np.linalg.norm(h0) + XI)
    g2 = loss.gradient(w2)
    w3 = w2 + rho_prime * g2 / (np.linalg.norm(g2) + XI)
    g3 = loss.gradient(w3)
    h_plus = alpha * g1 + (1 - alpha) * g3
    h_minus = beta * g0 + (1 - beta) * g2
    parallel = h_plus * (h_minus @ h_plus) / (h_plus @ h_plus)
    return h_plus - gamma * (h_minus - parallel)


@pointwise
def sam(loss, w, rho, gamma=0.0, adaptive=False):
    """SAM; in the scaling |w| ASAM; with gamma GSAM."""
    g0, scaling = loss.gradient(w), np.abs(w) if adaptive else np.ones_like(w)
    g1 = loss.gradient(w + rho * scaling * unit(scaling * g0))
    return g1 - gamma * orthogonal(g0, to=g1)


class FriendlySam:
    """Algorithm 1 of Li et al. 2024: the mean takes in the gradient before it is subtracted from it."""

    def __init__(self, loss, rho, sigma, decay):
        self.loss, self.rho, self.sigma, self.decay, self.mean = loss, rho, sigma, decay, 0.0

    def __call__(self, w):
        g = self.loss.gradient(w)
        self.mean = self.decay * self.mean + (1 - self.decay) * g
        return self.loss.gradient(w + self.rho * unit(g - self.sigma * self.mean))


def highest(value, gradient, w, toward, rho, steps):
    """The highest of so many points of the ball, by projected ascent, and how many of its moves were short ones.

    Birgin, Martinez and Raydan 2000, with monotone search: an infinite length first, a quarter of it after a failure,
    the inverse curvature after a short move.
    """
    offset, length, short = rho * unit(toward), np.inf, 0
    here, g = value(w + offset), gradient(w + offset)
    for _ in range(steps - 1):
        new = rho * unit(g) if length == np.inf else offset + length * unit(g)
        new = new * min(1, rho / np.linalg.norm(new))
        move, there, turned = new - offset, value(w + new), gradient(w + new)
        if not (there > here and there >= here + 1e-4 * g @ move):
            length = min(length / 4, 2 * rho)
            continue
        if length < np.inf:
            short, curvature = short + 1, move @ (turned - g) / (move @ move)
            length = np.linalg.norm(turned) / -curvature if curvature < 0 else 4 * length
            length = length if length < 8 * rho else np.inf
        offset, here, g = new, there, turned
    return w + offset, short


@pointwise
def sa_gd(loss, w, rho, ascent_steps):
    """The gradient at the highest point that an ascent from SAM's finds."""
    return loss.gradient(highest(loss.value, loss.gradient, w, loss.gradient(w), rho, ascent_steps)[0])


@pointwise
def gradient_norm_penalty(loss, w, strength):
    """The gradient of L + strength ||grad L||."""
    return loss.gradient(w) + strength * loss.hessian(w) @ unit(loss.gradient(w))


def four_gradients(loss, w, rho):
    """At w, a step along the gradient, a step along its change, and a step further along the gradient there."""
    g0 = loss.gradient(w)
    g1 = loss.gradient(w + rho * unit(g0))
    w2 = w + rho * unit(g1 - g0)
    g2 = loss.gradient(w2)
    return g0, g1, g2, loss.gradient(w2 + rho * unit(g2))


@pointwise
def c_flat(loss, w, rho, strength):
    _, g1, g2, g3 = four_gradients(loss, w, rho)
    return g1 + strength * (g3 - g2)


@pointwise
def fad(loss, w, rho, alpha, beta):
    g0, g1, g2, g3 = four_gradients(loss, w, rho)
    return g0 + beta * (alpha * (g1 - g0) + (1 - alpha) * (g3 - g2))


class SgdMomentum:
    def __init__(self, learning_rate=0.1, momentum=0.9):
        self.learning_rate, self.momentum, self.trace = learning_rate, momentum, 0.0

    def step(self, w, direction):
        self.trace = direction + self.momentum * self.trace
        return w - self.learning_rate * self.trace


class AdamW:
    def __init__(self, learning_rate=0.05, b1=0.9, b2=0.999, eps=1e-8, weight_decay=1e-2):
        self.learning_rate, self.b1, self.b2, self.eps, self.weight_decay = learning_rate, b1, b2, eps, weight_decay
        self.m, self.v, self.t = 0.0, 0.0, 0

    def step(self, w, direction):
        self.t += 1
        self.m = self.b1 * self.m + (1 - self.b1) * direction
        self.v = self.b2 * self.v + (1 - self.b2) * direction**2
        m_hat, v_hat = self.m / (1 - self.b1**self.t), self.v / (1 - self.b2**self.t)
        return w - self.learning_rate * (m_hat / (np.sqrt(v_hat) + self.eps) + self.weight_decay * w)
