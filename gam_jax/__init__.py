"""Gradient norm Aware Minimization (GAM) and its family as optax gradient transformations.

Each method is one link of an optax chain, before the base optimizer:

    tx = optax.chain(gam_jax.gam(loss_fn, rho=0.1, alpha=0.5), optax.sgd(0.1, momentum=0.9))

==============================  ==========================================================  =========
method                          what it does                                                gradients
==============================  ==========================================================  =========
:func:`gam`                     adds the gradient of the first-order flatness, exactly      6
:func:`accelerated_gam`         Algorithm 2 of the paper, no Hessian-vector product         4
:func:`sam`                     SAM, and by its options ASAM and GSAM                       2
:func:`friendly_sam`            SAM along the noise of the batch, with a mean of gradients  2
:func:`gradient_norm_penalty`   adds the gradient of the gradient norm at the point         3
:func:`c_flat`                  zeroth- and first-order flatness, for continual learning    4
:func:`fad`                     the same two, for domain generalization                     4
==============================  ==========================================================  =========

* :class:`Options`: what all of them accept beside their coefficients (:data:`HvpMode`, :data:`Between`).
* :class:`State`: what they keep; in it :class:`Diagnostics`, :class:`SamDiagnostics`, :class:`FriendlySamDiagnostics`
  or :class:`PenaltyDiagnostics`, with ``drop_nonfinite`` in :class:`DropDiagnostics`, and with ``between="hold"``
  :class:`Held`.
* :func:`diagnostics`: all that the methods of a chain saw, by name.
* :func:`asam_scaling`: the metric of ASAM as its authors run it, for ``adaptive``.
* :func:`gam_value_and_grad`: GAM in the form of ``jax.value_and_grad``, without a state.
* :func:`released_coefficients`: settings of the authors' released program, for :func:`accelerated_gam`.
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
from gam_jax._hold import DropDiagnostics, Held
from gam_jax._metric import asam_scaling
from gam_jax._options import Options
from gam_jax._transform import Diagnostics, State
from gam_jax._types import Between, HvpMode
from gam_jax.averaging import Swad, SwadState, swad
from gam_jax.rules.accelerated_gam import accelerated_gam, released_coefficients
from gam_jax.rules.c_flat import c_flat
from gam_jax.rules.fad import fad
from gam_jax.rules.friendly_sam import FriendlySamDiagnostics, friendly_sam
from gam_jax.rules.gam import gam, gam_value_and_grad
from gam_jax.rules.gradient_norm_penalty import PenaltyDiagnostics, gradient_norm_penalty
from gam_jax.rules.sam import SamDiagnostics, sam

if _typing.TYPE_CHECKING:
    from gam_jax import equinox as equinox
    from gam_jax import nnx as nnx

__version__ = _version("gam-jax")

__all__ = [
    "Between",
    "Diagnostics",
    "DropDiagnostics",
    "FriendlySamDiagnostics",
    "Held",
    "HvpMode",
    "Options",
    "PenaltyDiagnostics",
    "SamDiagnostics",
    "State",
    "Swad",
    "SwadState",
    "accelerated_gam",
    "asam_scaling",
    "c_flat",
    "diagnostics",
    "fad",
    "flatness",
    "friendly_sam",
    "gam",
    "gam_value_and_grad",
    "gradient_norm_penalty",
    "released_coefficients",
    "sam",
    "swad",
]


def __getattr__(name: str) -> _typing.Any:
    """The seams, imported when they are asked for: the rest needs neither Flax nor Equinox."""
    if name in ("equinox", "nnx"):
        return _importlib.import_module(f"gam_jax.{name}")
    raise AttributeError(f"module 'gam_jax' has no attribute {name!r}")
