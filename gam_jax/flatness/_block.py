"""Which leaves of the parameters a measurement is about: all, or those of a mask."""

from typing import Any

import jax
import numpy as np

from gam_jax._check_trees import check_arrays, check_like_params, check_params
from gam_jax._checks import check_bools
from gam_jax._types import PyTree


class Block:
    """The leaves that a measurement is about. Without a mask these are the parameters as they are, else a list.

    Attributes:
      params: these leaves.
      frozen: a list of the others.
    """

    def __init__(self, params: PyTree, mask: Any):
        if mask is None:
            self._keep, self.params, self.frozen = None, params, []
            return
        mask = mask(params) if callable(mask) and jax.tree_util.all_leaves([mask]) else mask
        check_like_params("mask", mask, params)
        check_bools("mask", mask)
        self._keep = [bool(keep) for keep in jax.tree.leaves(mask)]
        self._structure = jax.tree.structure(params)
        self.params = self.select(params)
        self.frozen = [leaf for leaf, keep in zip(jax.tree.leaves(params), self._keep, strict=True) if not keep]
        if not self.params:
            raise ValueError(f"mask leaves nothing to measure, got mask={mask!r}")

    def select(self, tree: PyTree) -> PyTree:
        """These leaves of a pytree like the parameters."""
        if self._keep is None:
            return tree
        return [leaf for leaf, keep in zip(jax.tree.leaves(tree), self._keep, strict=True) if keep]

    def whole(self, params: PyTree, frozen: list[Any]) -> PyTree:
        """All leaves, in the structure of the parameters."""
        if self._keep is None:
            return params
        inside, outside = iter(params), iter(frozen)
        return jax.tree.unflatten(self._structure, [next(inside if keep else outside) for keep in self._keep])


def count_parameters(params: PyTree, mask: Any = None) -> int:
    """The number of parameters of the block, which are checked.

    Raises:
      TypeError: unless they are a pytree of real floating-point arrays, and the mask one of bools.
      ValueError: if there are none.
    """
    check_arrays("params", params)
    check_params(params, params)
    size = sum(np.size(leaf) for leaf in jax.tree.leaves(Block(params, mask).params))
    if size == 0:
        raise ValueError(f"params hold nothing to measure, got no parameters: {params!r}")
    return size
