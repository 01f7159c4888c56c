"""Instruments that measure flatness: zeroth-order, first-order and second-order, and pictures of the landscape.

=====================================  =================================================================
function                               what it measures
=====================================  =================================================================
:func:`compare`                        several networks alike, in a table and in pictures
:func:`first_order_flatness`           the largest gradient norm within a ball, times its radius: GAM's
:func:`zeroth_order_flatness`          the largest increase of the loss within a ball: SAM's
:func:`average_sharpness`              the mean increase under random perturbations
:func:`hessian_top_eigenvalues`        the largest, smallest or largest absolute eigenvalues
:func:`follow_top_eigenvalue`          the largest, all through training, in one's own step
:func:`hessian_trace`                  the sum of the eigenvalues
:func:`hessian_density`                their distribution
:func:`loss_slice`                     the loss on a line or a plane through the point
:func:`filter_normalized_directions`   directions for it that compare between networks
:func:`count_local_minima`             minima and maxima along random directions
:func:`loss_path`                      the loss between two networks, and its barrier
:func:`eigenvector_overlap`            what their top eigenvectors have in common
=====================================  =================================================================

:func:`first_order_flatness_one_step` and :func:`zeroth_order_flatness_one_step` are the estimates that the optimizers
use. A :class:`SplitLoss` is a loss that has a Gauss-Newton matrix, :func:`normalize_logits` takes the size of logits
out of any measure. Results are named tuples: :class:`Comparison` of :class:`Measured`, :class:`Flatness`,
:class:`AverageSharpness`, :class:`Eigenvalues`, :class:`TraceEstimate`, :class:`SpectralDensity`, :class:`LossSlice`,
:class:`LocalExtrema`, :class:`LossPath`, :class:`Overlap`.

Every measure takes ``loss_fn, params, batches`` (:func:`compare` a dict of params) and works on the mean of the loss
over all examples of a data set, which may be far larger than memory: batches are streamed, and each measurement says
how many passes it makes.

Options that all of them accept are in :class:`DataOptions`.

* ``loss_fn(params, batch) -> scalar``, the mean over the examples of the batch. It must be deterministic: no
  dropout, no augmentation; this is checked first. With batch normalisation the choice is the caller's: a loss
  that closes over the running statistics measures the function that is evaluated at test time; one that
  normalises by the statistics of the batch measures the function that was trained, and then its value depends
  on how the data are cut into batches.
* ``batches``: a pytree of arrays stacked to [num_batches, batch_size, ...], of JAX, NumPy or anything that has a
  shape and gives slices, such as HDF5; or a list, or any object that can be iterated again and again, of batches,
  whose sizes may differ; or None, with ``loss_fn(params)``. A tuple is a pytree, a list is a list of batches. Leaves of
  any other kind, such as the tensors of a PyTorch DataLoader, are taken by ``numpy.asarray``.
* Random choices take a typed key, and estimates come with their standard error.

:func:`follow_top_eigenvalue` makes :class:`Follow`, functions for inside jit with a :class:`FollowState`. The others
run on the host, around compiled passes over batches: they cannot be called inside jit. Each
measurement traces the loss once, as it is then: what it closes over, a module's variables and the attributes of an
object may have changed since the last. A compiled pass is used again where the same loss function gives an equal
trace, so that measuring again at other parameters compiles nothing; a loss function made anew for each call (a
fresh lambda) compiles anew, and what it closes over stays in JAX's cache. A loss that is wrapped in ``jax.jit`` is
traced by the rules of that.
"""

from gam_jax.flatness._ball import Flatness
from gam_jax.flatness._data import DataOptions
from gam_jax.flatness.average import AverageSharpness, average_sharpness
from gam_jax.flatness.comparison import Comparison, Measured, compare
from gam_jax.flatness.density import SpectralDensity, hessian_density
from gam_jax.flatness.eigenvalues import Eigenvalues, hessian_top_eigenvalues
from gam_jax.flatness.first_order import first_order_flatness, first_order_flatness_one_step
from gam_jax.flatness.follow import Follow, FollowState, follow_top_eigenvalue
from gam_jax.flatness.landscape import LossSlice, filter_normalized_directions, loss_slice
from gam_jax.flatness.minima import LocalExtrema, count_local_minima
from gam_jax.flatness.outputs import SplitLoss, normalize_logits
from gam_jax.flatness.path import LossPath, Overlap, eigenvector_overlap, loss_path
from gam_jax.flatness.trace import TraceEstimate, hessian_trace
from gam_jax.flatness.zeroth_order import zeroth_order_flatness, zeroth_order_flatness_one_step

__all__ = [
    "AverageSharpness",
    "Comparison",
    "DataOptions",
    "Eigenvalues",
    "Flatness",
    "Follow",
    "FollowState",
    "LocalExtrema",
    "LossPath",
    "LossSlice",
    "Measured",
    "Overlap",
    "SpectralDensity",
    "SplitLoss",
    "TraceEstimate",
    "average_sharpness",
    "compare",
    "count_local_minima",
    "eigenvector_overlap",
    "filter_normalized_directions",
    "first_order_flatness",
    "first_order_flatness_one_step",
    "follow_top_eigenvalue",
    "hessian_density",
    "hessian_top_eigenvalues",
    "hessian_trace",
    "loss_path",
    "loss_slice",
    "normalize_logits",
    "zeroth_order_flatness",
    "zeroth_order_flatness_one_step",
]
