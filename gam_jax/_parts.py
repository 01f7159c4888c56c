"""Parts of a batch: microbatches or groups, what a function gives on each and on average, how much each weighs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gam_jax._calls import check_takes
from gam_jax._loss import Arguments, Loss
from gam_jax._options import Options
from gam_jax._replicas import as_varying, mean_over
from gam_jax._rows import Rows
from gam_jax._shards import varying_axes
from gam_jax._tree import add_scaled, cast_like, scale_by, wide_dtype, zero_if_weightless
from gam_jax._types import GroupsBy, PyTree


@dataclasses.dataclass(frozen=True)
class Parts:
    """The arguments of one step, in ``number`` parts.

    Attributes:
      arguments: the whole.
      number: of parts.
      rows: the arrays that are split.
      weights: of the parts, with mean one; None for equal ones.
      share: the weight of this replica, with mean one over the replicas; None for equal ones.
      by: the parts one after the other, or all at once.
    """

    arguments: Arguments
    number: int = 1
    rows: Rows | None = None
    weights: jax.Array | None = None
    share: jax.Array | None = None
    by: GroupsBy = "scan"

    @classmethod
    def microbatches(cls, loss: Loss, arguments: Arguments, options: Options) -> "Parts":
        """Those over which every pass accumulates."""
        return cls._create(loss, arguments, options, "num_microbatches", options.num_microbatches or 1)

    @classmethod
    def groups(cls, loss: Loss, arguments: Arguments, options: Options) -> "Parts":
        """Those each of which perturbs with its own gradient. The groups of replicas that perturb alike weigh alike."""
        parts = cls._create(loss, arguments, options, "groups", options.groups)
        if parts.weights is None or options.axis_name is None or options.per_replica:
            return dataclasses.replace(parts, by=options.groups_by)
        assert parts.share is not None
        weights = mean_over(options.axis_name, parts.weights * parts.share)
        return dataclasses.replace(parts, weights=weights, by=options.groups_by)

    @classmethod
    def _create(cls, loss: Loss, arguments: Arguments, options: Options, option: str, number: int) -> "Parts":
        weigh = options.microbatch_weight
        if number == 1 and weigh is None:
            return cls(arguments)
        rows = Rows.find(loss, arguments, options.microbatched, option, number)
        if weigh is None:
            return cls(arguments, number, rows)
        weights = jax.vmap(lambda part: _weight(weigh, rows.named(part)))(rows.split(number))
        mean = weights.mean()
        share = None if options.axis_name is None else _relative(mean, mean_over(options.axis_name, mean))
        return cls(arguments, number, rows, _relative(weights, mean), share)

    def mean(self, fn: Callable[[Arguments], tuple[Any, Any, Any]]) -> tuple[Any, Any, Any]:
        """``fn: arguments -> (value, aux, tree)``, value and tree averaged in float32 or wider, aux stacked."""
        if self.number == 1:
            return fn(self.arguments)
        rows = self.rows
        assert rows is not None

        def term(part: Any) -> tuple[Any, Any]:
            slices, weight = part
            value, aux, tree = fn(rows.rebuild(slices))
            return zero_if_weightless(weight, (value, tree)), aux

        def step(total: Any, part: Any) -> tuple[Any, Any]:
            new, aux = term(part)
            return add_scaled(total, 1.0 if part[1] is None else part[1], new), aux

        parts = rows.split(self.number), self.weights
        try:
            like = jax.eval_shape(lambda part: term(part)[0], jax.tree.map(lambda leaf: leaf[0], parts))
        except (TypeError, ValueError) as error:
            if not rows.doubtful:
                raise
            raise ValueError(
                f"the loss fails on a part of the batch, which gets {rows.doubtful} whole: if these have a row for "
                f"each of the batch, name them in microbatched. {error}"
            ) from error
        if self.by == "scan":
            total, aux = jax.lax.scan(step, _wide_zeros(like), parts)
        else:
            terms, aux = jax.vmap(term)(parts)
            total = jax.tree.map(lambda each: _weighted_sum(each, self.weights), terms)
        value, tree = cast_like(scale_by(1 / self.number, total), like)
        return value, aux, tree


def every_nth(loss: Loss, arguments: Arguments, options: Options) -> Arguments:
    """The arguments with every n-th row of the batch, where n is ``options.share``."""
    rows = Rows.find(loss, arguments, options.microbatched, "share", options.share, even=False)
    return rows.rebuild(rows.every(options.share))


def _weight(weigh: Callable[..., Any], parts: list[Any]) -> jax.Array:
    """The weight of a microbatch, NaN for a negative one."""
    check_takes("microbatch_weight", weigh, *(f"argument {i}" for i in range(len(parts))))
    got = weigh(*parts)
    try:
        weight = jnp.asarray(got)
    except (TypeError, ValueError):
        raise TypeError(f"microbatch_weight must give a real scalar, got {got!r}") from None
    if weight.shape or not jnp.issubdtype(weight.dtype, jnp.number) or jnp.iscomplexobj(weight):
        raise TypeError(f"microbatch_weight must give a real scalar, got shape {weight.shape} and {weight.dtype}")
    weight = weight.astype(wide_dtype(weight))
    return jnp.where(weight >= 0, weight, jnp.nan)


def _relative(weight: jax.Array, mean: jax.Array) -> jax.Array:
    """``weight / mean``; zero where nothing weighs anything."""
    return jnp.where(mean == 0, 0, weight / jnp.where(mean == 0, 1, mean))


def _weighted_sum(each: jax.Array, weights: jax.Array | None) -> jax.Array:
    """The sum over the leading axis in float32 or wider."""
    wide = each.astype(wide_dtype(each))
    return wide.sum(0) if weights is None else jnp.tensordot(weights.astype(wide.dtype), wide, 1)


def _wide_zeros(shapes: PyTree) -> PyTree:
    """Zeros in float32 or wider, with the sharding and the varying axes of the shapes."""

    def zeros(shape: Any) -> jax.Array:
        wide = jax.lax.full_like(shape, 0, wide_dtype(shape))
        return as_varying(tuple(varying_axes(shape)), wide)

    return jax.tree.map(zeros, shapes)
