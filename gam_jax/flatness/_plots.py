"""Pictures of measured networks, several together. What matplotlib is needed for; nothing else imports it."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555", "#b5a900")
"""That can be told apart, by the colour-blind too."""


class Look(NamedTuple):
    """How a network appears in all pictures."""

    label: str
    color: str
    line: str = "-"


class Radii(NamedTuple):
    """A measure over the radius of a ball.

    Attributes:
      rho: the radii, ascending, [radii].
      values: the measure, [radii].
      ends: where each ascent ended, [radii, starts].
    """

    rho: Any
    values: Any
    ends: Any


def pyplot() -> Any:
    """matplotlib.pyplot.

    Raises:
      ImportError: if it is not installed.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'gam-jax[plot]'") from error
    return plt


def style() -> AbstractContextManager[None]:
    """How all pictures look."""
    return pyplot().rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})


def draw_radii(looks: Sequence[Look], zeroth: Sequence[Radii], first: Sequence[Radii], top: Sequence[float]) -> Any:
    """R0 and R1 over the radius; dashes are where the ascents ended, ``top`` the top eigenvalue of each network."""
    from matplotlib.ticker import NullLocator

    figure, axes = pyplot().subplots(1, 2, figsize=(9.0, 4.2), layout="constrained")
    for axis, curves, factor in zip(axes, (zeroth, first), (0.5, 1.0), strict=True):
        for look, curve, eigenvalue in zip(looks, curves, top, strict=True):
            rho = np.asarray(curve.rho, float)
            axis.plot(rho, factor * eigenvalue * rho**2, ":", linewidth=1, color=look.color)
            for radius, ends in zip(rho, curve.ends, strict=True):
                axis.plot([radius] * len(ends), ends, "_", color=look.color, alpha=0.5, markersize=7)
            axis.plot(rho, curve.values, look.line, marker="o", markersize=5, color=look.color, label=look.label)
        axis.set(xscale="log", yscale="log", xlabel="radius ρ")
        axis.set_xticks(curves[0].rho, [f"{radius:g}" for radius in curves[0].rho])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("R0: largest increase of the loss")
    axes[1].set_ylabel("R1: ρ times the largest gradient norm")
    axes[0].legend(frameon=False)
    figure.suptitle(
        "Training loss within a ball of radius ρ: the largest of many ascents, whose ends are the dashes\n"
        "dotted: what the top Hessian eigenvalue gives at a minimum, ρ²λ/2 and ρ²λ",
        fontsize=10,
    )
    return figure


def draw_eigenvalues(looks: Sequence[Look], spectra: Sequence[Any], traces: Sequence[tuple[float, float]]) -> Any:
    """The positive ones among the top eigenvalues, by size and by rank; traces with their standard errors."""
    figure, (counts, ranks) = pyplot().subplots(1, 2, figsize=(9.5, 4.2), layout="constrained")
    positive = [np.asarray(spectrum, float)[np.asarray(spectrum, float) > 0] for spectrum in spectra]
    everything = np.concatenate([*positive, [] if any(map(len, positive)) else [1.0]])
    bins = np.geomspace(everything.min() * 0.999, everything.max() * 1.001, 26)
    for look, spectrum, (trace, error) in zip(looks, positive, traces, strict=True):
        label = f"{look.label}, trace {trace:.1f} ± {error:.1f}"
        counts.hist(spectrum, bins, histtype="stepfilled", color=look.color, alpha=0.15)
        counts.hist(spectrum, bins, histtype="step", color=look.color, linestyle=look.line, linewidth=1.6, label=label)
        ranks.plot(1 + np.arange(len(spectrum)), spectrum, look.line, color=look.color, marker=".", label=look.label)
    counts.set(xscale="log", xlabel="eigenvalue", ylabel=f"number among the top {len(spectra[0])}")
    ranks.set(yscale="log", xlabel="rank", ylabel="eigenvalue")
    ranks.grid(alpha=0.3)
    figure.legend(*counts.get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return figure


_DECADES = 7
"""Of a density that are shown: below are the tails of the Gaussians."""


def draw_density(looks: Sequence[Look], nodes: Sequence[Any], weights: Sequence[Any]) -> Any:
    """One row for each network on common axes, smoothed with a common bandwidth.

    Args:
      looks: of the networks.
      nodes: Ritz values of each, [probes, steps], NaN where there is none.
      weights: of these.
    """
    size = (7.5, 1.0 + 1.25 * len(looks))
    figure, axes = pyplot().subplots(len(looks), 1, figsize=size, sharex=True, sharey=True, squeeze=False)
    figure.set_layout_engine("constrained")
    nodes = [np.asarray(places, float) for places in nodes]
    least, most = np.nanmin([np.nanmin(n) for n in nodes]), np.nanmax([np.nanmax(n) for n in nodes])
    bandwidth = (most - least or max(abs(most), 1.0)) / 500
    grid = np.linspace(least - 5 * bandwidth, most + 5 * bandwidth, 4000)
    peak = 1 / (bandwidth * (2 * np.pi) ** 0.5)  # of a density that lies at one place
    for axis, look, places, shares in zip(axes[:, 0], looks, nodes, weights, strict=True):
        bumps = np.exp(-(((grid[:, None, None] - np.nan_to_num(places)) / bandwidth) ** 2) / 2)
        density = peak * (bumps * np.asarray(shares)).sum((1, 2)) / len(places)
        axis.fill_between(grid, density, peak * 1e-12, color=look.color, alpha=0.25, linewidth=0)
        axis.plot(grid, density, look.line, color=look.color, linewidth=1.2)
        axis.annotate(
            look.label, (0.99, 0.95), xycoords="axes fraction", ha="right", va="top", color=look.color, weight="bold"
        )
        axis.set(yscale="log", ylim=(peak * 10.0**-_DECADES, 3 * peak))
        axis.grid(alpha=0.3)
    axes[-1, 0].set_xlabel("Hessian eigenvalue")
    figure.supylabel("spectral density", fontsize=11)
    return figure


def draw_lines(looks: Sequence[Look], x: Any, losses: Sequence[Any]) -> Any:
    """The loss along lines through each network, [lines, points], and the mean of these."""
    figure, axis = pyplot().subplots(figsize=(6.2, 4.2), layout="constrained")
    for look, rows in zip(looks, losses, strict=True):
        rows = np.asarray(rows, float)
        for row in rows:
            axis.plot(x, row, look.line, color=look.color, alpha=0.2, linewidth=0.8)
        axis.plot(x, rows.mean(0), look.line, color=look.color, linewidth=2.2, label=look.label)
    axis.set(xlabel="distance in units of the weights' own norms, filter by filter", ylabel="training loss")
    axis.set_title("along random directions (thin), and the mean of these", fontsize=11)
    axis.legend(frameon=False)
    return figure
