"""Instruments that measure flatness."""

from gam_jax.flatness._data import DataOptions as DataOptions
from gam_jax.flatness.hessian import Eigenvalues as Eigenvalues
from gam_jax.flatness.hessian import hessian_top_eigenvalues as hessian_top_eigenvalues
