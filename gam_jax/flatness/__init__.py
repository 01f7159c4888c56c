"""Instruments that measure flatness: zeroth-order, first-order and second-order, and pictures of the landscape.

Every one takes ``loss_fn, params, batches`` and works on the mean of the loss over all examples of a data set,
which may be far larger than memory: batches are streamed, and each measurement says how many passes it makes.

* ``loss_fn(params, batch) -> scalar``, the mean over the examples of the batch. It must be deterministic: no
  dropout, no augmentation; this is checked first. With batch normalisation the choice is the caller's: a loss
  that closes over the running statistics measures the function that is evaluated at test time; one that
  normalises by the statistics of the batch measures the function that was trained, and then its value depends
  on how the data are cut into batches.
* ``batches``: a pytree of arrays stacked to [num_batches, batch_size, ...], of JAX, NumPy or anything that has a
  shape and gives slices, such as HDF5; or a list, or any object that can be iterated again and again, of batches,
  whose sizes may differ; or None, with ``loss_fn(params)``. A tuple is a pytree, a list is a list of batches.
* Random choices take a typed key, and estimates come with their standard error.

These functions run on the host, around compiled passes over batches: they cannot be called inside jit. The
compiled passes are kept per loss function and shapes, so that measuring again at other parameters compiles
nothing; a loss function made anew for each call (a fresh lambda) compiles anew, and what it closes over stays in
JAX's cache.
"""

from gam_jax.flatness._ball import Flatness as Flatness
from gam_jax.flatness._data import DataOptions as DataOptions
from gam_jax.flatness.density import SpectralDensity as SpectralDensity
from gam_jax.flatness.density import hessian_density as hessian_density
from gam_jax.flatness.eigenvalues import Eigenvalues as Eigenvalues
from gam_jax.flatness.eigenvalues import TraceEstimate as TraceEstimate
from gam_jax.flatness.eigenvalues import hessian_top_eigenvalues as hessian_top_eigenvalues
from gam_jax.flatness.eigenvalues import hessian_trace as hessian_trace
from gam_jax.flatness.first_order import first_order_flatness as first_order_flatness
from gam_jax.flatness.first_order import first_order_flatness_one_step as first_order_flatness_one_step
from gam_jax.flatness.landscape import LossSlice as LossSlice
from gam_jax.flatness.landscape import filter_normalized_directions as filter_normalized_directions
from gam_jax.flatness.landscape import loss_slice as loss_slice
from gam_jax.flatness.minima import LocalExtrema as LocalExtrema
from gam_jax.flatness.minima import count_local_minima as count_local_minima
from gam_jax.flatness.zeroth_order import zeroth_order_flatness as zeroth_order_flatness
from gam_jax.flatness.zeroth_order import zeroth_order_flatness_one_step as zeroth_order_flatness_one_step
