"""The options that every method of the family shares."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict, get_args

import jax
from jax.core import Tracer

from gam_jax._calls import check_takes
from gam_jax._checks import check_axes, check_choice, check_count, check_flag, check_names, check_number
from gam_jax._metric import check_mask, check_scaling
from gam_jax._signature import Function, readable, release, show_options, static
from gam_jax._types import Between, GroupsBy, HvpMode, PyTree


@readable
@dataclasses.dataclass(frozen=True)
class Options:
    """What every method of the family accepts beside its own coefficients.

    Attributes:
      has_aux: the loss returns ``(loss, aux)``. A chain link drops aux; ``gam_value_and_grad`` returns it.
      interval: the method acts on steps 0, k, 2k, ... only; the others cost nothing beyond the caller's gradient. An
        integer k >= 1, or a function step count -> bool. A Python bool (not an array) decides while tracing: for two
        programs, one for the steps that act and one for the others, between which the training loop chooses. Outside
        jit only what is needed runs. Under vmap nothing acts on the steps on which no member of the ensemble does.
      between: what happens on the other steps. "skip" (default) passes the updates on unchanged. "hold" adds the last
        term again: what the method added to the updates on the last step on which it acted, coefficients included
        (for a method that replaces them, the difference of its result to the clean gradient). "look" adds
        ``look_ratio |g| v / |v|`` to the updates g, where v is the part of the last term orthogonal to the updates
        of its step (LookSAM, Liu et al. 2022, https://arxiv.org/abs/2203.02714; here over all leaves at once). With
        both the state holds one buffer like the parameters, see :class:`gam_jax.Held`.
      look_ratio: the length of what "look" adds, as a multiple of that of the updates. Default 0.5; LookSAM acts on
        every 5th step with 0.2 to 0.7.
      max_ratio: what is added, fresh or held, is shortened where its norm exceeds this multiple of the norm of the
        incoming updates (with ``per_replica``: each replica's own). None (default) is no limit. Terms far longer than
        the gradient, and above all held ones, are what makes a cheap recipe diverge.
      hvp: how Hessian-vector products are computed, in the methods that have any. "linearize" (default) and "jvp" are
        forward over reverse, exact; "linearize" also serves losses with a custom_vjp inside. "reverse" is reverse
        over reverse, exact, for losses without forward mode. "finite_difference" is
        ``(grad(w + rho_prime v) - grad(w)) / rho_prime`` and loses to low precision.
      rho_prime: the step of the finite difference, along a unit direction.
      perturb_mask: a pytree of bools with the structure of the parameters, or a function from the parameters to one.
        Leaves with False neither move in an ascent nor enter a norm. They still receive their part of the gradient.
      adaptive: ascents and norms in a metric of T per parameter: norms are ``||T g||``, steps ``T^2 g / ||T g||``.
        True is ``T = |w|`` (ASAM), :func:`gam_jax.asam_scaling` the form that its authors run, False (default) is 1.
        Otherwise T is a pytree with the structure of the parameters, of arrays like them or scalars, or a function
        from the parameters to one.
      axis_name: the mesh axis or axes of the replicas, inside shard_map or pmap. The updates that come out are
        averaged over it, whether those that come in are or not. Parameters that are divided (FSDP, ZeRO-3) need no
        option: inside shard_map the loss is the mean over all devices (``jax.lax.pmean``) and gathers parameters where
        it uses them, as in examples/fsdp_shard_map.py; norms are then those of all parts. Types tell what is divided,
        but not with ``check_vma=False`` and in pmap, where parameters have to be whole. With replicas beside it, name
        their axes alone, and let the loss be the mean over the others.
      per_replica: each replica perturbs with its own gradient (m-sharpness); one average, at the end. With
        ``between="hold"`` acting steps take one more, of the term.
      groups: m-sharpness on one device: the batch in so many groups, each of which perturbs with its own gradient and
        follows its own; the results are averaged. A number that divides the batch; group i has the rows i, i + n, ...
        Which arguments are split, ``microbatched`` says, and how much each group weighs, ``microbatch_weight``. With
        replicas a group is that of all of them together, with ``per_replica`` each replica's own. A link cannot share
        the caller's gradient with the groups, which costs 1 gradient more; the ``value_and_grad`` form costs nothing
        extra. Memory is that of one group.
      groups_by: "scan" (default), one group after the other, or "vmap", all at once: faster where a group is small,
        with the memory of the whole batch.
      share: the method's own passes see every n-th row of the batch, for the n given here; 1 is all. What it makes of
        the gradient of these rows, less that gradient, is added to the gradient of the whole batch: the cost of a
        method of c gradients is 1 + c / n (SAM with n = 5: 1.4). Rows are found as with ``groups``.
      num_microbatches: the batch is split along the leading axis of its arrays in so many parts, and every pass
        accumulates over them. None is 1. The result is that of the whole batch if the loss is a mean over the rows.
        BatchNorm normalizes by the statistics of each part, so that its result is that of the parts; the new
        statistics come out of ``gam_value_and_grad`` with the rest of aux, stacked along a new leading axis.
      microbatched: which arguments of the loss are split. Every microbatch sees the others whole (model state, class
        weights, random keys). By default the one named ``batch``, or else the only one that holds arrays; several are
        refused. A name, several names, or a dict from names to bools or to pytrees of bools, prefixes of the argument,
        as in ``{"points": {"interior": True, "boundary": True, "weights": False}}``. Arrays under one name, or one
        True, have the same number of rows; different ones, each their own.
      microbatch_weight: for a loss that is a mean over something else than the rows (valid tokens): a function of the
        arguments that are split, in their order, to the weight of a part, as in
        ``lambda batch: batch["mask"].sum()``. The loss is then the weighted mean of that of the parts, over
        ``axis_name`` too, and gradients that come in are averaged over it likewise. A part of weight 0 is left out
        (its NaN too), a negative weight is NaN. By default parts and replicas count alike.
      eps: the xi of Algorithm 1, added to norms that divide. Where a gradient is not much longer than that, ascents are
        shorter than they should be: at 1e-12 a gradient of 5e-16 moves by 5e-4 of the radius. 0 is legal: nothing is
        added, and what is zero stays zero, without NaN.
      drop_nonfinite: on steps on which the method would make inf or NaN of finite updates, as where the Hessian has an
        infinite entry, these pass unchanged. "dropped" in the state's ``checks`` counts such steps. With False
        (default) the inf or NaN stays visible, for ``optax.apply_if_finite``.
      mismatch: measure "mismatch" in the state's ``checks`` (:class:`gam_jax.State`) where the method does not compute
        the gradient itself: in :func:`gam_jax.sam` and all that replace the gradient, with ``share`` and with
        ``per_replica``. It costs 1 gradient where the compiler cannot merge that with the caller's.

    For ``optax.inject_hyperparams`` the loss and the options are static, whether ``static_args`` names them or not;
    only ``max_ratio`` is a hyperparameter, if it is given.
    """

    has_aux: bool = False
    interval: int | Callable[[jax.Array], Any] = 1
    between: Between = "skip"
    look_ratio: float | jax.Array = 0.5
    max_ratio: float | jax.Array | None = None
    hvp: HvpMode = "linearize"
    rho_prime: float | jax.Array = 1e-3
    perturb_mask: PyTree | Callable[[PyTree], PyTree] | None = None
    adaptive: bool | PyTree | Callable[[PyTree], PyTree] = False
    axis_name: Any = None
    per_replica: bool = False
    groups: int = 1
    groups_by: GroupsBy = "scan"
    share: int = 1
    num_microbatches: int | None = None
    microbatched: str | Sequence[str] | Mapping[str, PyTree] | None = None
    microbatch_weight: Callable[..., Any] | None = None
    eps: float | jax.Array = 1e-12
    drop_nonfinite: bool = False
    mismatch: bool = False

    def __post_init__(self):
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, release(getattr(self, field.name)))
        for name in ("has_aux", "per_replica", "drop_nonfinite", "mismatch"):
            check_flag(name, getattr(self, name))
        check_mask(self.perturb_mask)
        check_scaling(self.adaptive)
        check_axes("axis_name", self.axis_name)
        check_choice("hvp", self.hvp, get_args(HvpMode))
        check_choice("between", self.between, get_args(Between))
        check_choice("groups_by", self.groups_by, get_args(GroupsBy))
        check_number("look_ratio", self.look_ratio)
        check_number("eps", self.eps)
        check_number("rho_prime", self.rho_prime, positive=True)
        if callable(self.interval):
            check_takes("interval", self.interval, "count")
        else:
            check_count("interval", self.interval, " or a function count -> bool")
            if self.between != "skip" and not isinstance(self.interval, Tracer) and self.interval == 1:
                raise ValueError(
                    f"between={self.between!r} has no steps to act on: it needs interval > 1, got interval=1"
                )
        if self.max_ratio is not None:
            check_number("max_ratio", self.max_ratio, positive=True)
        for name in ("num_microbatches", "groups", "share"):
            number, optional = getattr(self, name), name == "num_microbatches"
            if isinstance(number, Tracer):
                raise TypeError(f"{name} must be a Python integer, known before the step is compiled, got {number}")
            if not (optional and number is None):
                check_count(name, number, " or None" if optional else "")
        check_names("microbatched", self.microbatched)
        if not (self.microbatch_weight is None or callable(self.microbatch_weight)):
            raise TypeError(
                "microbatch_weight must be a function of the arguments that are split, or None, got "
                f"microbatch_weight={self.microbatch_weight!r}"
            )
        if self.per_replica and self.axis_name is None:
            raise ValueError("per_replica=True needs the axis_name of the replicas, got axis_name=None")


class OptionArgs(TypedDict, total=False):
    """The fields of :class:`Options` as keyword arguments."""

    has_aux: bool
    interval: int | Callable[[jax.Array], Any]
    between: Between
    look_ratio: float | jax.Array
    max_ratio: float | jax.Array | None
    hvp: HvpMode
    perturb_mask: PyTree | Callable[[PyTree], PyTree] | None
    adaptive: bool | PyTree | Callable[[PyTree], PyTree]
    axis_name: Any
    per_replica: bool
    groups: int
    groups_by: GroupsBy
    share: int
    num_microbatches: int | None
    microbatched: str | Sequence[str] | Mapping[str, PyTree] | None
    microbatch_weight: Callable[..., Any] | None
    eps: float | jax.Array
    drop_nonfinite: bool
    mismatch: bool


def options_from(given: Mapping[str, Any], **own: Any) -> Options:
    """The options that a method was given, and those that are arguments of its own.

    Raises:
      TypeError: for a name that is none.
    """
    known = OptionArgs.__annotations__
    for name, value in given.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"the options are {', '.join(known)}"
            raise TypeError(f"there is no option {name}={value!r} here: {hint}")
    return Options(**given, **own)


_STATIC = {"loss_fn", "ascent_steps", "restarts", *OptionArgs.__annotations__} - {"max_ratio"}


def with_options(function: Function) -> Function:
    """Shows the options in the signature of a method; static, as the loss is, but for ``max_ratio``."""
    return static(show_options(Options, OptionArgs.__annotations__)(function), _STATIC)
