"""Several networks measured alike, in one call: a table, and pictures."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Unpack

import jax
import numpy as np
from jax.typing import ArrayLike

from gam_jax._checks import check_flag, check_integer, check_key, check_numbers
from gam_jax._types import LossFn, PyTree
from gam_jax.flatness._ball import Flatness
from gam_jax.flatness._block import count_parameters
from gam_jax.flatness._data import DataArgs, DataOptions, with_data_options
from gam_jax.flatness._filters import FilterAxes, filter_axes
from gam_jax.flatness._geometry import Norm, check_geometry
from gam_jax.flatness._objective import measure
from gam_jax.flatness._plots import COLORS, Look, Radii, draw_density, draw_eigenvalues, draw_lines, draw_radii, style
from gam_jax.flatness._vectors import norm as l2_norm
from gam_jax.flatness.density import SpectralDensity, hessian_density
from gam_jax.flatness.eigenvalues import Eigenvalues, hessian_top_eigenvalues
from gam_jax.flatness.first_order import first_order_flatness
from gam_jax.flatness.landscape import LossSlice, filter_normalized_directions, loss_slice
from gam_jax.flatness.trace import TraceEstimate, hessian_trace
from gam_jax.flatness.zeroth_order import zeroth_order_flatness


class Measured(NamedTuple):
    """What :func:`compare` measures of one network.

    Attributes:
      loss: the mean over the data.
      gradient_norm: of that loss.
      zeroth_order: :class:`Flatness` at each radius, without the maximiser.
      first_order: likewise.
      eigenvalues: the top :class:`Eigenvalues` of the Hessian.
      trace: :class:`TraceEstimate` of the Hessian.
      density: :class:`SpectralDensity` of the Hessian, or None.
      lines: :class:`LossSlice` along each random direction; the directions are the same for every network, in units of
        its own filters.
    """

    loss: float
    gradient_norm: float
    zeroth_order: list[Flatness]
    first_order: list[Flatness]
    eigenvalues: Eigenvalues
    trace: TraceEstimate
    density: SpectralDensity | None
    lines: list[LossSlice]


class Comparison(NamedTuple):
    """Measured networks; as a string, a table with a row for each.

    Attributes:
      radii: of the balls.
      networks: :class:`Measured` by name.
    """

    radii: list[float]
    networks: dict[str, Measured]

    def __str__(self) -> str:
        header = ["", "loss", "gradient norm", "top eigenvalue", "trace"]
        header += [f"{kind} ({radius:g})" for kind in ("R0", "R1") for radius in self.radii]
        rows = []
        for name, found in self.networks.items():
            error = found.trace.standard_error
            trace = f"{found.trace.value:.4g}" + (f" ± {error:.2g}" if error else "")
            maxima = [one.value for one in (*found.zeroth_order, *found.first_order)]
            numbers = [found.loss, found.gradient_norm, found.eigenvalues.values[0]]
            rows.append([name, *(f"{x:.4g}" for x in numbers), trace, *(f"{x:.4g}" for x in maxima)])
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        lines = ([cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in [header, *rows])
        return "\n".join("  ".join([cells[0].strip().ljust(widths[0]), *cells[1:]]).rstrip() for cells in lines)

    def figures(self) -> dict[str, Any]:
        """Figures of matplotlib, by name: "radii", "eigenvalues", and "density" and "lines" if these were measured.

        Raises:
          ImportError: if matplotlib is not installed; the extra is ``plot``.
        """
        looks = [Look(name, COLORS[i % len(COLORS)]) for i, name in enumerate(self.networks)]
        found = list(self.networks.values())
        tops = [one.eigenvalues.values for one in found]
        with style():
            zeroth = [self._radii(one.zeroth_order) for one in found]
            first = [self._radii(one.first_order) for one in found]
            figures = {
                "radii": draw_radii(looks, zeroth, first, [top[0] for top in tops]),
                "eigenvalues": draw_eigenvalues(
                    looks, tops, [(one.trace.value, one.trace.standard_error) for one in found]
                ),
            }
            densities = [one.density for one in found if one.density is not None]
            if densities:
                nodes, weights = [one.nodes for one in densities], [one.weights for one in densities]
                figures["density"] = draw_density(looks, nodes, weights)
            if found[0].lines:
                losses = [np.stack([line.values for line in one.lines]) for one in found]
                figures["lines"] = draw_lines(looks, found[0].lines[0].x, losses)
        return figures

    def _radii(self, maxima: Sequence[Flatness]) -> Radii:
        return Radii(self.radii, [one.value for one in maxima], [one.history[:, -1] for one in maxima])


@with_data_options
def compare(
    networks: Mapping[str, PyTree],
    loss_fn: LossFn,
    batches: PyTree,
    *,
    key: jax.Array,
    radii: Sequence[float] = (0.05, 0.1, 0.2),
    num_steps: int = 20,
    num_restarts: int = 3,
    norm: Norm = "l2",
    adaptive: bool | PyTree | Callable[[PyTree], PyTree] = False,
    per_batch: bool = False,
    k: int = 5,
    num_probes: int = 30,
    density_probes: int = 2,
    density_steps: int = 40,
    num_lines: int = 3,
    x: ArrayLike | None = None,
    filter_axis: int | FilterAxes = -1,
    own_args: Mapping[str, Mapping[str, Any]] | None = None,
    **options: Unpack[DataArgs],
) -> Comparison:
    """Measures several networks alike: R0 and R1, top eigenvalues, trace and density of the Hessian, and slices.

    All networks get the same starts, probes and directions. A loss function that is the same for all compiles once.

    Cost: for each network, in gradient evaluations on the whole data, at most
    ``5 len(radii) (1 + num_restarts) (num_steps + 1)`` for R0 and R1, some ``15 k`` to ``50 k`` for the eigenvalues,
    ``3 num_probes`` for the trace and ``3 density_probes density_steps`` for the density; and an evaluation of the loss
    for each point of a line. Memory: as the dearest of its parts.

    Args:
      networks: parameters by name, each a pytree of floating-point arrays.
      loss_fn: as in :func:`hessian_top_eigenvalues`.
      batches: as in :func:`hessian_top_eigenvalues`.
      key: typed random key.
      radii: of the balls for R0 and R1, > 0.
      num_steps: ascent steps, as in :func:`first_order_flatness`.
      num_restarts: random starts, likewise.
      norm: of the ball, likewise.
      adaptive: the metric of the ball, likewise.
      per_batch: R0 and R1 of each batch, in the mean, likewise.
      k: how many top eigenvalues.
      num_probes: random vectors for the trace, at least 2.
      density_probes: random vectors for the density, at least 2; 0 for none.
      density_steps: Lanczos steps for each of them.
      num_lines: slices along random filter-normalised directions; 0 for none.
      x: coordinates along these, [points]. Default: 21 from -1 to 1.
      filter_axis: as in :func:`filter_normalized_directions`.
      own_args: ``loss_args`` of each network, by its name, in addition to those of all: its batch statistics, say.
      **options: see :class:`gam_jax.flatness.DataOptions`.

    Returns:
      :class:`Comparison`.

    Raises:
      TypeError, ValueError: as the functions that it calls do; the error names the network.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from gam_jax import flatness
      >>> loss_fn = lambda w: jnp.sum(w**2 * (1 + 3 * w**2)) / 2
      >>> networks = {"flat": jnp.zeros(2), "sharp": jnp.ones(2)}
      >>> print(flatness.compare(networks, loss_fn, None, key=jax.random.key(0), radii=[0.1], k=1, density_probes=0))
             loss  gradient norm  top eigenvalue  trace  R0 (0.1)  R1 (0.1)
      flat      0              0               1      2   0.00515    0.0106
      sharp     4          9.899              19     38     1.089     1.193
    """
    check_key(key)
    rho = check_numbers("radii", radii)
    if not (rho > 0).all():
        raise ValueError(f"radii must be positive, got radii={radii!r}")
    for name, number in {"num_steps": num_steps, "num_restarts": num_restarts, "density_steps": density_steps}.items():
        check_integer(name, number)
    check_flag("per_batch", per_batch)
    check_integer("num_probes", num_probes, at_least=2)
    check_integer("density_probes", density_probes, at_least=0)
    if density_probes:
        check_integer("density_probes", density_probes, at_least=2)
    check_integer("num_lines", num_lines, at_least=0)
    x = check_numbers("x", np.linspace(-1, 1, 21) if x is None else x)
    DataOptions(**options)
    own_args = _check_networks(networks, own_args)
    for name, params in networks.items():
        with _named(name):
            check_integer("k", k, at_most=count_parameters(params), of=", the number of parameters")
            check_geometry(norm, adaptive, params)
            filter_axes(params, filter_axis)
    ascent: Any = dict(num_steps=num_steps, num_restarts=num_restarts, norm=norm, adaptive=adaptive)
    ascent |= dict(per_batch=per_batch, key=key)
    density: Any = dict(num_probes=density_probes, num_steps=density_steps, key=key)

    def measured(name: str, params: PyTree) -> Measured:
        args = (loss_fn, params, batches)
        checked: Any = {**options, "loss_args": {**(options.get("loss_args") or {}), **own_args.get(name, {})}}
        of: Any = {**checked, "check_determinism": False}
        with measure(*args, **checked) as objective:
            loss, gradient_norm = objective.value, float(l2_norm(objective.gradient_at(objective.params)[1]))
        lines: Any = dict(key=key, num=num_lines, filter_axis=filter_axis)
        directions = filter_normalized_directions(params, **lines) if num_lines else []
        return Measured(
            loss=loss,
            gradient_norm=gradient_norm,
            zeroth_order=[zeroth_order_flatness(*args, r, **ascent, **of)._replace(maximizer=None) for r in rho],
            first_order=[first_order_flatness(*args, r, **ascent, **of)._replace(maximizer=None) for r in rho],
            eigenvalues=hessian_top_eigenvalues(*args, k, key=key, **of),
            trace=hessian_trace(*args, key=key, num_probes=num_probes, **of),
            density=hessian_density(*args, **density, **of) if density_probes else None,
            lines=[loss_slice(*args, direction, x=x, **of) for direction in directions],
        )

    found = {}
    for name, params in networks.items():
        with _named(name):
            found[name] = measured(name, params)
    return Comparison(rho.tolist(), found)


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Errors inside name the network."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"networks[{name!r}]: {error}") from error


def _check_networks(networks: Any, own_args: Any) -> Mapping[str, Mapping[str, Any]]:
    if not (isinstance(networks, Mapping) and networks and all(isinstance(name, str) for name in networks)):
        raise TypeError(f"networks must be a dict from names to parameters, got networks={networks!r}")
    own = {} if own_args is None else own_args
    if not (isinstance(own, Mapping) and all(isinstance(args, Mapping) for args in own.values())):
        raise TypeError(f"own_args must be a dict from names of networks to dicts, got own_args={own_args!r}")
    unknown = [name for name in own if name not in networks]
    if unknown:
        raise ValueError(f"own_args must name networks, {[*networks]}, got own_args of {unknown}")
    return own
