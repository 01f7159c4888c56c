"""What tells a whole checkpoint from a damaged or a diverged one: checksums and finiteness of everything saved."""

import json
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.errors import require

_FINITE = ("params", "model_state", "opt_state")
"""Parts of a state that are finite in every good one; SWAD's keeps NaN where it has no loss yet."""


def inspect(tree: Any) -> tuple[jax.Array, jax.Array]:
    """Of each array its checksum, and whether all of it is finite; one pass over the state, on the devices."""
    return checksums(tree), jnp.stack([_is_finite(leaf) for leaf in jax.tree.leaves(tree)])


def not_finite(names: list[str], finite: np.ndarray) -> list[str]:
    """Names of the parameters, batch statistics and optimizer's arrays that are not finite."""
    return [name for name, is_finite in zip(names, finite, strict=True) if not is_finite and name.startswith(_FINITE)]


def make_record(sums: np.ndarray, scores: dict[str, Any]) -> dict[str, Any]:
    """What lies beside the arrays, as JSON holds it."""
    return {"checksums": sums.tolist(), "scores": scores, "scores_checksum": _of_json(scores)}


def read_record(record: Any, count: int) -> tuple[list[int], dict[str, Any]]:
    """Checksums and scores; those of earlier versions have no checksum of the scores.

    Raises:
      UserError: if it is not the record of that many arrays.
    """
    require(isinstance(record, dict), f"its record is {repr(record)[:40]}, expected an object")
    fields = {"checksums": list, "scores": dict} | ({"scores_checksum": int} if len(record) == 3 else {})
    wrong = [name for name in fields | record if type(record.get(name)) is not fields.get(name)]
    require(not wrong, f"its record holds no {' and no '.join(wrong)} as they are saved, got {repr(record)[:80]}")
    sums, scores = record["checksums"], record["scores"]
    require(
        len(sums) == count and all(type(number) is int for number in sums),
        f"its record holds {len(sums)} checksums, expected {count} integers",
    )
    there, here = record.get("scores_checksum"), _of_json(scores)
    require(there in (None, here), f"its scores are not what was saved: checksum {here}, expected {there}")
    return sums, scores


def checksums(tree: Any) -> jax.Array:
    """One number per array, uint32, that any flipped bit changes; the same however the arrays are divided.

    It is the sum of the array's 32-bit words, each times an odd number that depends on its place, modulo 2^32.
    """
    return jnp.stack([_checksum(leaf) for leaf in jax.tree.leaves(tree)])


def _checksum(leaf: jax.Array) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jnp.bool_):
        leaf = leaf.astype(jnp.uint8)
    width = 8 * leaf.dtype.itemsize
    word = jnp.uint32 if width >= 32 else {16: jnp.uint16, 8: jnp.uint8}[width]
    words = jax.lax.bitcast_convert_type(leaf, word).astype(jnp.uint32)
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis in range(words.ndim):
        place = place * jnp.uint32(words.shape[axis]) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)


def _is_finite(leaf: jax.Array) -> jax.Array:
    return jnp.isfinite(leaf).all() if jnp.issubdtype(leaf.dtype, jnp.inexact) else jnp.array(True)


def _of_json(tree: Any) -> int:
    return zlib.crc32(json.dumps(tree, sort_keys=True).encode())
