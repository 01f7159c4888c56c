"""Measures restored checkpoints one quantity at a time, and writes each to JSON as soon as it is there."""

import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import rich.progress

from experiments.common.errors import UserError, require
from experiments.common.provenance import provenance
from experiments.common.store import plain, read_object, refuse_other, write_json
from experiments.measure.flatness.config import FlatnessConfig, LandscapeConfig, MeasureConfig
from experiments.measure.flatness.filters import filter_axes
from experiments.measure.flatness.restore import Run
from gam_jax import flatness

Result = dict[str, Any]
"""The JSON of one checkpoint: what it is, the settings, the versions, and what was measured, by name."""


Plan = dict[str, Callable[[], Any]]
"""Measurements by name. Each returns something that :func:`plain` makes JSON of."""


def radii(
    of: dict[str, Any], rho: Sequence[float], key: jax.Array, *, ascent_steps: int, restarts: int
) -> dict[str, Callable[[], dict[str, Any]]]:
    """R0 and R1 over the radius, each the largest of several ascents.

    Args:
      of: loss, parameters and batches, as every function of :mod:`gam_jax.flatness` takes them.
      rho: the radii.
      key: for the starts; all ascents have the same.
      ascent_steps: from each start, at most.
      restarts: random starts, beside the one at the parameters.
    """

    def maximum(measure: Callable[..., flatness.Flatness], rho: float) -> dict[str, Any]:
        found = measure(**of, num_steps=ascent_steps, num_restarts=restarts, rho=rho, key=key)
        return {
            "rho": rho,
            "value": found.value,
            "distance": found.distance,
            "stationarity": found.stationarity,
            "ends": found.history[:, -1],
        }

    return {
        f"{measure.__name__} rho={radius}": functools.partial(maximum, measure, radius)
        for measure in (flatness.zeroth_order_flatness, flatness.first_order_flatness)
        for radius in rho
    }


def flatness_plan(run: Run, settings: FlatnessConfig) -> Plan:
    """Flatness in every sense, of the training loss."""
    key = jax.random.key(settings.seed)
    of: Any = {"loss_fn": run.loss_fn, "params": run.params, "batches": run.batches}
    ascent: Any = {"ascent_steps": settings.ascent_steps, "restarts": settings.restarts}
    lanczos: Any = {"num_probes": settings.density_probes, "num_steps": settings.density_steps, "grid": np.zeros(1)}
    walk: Any = {"num_directions": settings.directions}
    return {
        "point": lambda: _point(run),
        **radii(of, settings.rho, key, **ascent),
        "top_eigenvalues": lambda: flatness.hessian_top_eigenvalues(**of, k=settings.k, key=key),
        "trace": lambda: flatness.hessian_trace(**of, key=key, num_probes=settings.trace_probes),
        "density": lambda: _density(flatness.hessian_density(**of, **lanczos, key=key)),
        "local_minima": lambda: _extrema(flatness.count_local_minima(**of, **walk, key=key)),
    }


def landscape_plan(run: Run, settings: LandscapeConfig) -> Plan:
    """Slices of the training loss, and scores. Every run gets the same random directions, in units of its filters."""
    key = jax.random.key(settings.seed)
    directions = flatness.filter_normalized_directions(
        run.params, key=key, num=settings.directions, filter_axis=filter_axes
    )
    x = np.linspace(-settings.radius, settings.radius, settings.points)
    along = functools.partial(flatness.loss_slice, run.loss_fn, run.params, run.batches, x=x)
    lines: Plan = {f"line {i}": functools.partial(along, direction) for i, direction in enumerate(directions)}
    return {**lines, "plane": functools.partial(along, *directions[:2]), "point": lambda: _point(run)}


PLANS: dict[str, Callable[[Run, Any], Plan]] = {"flatness": flatness_plan, "landscape": landscape_plan}


def check(settings: MeasureConfig, runs: Sequence[Run]) -> None:
    """Refuses what cannot be measured or written; call it before anything is measured.

    Raises:
      UserError: for two checkpoints of one name, more eigenvalues than parameters, a folder that is not writable.
    """
    names = [run.name for run in runs]
    for name in names:
        require(
            names.count(name) == 1,
            f"two of the checkpoints are called {name!r}, after their folders, and would be written to one file: "
            "rename a folder",
        )
    for run in runs:
        size = sum(leaf.size for leaf in jax.tree.leaves(run.params))
        k = getattr(settings, "k", 1)
        require(k <= size, f"k must be at most the number of parameters, {size} in {run.name}, got k={k}")
    try:
        settings.output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=settings.output):
            pass
    except OSError as error:
        raise UserError(f"cannot write results to --output {settings.output}: {error}") from error


def measure_all(
    kind: str, runs: Sequence[Run], settings: MeasureConfig, progress: rich.progress.Progress
) -> list[Result]:
    """Measures each run into ``OUTPUT/RUN-STEP-KIND.json``, as far as it does not hold it yet.

    Args:
      kind: of the measurements, "flatness" or "landscape".
      runs: the checkpoints.
      settings: of this kind.
      progress: where to show progress.

    Raises:
      UserError: if a file holds other measurements or cannot be written, or a measurement refuses its input.
    """
    plans = [PLANS[kind](run, settings) for run in runs]
    paths = [settings.output / f"{run.name}-{kind}.json" for run in runs]
    results = [_open(path, run, settings) for path, run in zip(paths, runs, strict=True)]
    bar = progress.add_task("", total=sum(map(len, plans)))
    for run, plan, path, result in zip(runs, plans, paths, results, strict=True):
        for name, quantity in plan.items():
            progress.update(bar, description=f"{run.name}: {name}")
            if name not in result["measured"]:
                try:
                    result["measured"][name] = plain(quantity())
                    write_json(path, result)
                except (OSError, ValueError) as error:
                    raise UserError(f"{run.name}, {name}: {error}") from error
            progress.advance(bar)
    return results


def _open(path: Path, run: Run, settings: MeasureConfig) -> Result:
    """What the file holds so far."""
    result = {"checkpoint": run.identity(), "settings": settings.identity(), "made_with": provenance()}
    if not path.exists():
        return result | {"measured": {}}
    there = read_object(path)
    require(isinstance(there.get("measured"), dict), f"{path} is not a file of measurements: delete it")
    refuse_other(path, {name: there[name] for name in there if name != "measured"}, result, "--output")
    return result | {"measured": there["measured"]}


def _point(run: Run) -> dict[str, float]:
    gradient = jax.jit(jax.grad(run.loss_fn))
    count = sum(len(batch.label) for batch in run.batches)
    parts = [optax.tree.scale(len(b.label) / count, gradient(run.params, b)) for b in run.batches]
    scores = run.evaluate("train")
    return {
        "loss": scores["train_loss"],
        "accuracy": scores["train_accuracy"],
        "test_accuracy": run.scores["test_accuracy"],
        "gradient_norm": float(optax.tree.norm(functools.reduce(optax.tree.add, parts))),
        "parameter_norm": float(optax.tree.norm(run.params)),
    }


def _density(found: flatness.SpectralDensity) -> dict[str, Any]:
    """Without the density on a grid, which follows from nodes and weights for any bandwidth."""
    fields = found._asdict()
    return {name: fields[name] for name in ("nodes", "weights", "moments", "moments_standard_error")}


def _extrema(found: flatness.LocalExtrema) -> dict[str, Any]:
    fields = found._asdict()
    del fields["losses"]
    return fields
