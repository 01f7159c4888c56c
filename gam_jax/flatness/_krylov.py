"""Krylov spaces of a symmetric operator on pytrees, with full reorthogonalisation and thick restarts.

Why not matfree's: its Lanczos traces the operator into one program with the data inside, and runs a number of
steps fixed beforehand, which keeps every vector. Here the operator is a pass over data streamed from anywhere,
the basis has a fixed size, and the iteration stops when the wanted eigenpairs have converged. The tests compare
the two.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gam_jax._tree import global_norm, scale_by, wide_dtype
from gam_jax._types import PyTree
from gam_jax.flatness._data import automatic
from gam_jax.flatness._vectors import random_like

_EXACT = jax.lax.Precision.HIGHEST  # an accelerator's default for float32 products is less than float32


def _automatic_sharding(leaf: jax.Array) -> Any:
    """The sharding of a leaf over axes that the compiler manages, or None for one that is not spread over a mesh."""
    sharding = leaf.sharding
    if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, Mesh):
        return None
    return NamedSharding(automatic(sharding.mesh), sharding.spec)


def _empty_basis(rows: int, like: PyTree) -> PyTree:
    """Zeros with a new leading axis, sharded as ``like`` is."""

    def zeros(leaf: jax.Array) -> jax.Array:
        sharding = _automatic_sharding(leaf)
        if sharding is not None:
            sharding = NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))
        dtype = wide_dtype(leaf)
        return jnp.zeros((rows, *leaf.shape), dtype, device=sharding)

    return jax.tree.map(zeros, like)


def _enter(v: PyTree) -> PyTree:
    """The vector over automatic axes: sums over an axis that is sharded explicitly would have to say so."""
    shardings = [_automatic_sharding(leaf) for leaf in jax.tree.leaves(v)]
    leaves = [
        leaf if s is None else jax.device_put(leaf, s) for leaf, s in zip(jax.tree.leaves(v), shardings, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(v), leaves)


def _leave(v: PyTree, like: PyTree) -> PyTree:
    """The vector over the axes of the parameters."""
    return jax.tree.map(
        lambda x, y: jax.device_put(x, y.sharding) if isinstance(y.sharding, NamedSharding) else x, v, like
    )


@jax.jit
def _combine(basis: PyTree, weights: jax.Array) -> PyTree:
    return jax.tree.map(lambda q: jnp.tensordot(weights.astype(q.dtype), q, 1, precision=_EXACT), basis)


@jax.jit
def _orthogonalize(basis: PyTree, v: PyTree) -> tuple[PyTree, jax.Array, jax.Array]:
    """v without its components along the rows of the basis, these components, and the norm of what is left.

    Classical Gram-Schmidt, twice, which is as good as exact.
    """
    total = jnp.zeros(())
    for _ in range(2):
        parts = jax.tree.map(lambda q, x: jnp.tensordot(q, x, x.ndim, precision=_EXACT), basis, v)
        along = functools.reduce(jnp.add, jax.tree.leaves(parts))
        v = jax.tree.map(jnp.subtract, v, _combine(basis, along))
        total = total + along
    return v, total, global_norm(v)


@jax.jit
def _orthonormalize(basis: PyTree, v: PyTree) -> tuple[PyTree, jax.Array]:
    """Twice more: what is left of a vector after the first time may be short."""
    v, _, norm = _orthogonalize(basis, v)
    v, _, norm = _orthogonalize(basis, scale_by(1 / norm, v))
    return v, norm


@functools.partial(jax.jit, donate_argnums=0)
def _set_row(basis: PyTree, row: int, v: PyTree, norm: jax.Array) -> PyTree:
    """The basis with ``v / norm`` as a row."""
    return jax.tree.map(lambda q, x: q.at[row].set(x), basis, scale_by(1 / norm, v))


@jax.jit
def _get_row(basis: PyTree, row: int) -> PyTree:
    return jax.tree.map(lambda q: q[row], basis)


@functools.partial(jax.jit, donate_argnums=0)
def _rotate(leaf: jax.Array, rotation: jax.Array) -> jax.Array:
    return jnp.tensordot(rotation.astype(leaf.dtype), leaf, 1, precision=_EXACT)


class Krylov:
    """An orthonormal basis Q of at most ``size`` rows and the projection ``T = Q H Q^T`` of the operator.

    It holds ``H Q_i = sum_j T_ij Q_j`` for all rows but the newest, which has a residual of norm ``beta`` along
    the next row. Memory: ``size + 1`` vectors, and one more leaf's share of them during a restart.

    Attributes:
      length: the number of rows multiplied so far.
      beta: the norm of the residual; 0 when the rows span an invariant space.
      asymmetry: the largest ``|Q_i^T H Q_j - Q_j^T H Q_i|`` seen, over the largest entry of T; rounding, if the
        operator is symmetric.
    """

    def __init__(self, operator: Callable[[PyTree], PyTree], like: PyTree, size: int, key: jax.Array):
        self._operator = operator
        self._like = like
        self._key = key
        self.dimension = sum(leaf.size for leaf in jax.tree.leaves(like))
        self.size = min(size, self.dimension)
        self.length = 0
        self.products = 0
        self.beta = 0.0
        self.asymmetry = 0.0
        self._projection = np.zeros((self.size, self.size))
        self._next = np.zeros(self.size)  # components of H Q_i along the newest row
        self._basis = _empty_basis(self.size + 1, like)

    def clear(self) -> None:
        """Forgets all rows."""
        if self.length:
            self.restart(np.zeros(0), np.zeros((self.length, 0)), keep_residual=False)

    def start(self, v: PyTree) -> None:
        """Sets the next row to ``v``, orthonormalised."""
        self._basis = _set_row(self._basis, self.length, *_orthonormalize(self._basis, _enter(v)))
        self._next[:] = 0

    def start_at_random(self) -> None:
        """Sets the next row to a random direction."""
        self._key, key = jax.random.split(self._key)
        self.start(random_like(key, self._like))

    def step(self) -> None:
        """Multiplies the newest row: one product.

        Raises:
          ValueError: if the product is not finite.
        """
        j = self.length
        v = _enter(self._operator(_leave(_get_row(self._basis, j), self._like)))
        self.products += 1
        v, along, beta = _orthogonalize(self._basis, v)
        along, self.beta = np.asarray(along, np.float64), float(beta)
        if not (np.isfinite(along).all() and np.isfinite(self.beta)):
            raise ValueError(f"the Hessian-vector product must be finite, got a norm of {self.beta}")
        self._projection[j, : j + 1] = self._projection[: j + 1, j] = along[: j + 1]
        self.length = j + 1
        scale = max(np.abs(self._projection[: j + 1, : j + 1]).max(), np.finfo(np.float32).tiny)
        self.asymmetry = max(self.asymmetry, np.abs(along[:j] - self._next[:j]).max(initial=0.0) / scale)
        self._next[:] = 0
        self._next[j] = self.beta
        if self.beta <= 10 * jnp.finfo(beta.dtype).eps * scale:
            self.beta = 0.0
        else:
            self._basis = _set_row(self._basis, self.length, v, beta)

    def ritz(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ritz values (ascending), their coordinates in the rows (columns), and the norms of their residuals."""
        values, coordinates = np.linalg.eigh(self._projection[: self.length, : self.length])
        return values, coordinates, self.beta * np.abs(coordinates[-1])

    def restart(self, values: np.ndarray, coordinates: np.ndarray, *, keep_residual: bool) -> None:
        """Replaces the rows by these Ritz vectors; the residual stays the next row, or is dropped."""
        kept = len(values)
        rotation = np.zeros((self.size + 1, self.size + 1))
        rotation[:kept, : self.length] = coordinates.T
        if keep_residual:
            rotation[kept, self.length] = 1
        self._basis = jax.tree.map(lambda leaf: _rotate(leaf, rotation), self._basis)
        self._next[:] = 0
        self._next[:kept] = self.beta * coordinates[-1] if keep_residual else 0
        self._projection[:] = 0
        self._projection[:kept, :kept] = np.diag(values)
        self.length = kept

    def warn_if_asymmetric(self, machine_epsilon: float) -> None:
        """Warns where the asymmetry is far more than rounding: then this is not the Hessian of the loss."""
        if self.asymmetry > 30 * machine_epsilon**0.5:
            warnings.warn(
                f"the Hessian-vector product is not symmetric, by {self.asymmetry:.2g} of its largest entry: the "
                "gradient of this loss is not that of a function (a gradient reversal, a straight-through "
                "estimator, a custom_vjp with a rule of its own), and what was found is no property of a Hessian",
                RuntimeWarning,
                stacklevel=3,
            )

    def vector(self, coordinates: np.ndarray) -> PyTree:
        """The combination of the rows with these coordinates."""
        weights = np.zeros(self.size + 1)
        weights[: self.length] = coordinates
        return _leave(_combine(self._basis, weights), self._like)
