"""Gradient norm Aware Minimization (GAM) and its family as optax gradient transformations."""

from importlib.metadata import version as _version

from gam_jax import flatness as flatness
from gam_jax._hold import Held as Held
from gam_jax._options import Options as Options
from gam_jax._transform import Diagnostics as Diagnostics
from gam_jax._transform import State as State
from gam_jax.averaging import Swad as Swad
from gam_jax.averaging import SwadState as SwadState
from gam_jax.averaging import swad as swad
from gam_jax.rules.accelerated_gam import accelerated_gam as accelerated_gam
from gam_jax.rules.accelerated_gam import released_coefficients as released_coefficients
from gam_jax.rules.c_flat import c_flat as c_flat
from gam_jax.rules.fad import fad as fad
from gam_jax.rules.gam import gam as gam
from gam_jax.rules.gam import gam_value_and_grad as gam_value_and_grad
from gam_jax.rules.gradient_norm_penalty import PenaltyDiagnostics as PenaltyDiagnostics
from gam_jax.rules.gradient_norm_penalty import gradient_norm_penalty as gradient_norm_penalty
from gam_jax.rules.sam import SamDiagnostics as SamDiagnostics
from gam_jax.rules.sam import sam as sam

__version__ = _version("gam-jax")
