"""Gradient norm Aware Minimization (GAM) and its family as optax gradient transformations.

Each method is one link of an optax chain, before the base optimizer:

    tx = optax.chain(gam_jax.gam(loss_fn, rho=0.1, alpha=0.5), optax.sgd(0.1, momentum=0.9))

==============================  ==========================================================  =========
method                          what it does                                                gradients
==============================  ==========================================================  =========
:func:`gam`                     adds the gradient of the first-order flatness, exactly      6
:func:`accelerated_gam`         Algorithm 2 of the paper, no Hessian-vector product         4
:func:`sam`                     SAM, and by its options ASAM, GSAM and SA-GD (1 + k)        2
:func:`friendly_sam`            SAM along the noise of the batch, with a mean of gradients  2
:func:`gradient_norm_penalty`   adds the gradient of the gradient norm at the point         3
:func:`c_flat`                  zeroth- and first-order flatness, for continual learning    4
:func:`fad`                     the same two, for domain generalization                     4
==============================  ==========================================================  =========

Or one line changes, and no optimizer: ``gam_jax.gam_value_and_grad(loss_fn)`` in place of
``jax.value_and_grad(loss_fn)``. So for each method: :func:`gam_value_and_grad`, :func:`accelerated_gam_value_and_grad`,
:func:`sam_value_and_grad`, :func:`friendly_sam_value_and_grad`, :func:`gradient_norm_penalty_value_and_grad`,
:func:`c_flat_value_and_grad`, :func:`fad_value_and_grad`, and SAM + GAM: :func:`sam_gam_value_and_grad`, with
:class:`SamGamDiagnostics`.

* :class:`Options`: what all of them accept beside their coefficients (:data:`HvpMode`, :data:`Between`,
  :data:`GroupsBy`).
* :class:`State`: what they keep; in it :class:`Diagnostics`, :class:`SamDiagnostics`, :class:`FriendlySamDiagnostics`
  or :class:`PenaltyDiagnostics`, and with ``between="hold"`` or ``"look"`` :class:`Held`.
* :func:`diagnostics`: all that the methods of a chain saw, by name.
* :func:`asam_scaling`: the metric of ASAM as its authors run it, for ``adaptive``.
* :func:`late_phase`: the last part of a run, for ``interval``.
* :func:`released_coefficients`: settings of the authors' released program, for :func:`accelerated_gam`.
* :func:`random_perturbation`: the mean of a loss over draws of noise on the parameters, :func:`discrete_beta`'s or
  another's. :func:`clamp_to`: parameters kept near a reference (:class:`ClampState`). :func:`class_prototypes`,
  :func:`prototype_distance`, :func:`prototype_logits` (:class:`Prototypes`): class means. Together F2M.
* :func:`swad`: the average of the iterates (:class:`Swad`, :class:`SwadState`).
* :mod:`gam_jax.flatness`: instruments that measure how flat a point is.
* :mod:`gam_jax.nnx` and :mod:`gam_jax.equinox`: the same form for models of Flax NNX and of Equinox, which are imported
  on first use.
"""

import importlib as _importlib
import typing as _typing
from importlib.metadata import version as _version

from gam_jax import flatness
from gam_jax._diagnostics import diagnostics
from gam_jax._hold import Held
from gam_jax._interval import late_phase
from gam_jax._metric import asam_scaling
from gam_jax._options import Options
from gam_jax._transform import Diagnostics, State
from gam_jax._types import Between, GroupsBy, HvpMode
from gam_jax.averaging import Swad, SwadState, swad
from gam_jax.projection import ClampState, clamp_to
from gam_jax.prototypes import Prototypes, class_prototypes, prototype_distance, prototype_logits
from gam_jax.rules.accelerated_gam import (
    accelerated_gam,
    accelerated_gam_value_and_grad,
    released_coefficients,
)
from gam_jax.rules.c_flat import c_flat, c_flat_value_and_grad
from gam_jax.rules.fad import fad, fad_value_and_grad
from gam_jax.rules.friendly_sam import FriendlySamDiagnostics, friendly_sam, friendly_sam_value_and_grad
from gam_jax.rules.gam import gam, gam_value_and_grad
from gam_jax.rules.gradient_norm_penalty import (
    PenaltyDiagnostics,
    gradient_norm_penalty,
    gradient_norm_penalty_value_and_grad,
)
from gam_jax.rules.random_perturbation import discrete_beta, random_perturbation
from gam_jax.rules.sam import SamDiagnostics, sam, sam_value_and_grad
from gam_jax.rules.sam_gam import SamGamDiagnostics, sam_gam_value_and_grad

if _typing.TYPE_CHECKING:
    from gam_jax import equinox as equinox
    from gam_jax import nnx as nnx

__version__ = _version("gam-jax")

__all__ = [
    "Between",
    "ClampState",
    "Diagnostics",
    "FriendlySamDiagnostics",
    "GroupsBy",
    "Held",
    "HvpMode",
    "Options",
    "PenaltyDiagnostics",
    "Prototypes",
    "SamDiagnostics",
    "SamGamDiagnostics",
    "State",
    "Swad",
    "SwadState",
    "accelerated_gam",
    "accelerated_gam_value_and_grad",
    "asam_scaling",
    "c_flat",
    "c_flat_value_and_grad",
    "clamp_to",
    "class_prototypes",
    "diagnostics",
    "discrete_beta",
    "fad",
    "fad_value_and_grad",
    "flatness",
    "friendly_sam",
    "friendly_sam_value_and_grad",
    "gam",
    "gam_value_and_grad",
    "gradient_norm_penalty",
    "gradient_norm_penalty_value_and_grad",
    "late_phase",
    "prototype_distance",
    "prototype_logits",
    "random_perturbation",
    "released_coefficients",
    "sam",
    "sam_gam_value_and_grad",
    "sam_value_and_grad",
    "swad",
]


def __getattr__(name: str) -> _typing.Any:
    """The seams, imported when they are asked for: the rest needs neither Flax nor Equinox."""
    if name in ("equinox", "nnx"):
        return _importlib.import_module(f"gam_jax.{name}")
    raise AttributeError(f"module 'gam_jax' has no attribute {name!r}")
