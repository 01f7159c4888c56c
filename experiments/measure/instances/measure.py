"""What happens on the problems on which flatness fails: the methods as the library has them, in float64."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import gam_jax
from experiments.common.provenance import provenance, session
from experiments.common.store import plain, write_json
from experiments.measure.instances import problems
from gam_jax import flatness

_KEY = jax.random.key(0)
_FRESH = 100_000  # rows for a population risk that is no closed form
N = 6


def measure(output: Path, command: str) -> dict[str, Any]:
    """All numbers; written to ``instances.json`` in the folder."""
    about = {**session(command), "made_with": provenance()}
    with jax.enable_x64(True):
        found = {
            "flat_minimum": flat_minimum(rho=0.5, radii=(0.25, 0.5, 0.75, 1.0)),
            "slow_drift": [slow_drift(steps) for steps in (16, 64, 256)],
            "half_parabola": half_parabola(radius=0.5, steps=60),
            "chain": chain(steps=16),
        }
    output.mkdir(parents=True, exist_ok=True)
    record = plain(about | found)
    write_json(output / "instances.json", record)
    return record


def worst_case(loss: Callable[[Any], jax.Array], w: Any, radius: float) -> float:
    """The largest loss in the ball."""
    with jax.enable_x64(True):
        found = flatness.zeroth_order_flatness(loss, w, None, radius, key=_KEY, num_steps=100, num_restarts=3)
        return found.value + float(loss(w))


def trajectory(tx: optax.GradientTransformation, loss: Callable[[Any], jax.Array], start: Any, steps: int) -> Any:
    """The parameters before each step and after the last, along a leading axis."""
    chain = optax.with_extra_args_support(tx)

    def step(carry: Any, _: None) -> tuple[Any, Any]:
        w, state = carry
        updates, state = chain.update(jax.grad(loss)(w), state, w)
        return (optax.apply_updates(w, updates), state), w

    (last, _), before = jax.jit(lambda: jax.lax.scan(step, (start, chain.init(start)), length=steps))()
    return jax.tree.map(lambda some, one: jnp.concatenate([some, one[None]]), before, last)


def mean_iterate(points: Any) -> Any:
    """The average that the theorems speak of, of all points but the last."""
    return jax.tree.map(lambda x: x[:-1].mean(axis=0), points)


def flat_minimum(rho: float, radii: Sequence[float]) -> dict[str, Any]:
    """(a) Risks of the flat minimum and of the sharp one."""
    problem = problems.FlatMinimum(rho)
    z = problems.sample(N, lambda z: len(problems.unseen(z)) > 0)
    fresh = problems.coins(jax.random.key(1), _FRESH, 2**N)
    found = {}
    for name, w in (("flat", problem.flat(z)), ("sharp", problem.sharp(z))):
        loss = lambda w: problem.loss(w, z)  # noqa: E731
        found[name] = {
            "empirical_risk": float(loss(w)),
            "worst_case": [worst_case(loss, w, radius) for radius in radii],
            "population_risk": float(problem.loss(w, fresh)),
        }
    return {"n": N, "rho": rho, "radii": list(radii), **found}


def slow_drift(steps: int, rho: float = 0.1, rate: float = 0.25) -> dict[str, Any]:
    """(b) SGD, SAM and SA-GD from 0, with the maxima that our search finds and with those that the theorem takes."""
    problem = problems.SlowDrift(rho)
    radius = rho + 1 / (rate * steps**0.5)
    z = problems.sample(N, lambda z: len(problems.unseen(z)) > 0)
    fresh = problems.coins(jax.random.key(1), _FRESH, 2**N)
    loss = lambda x: problem.loss(x, z)  # noqa: E731
    restarts = jax.random.split(_KEY, 8)
    links = {
        "sgd": optax.identity(),
        "sam": gam_jax.sam(loss, radius, eps=0.0),
        "sa_gd": gam_jax.sam(loss, radius, ascent_steps=100, restarts=restarts, eps=0.0),
    }
    start = jnp.zeros((2**N, steps))
    runs = {name: trajectory(optax.chain(tx, optax.sgd(rate)), loss, start, steps) for name, tx in links.items()}
    gradient, path = jax.jit(jax.grad(loss)), [start]
    for step in range(steps):
        path.append(path[-1] - rate * gradient(problem.worst_step(path[-1], z, radius, step)))
    found = {}
    for name, points in (runs | {"sa_gd of the theorem": jnp.stack(path)}).items():
        mean = mean_iterate(points)
        found[name] = {
            "empirical_risk": float(loss(mean)),
            "worst_case": max(
                worst_case(loss, mean, radius), float(loss(problem.worst_step(mean, z, radius, steps - 1)))
            ),
            "population_risk": float(problem.loss(mean, fresh)),
        }
    return {"n": N, "steps": steps, "rho": rho, "rate": rate, "radius": radius, **found}


def half_parabola(radius: float, steps: int, rate: float = 0.25) -> dict[str, Any]:
    """(c) SGD, SAM and SA-GD from 0."""
    loss = problems.half_parabola
    links = {
        "sgd": optax.identity(),
        "sam": gam_jax.sam(loss, radius, eps=0.0),
        "sa_gd": gam_jax.sam(loss, radius, ascent_steps=2, restarts=jax.random.split(_KEY, 4), eps=0.0),
    }
    found = {}
    for name, link in links.items():
        w = trajectory(optax.chain(link, optax.sgd(rate)), loss, jnp.zeros(()), steps)[-1]
        found[name] = {"w": float(w), "worst_case": float(loss(w + radius))}
    return {"radius": radius, "steps": steps, "rate": rate, **found}


def chain(steps: int) -> dict[str, Any]:
    """(d) Each method from 0: the population risk of its mean iterate, at least, and along the way."""
    problem = problems.Chain.saturated(N, steps)
    z = problems.sample(N, lambda z: len(problems.unseen(z)) == 1)
    loss = lambda w: problem.loss(w, z)  # noqa: E731
    radius = problem.radius
    links: Mapping[str, optax.GradientTransformation] = {
        "sgd": optax.identity(),
        "sam": gam_jax.sam(loss, radius, eps=0.0),
        "gam": gam_jax.gam(loss, radius, 1.0, eps=0.0),
        "c_flat": gam_jax.c_flat(loss, radius, 0.2, eps=0.0),
        "sam, eps=1e-12": gam_jax.sam(loss, radius),
    }
    found = {}
    for name, link in links.items():
        points = trajectory(optax.chain(link, optax.sgd(problem.rate)), loss, problem.start(), steps)
        mean = mean_iterate(points)
        found[name] = {
            "empirical_risk": float(loss(mean)),
            "population_risk": float(problem.population_risk_at_least(mean)),
            "along_the_way": [float(r) for r in jax.vmap(problem.population_risk_at_least)(points)],
        }
    start = float(optax.tree.norm(jax.grad(loss)(problem.start())))
    return {"n": N, "steps": steps, "radius": radius, "rate": problem.rate, "start_gradient": start, "methods": found}
