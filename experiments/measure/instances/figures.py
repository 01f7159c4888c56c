"""The numbers of the problems on which flatness fails, as a table and as a picture."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import NullLocator

from experiments.common.errors import require
from experiments.common.kinds import COUNT, NUMBER, Fields, check_fields, list_of
from experiments.common.markdown import markdown
from experiments.common.plotting import save, style
from experiments.common.store import read_object

_COLORS = {"sgd": "#555555", "sam": "#0072b2", "sa_gd": "#56b4e9", "gam": "#d55e00", "c_flat": "#009e73"}
_LABELS = {
    "sgd": "gradient descent",
    "sam": "SAM",
    "sa_gd": "SA-GD",
    "sa_gd of the theorem": "SA-GD, the theorem's maxima",
    "gam": "GAM",
    "c_flat": "C-Flat",
    "sam, eps=1e-12": "SAM, `eps=1e-12`",
}
_MINIMUM: Fields = {"empirical_risk": NUMBER, "worst_case": list_of(NUMBER), "population_risk": NUMBER}
_DRIFT: Fields = {"empirical_risk": NUMBER, "worst_case": NUMBER, "population_risk": NUMBER}
_CHAIN: Fields = {"empirical_risk": NUMBER, "population_risk": NUMBER, "along_the_way": list_of(NUMBER)}
_METHODS = ("sgd", "sam", "sa_gd")
_DRIFTING = ("sgd", "sam", "sa_gd of the theorem", "sa_gd")
_CHAINED = ("sgd", "sam", "gam", "c_flat", "sam, eps=1e-12")
_FIELDS: Fields = {
    "flat_minimum": {"rho": NUMBER, "radii": list_of(NUMBER), "flat": _MINIMUM, "sharp": _MINIMUM},
    "half_parabola": {"radius": NUMBER, **dict.fromkeys(_METHODS, {"w": NUMBER, "worst_case": NUMBER})},
    "chain": {"steps": COUNT, "methods": dict.fromkeys(_CHAINED, _CHAIN)},
}
_FIELDS_OF_A_DRIFT: Fields = {"steps": COUNT, "radius": NUMBER, **dict.fromkeys(_DRIFTING, _DRIFT)}


def read(folder: Path) -> dict[str, Any]:
    """What :func:`experiments.measure.instances.measure.measure` has written there.

    Raises:
      UserError: if it cannot be read, or something is missing.
    """
    path = folder / "instances.json"
    record = read_object(path)
    check_fields(str(path), record, _FIELDS)
    drifts = record.get("slow_drift")
    require(isinstance(drifts, list) and len(drifts) > 0, f"{path}: slow_drift must be a list, got {drifts!r}")
    for drift in record["slow_drift"]:
        check_fields(f"{path}, slow_drift", drift, _FIELDS_OF_A_DRIFT)
    return record


def table(record: dict[str, Any]) -> str:
    """A row for each problem and each point or method."""
    flat, parabola, links = record["flat_minimum"], record["half_parabola"], record["chain"]["methods"]
    inside = flat["radii"].index(flat["rho"])
    rows = [
        [f"(a) at radius {flat['rho']}", f"the {name} minimum", *_cells(flat[name], flat[name]["worst_case"][inside])]
        for name in ("flat", "sharp")
    ]
    for drift in record["slow_drift"]:
        place = f"(b) T = {drift['steps']}, radius {drift['radius']:.2f}"
        rows += [[place, _LABELS[name], *_cells(drift[name], drift[name]["worst_case"])] for name in _DRIFTING[1:]]
    for name in _METHODS[1:]:
        end = parabola[name]
        rows.append(
            [f"(c) radius {parabola['radius']}", _LABELS[name], _number(max(0.0, end["w"]) ** 2 / 2)]
            + [_number(end["worst_case"]), ""]
        )
    place = f"(d) T = {record['chain']['steps']}"
    rows += [[place, _LABELS[name], *_cells(links[name], None)] for name in _CHAINED]
    return markdown(["problem", "where", "empirical risk", "worst case in the ball", "population risk"], rows)


def _cells(found: dict[str, Any], worst: float | None) -> list[str]:
    return [
        _number(found["empirical_risk"]),
        "" if worst is None else _number(worst),
        _number(found["population_risk"]),
    ]


def _number(value: float) -> str:
    return "0" if abs(value) < 5e-5 else f"{value:.4f}"


def draw(record: dict[str, Any], folder: Path) -> Path:
    """Four panels, one for each problem."""
    with style():
        figure, ((a, b), (c, d)) = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
        flat = record["flat_minimum"]
        for name, color in (("flat", _COLORS["gam"]), ("sharp", _COLORS["sam"])):
            risk = _number(flat[name]["population_risk"])
            label = f"the {name} minimum: population risk {risk}"
            a.plot([0, *flat["radii"]], [0, *flat[name]["worst_case"]], "o-", color=color, label=label)
        a.set(title="(a) the flat minimum is the bad one", xlabel="radius", ylabel="worst empirical risk in the ball")
        drifts = record["slow_drift"]
        steps = [drift["steps"] for drift in drifts]
        for name, line in (("sa_gd of the theorem", "o-"), ("sa_gd", "s--")):
            risks = [drift[name]["population_risk"] for drift in drifts]
            b.loglog(steps, risks, line, color=_COLORS["sa_gd"], label=f"{_LABELS[name]}: population risk")
        worst = [drift["sa_gd of the theorem"]["worst_case"] for drift in drifts]
        b.loglog(steps, worst, ":", color="black", label="worst empirical risk in the ball")
        b.set(title="(b) SA-GD: the worst case falls, the risk need not", xlabel="steps T")
        b.set_xticks(steps, map(str, steps), minor=False)
        b.xaxis.set_minor_locator(NullLocator())
        parabola = record["half_parabola"]
        w = np.linspace(-1.2, 1.2, 200)
        c.plot(w, np.maximum(w, 0) ** 2 / 2, color="black", lw=1)
        for name, below in (("sam", -0.03), ("sa_gd", -0.06)):
            place, color = parabola[name]["w"], _COLORS[name]
            label = f"{_LABELS[name]} ends here; its ball"
            c.errorbar(place, below, xerr=parabola["radius"], fmt="o", color=color, capsize=4, label=label)
        c.set(title="(c) SAM stays at the sharpest minimum", xlabel="w", ylabel="risk")
        for name in _CHAINED[:-1]:
            risks = record["chain"]["methods"][name]["along_the_way"]
            d.plot(risks, "o-", ms=3, color=_COLORS[name], label=_LABELS[name])
        d.set(title="(d) SAM leaves the good minimum", xlabel="step", ylabel="population risk, at least")
        for axes in (a, b, c, d):
            axes.legend(frameon=False, fontsize=9)
        return save(figure, folder / "instances.png")
