"""Random weight perturbation: the mean loss over draws of noise on chosen leaves, as F2M trains (Shi et al. 2021)."""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gam_jax._calls import check_arguments, check_takes
from gam_jax._check_trees import check_params
from gam_jax._checks import check_choice, check_flag, check_function, check_integer, check_key, check_number
from gam_jax._loss import Loss
from gam_jax._metric import check_mask, resolve_mask
from gam_jax._signature import readable
from gam_jax._tree import add_scaled, global_norm, widen
from gam_jax._types import GroupsBy, LossFn, PyTree

_BINS = 5
_SHAPES = (0.3, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0)
"""What a and b of the Beta distributions are drawn from."""


@readable
def discrete_beta(key: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
    r"""The noise of F2M for one leaf: entries in {-1/2, -1/4, 0, 1/4, 1/2}, by a Beta distribution drawn anew.

    With a and b drawn from {.3, .5, 1, 2, 3, 4, 5}, one pair for all entries, the interval [0, 1] of
    :math:`\beta \sim \mathrm{Beta}(a, b)` in five equal parts, and part k in which :math:`\beta` falls,

    .. math:: \epsilon = (k - 2) / 4, \qquad k \in \{0, \dots, 4\}

    So the noise of one leaf has a mean and a shape of its own; over many draws its mean is zero.

    1. The parts are drawn by their probabilities, differences of :math:`I_x(a, b)`, the regularised incomplete beta
       function. The law is the same as that of binned samples, without the rejections of a sampler of Beta.

    Cost: one uniform number for each entry.

    Args:
      key: typed random key.
      shape: of the noise.

    Returns:
      The noise, an array.

    Raises:
      TypeError, ValueError: for a raw uint32 key, a shape that is none.

    Example:
      >>> import jax, gam_jax
      >>> noise = gam_jax.discrete_beta(jax.random.key(2), (1000,))
      >>> sorted(set(noise.tolist()))
      [-0.5, -0.25, 0.0, 0.25, 0.5]

    References:
      Shi, Chen, Zhang, Zhan, Wu: Overcoming Catastrophic Forgetting in Incremental Few-Shot Learning by Finding Flat
      Minima. NeurIPS 2021. https://arxiv.org/abs/2111.01549
    """
    check_key(key)
    if not isinstance(shape, tuple | list) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise TypeError(f"shape must be a tuple of integers >= 0, got shape={shape!r}")
    of_shapes, of_entries = jax.random.split(key)
    a, b = jax.random.randint(of_shapes, (2,), 0, len(_SHAPES))
    part = jnp.searchsorted(_edges()[a, b], jax.random.uniform(of_entries, shape), side="right", method="compare_all")
    return (part - _BINS // 2) / (_BINS - 1)


def _edges() -> jax.Array:
    """The probabilities below the inner edges of the parts, shape [a, b, edges], for all a and b."""
    with jax.ensure_compile_time_eval():
        shapes, edges = jnp.array(_SHAPES), jnp.arange(1, _BINS) / _BINS
        return jax.scipy.special.betainc(*jnp.meshgrid(shapes, shapes, edges, indexing="ij"))


@readable
def random_perturbation(
    loss_fn: LossFn,
    bound: float | jax.Array,
    *,
    draws: int = 2,
    noise: Callable[..., jax.Array] = discrete_beta,
    spread: float | jax.Array = 0.0,
    perturb_mask: PyTree | Callable[[PyTree], PyTree] | None = None,
    draws_by: GroupsBy = "scan",
    has_aux: bool = False,
) -> LossFn:
    r"""The mean of a loss over draws of noise on the parameters: a loss again, flat minima of which are lower.

    .. math:: \tilde L(w) = \frac1M \sum_{m=1}^M L(w + b\,\epsilon_m) + c\, \sigma, \qquad
        \sigma^2 = \frac1{M-1} \sum_{m=1}^M \Big(L(w + b\,\epsilon_m) - \frac1M \sum_n L(w + b\,\epsilon_n)\Big)^2

    What comes out is a function, and its gradient is exact, at the noisy points:
    :math:`\nabla \tilde L = \frac1M \sum_m \nabla L(w + b\,\epsilon_m) + c \nabla \sigma`, in which
    :math:`\nabla \sigma` is zero where all draws are equal. It goes wherever a loss goes: into ``jax.value_and_grad``,
    into :func:`gam_jax.gam`, all passes of whose step see the same noise.

    * F2M (Shi et al. 2021): the default noise on the last convolutions, and a loss with a prototype term
      (:func:`gam_jax.prototype_distance`); bound 0.01 for CIFAR-100, 0.016 for miniImageNet, 0.0002 for CUB; spread 0,
      and 2 in its released program. Then :func:`gam_jax.clamp_to`.
    * LPF-SGD, RWP: ``noise=jax.random.normal``. Uniform noise: ``functools.partial(jax.random.uniform, minval=-0.5,
      maxval=0.5)``.

    1. The released program writes the noise into the weights and takes it out before the backward pass, so that
       gradients below a noisy layer go through the weights without noise. Here each draw is a point of its own.

    Cost: ``draws`` gradient evaluations. Memory: the activations of all draws; with ``jax.checkpoint(loss_fn)`` of
    one, at one more forward pass for each.

    Args:
      loss_fn: ``loss_fn(params, *args, **kwargs)``, returning a scalar, or ``(scalar, aux)`` with ``has_aux``.
      bound: b, in units of the parameters, >= 0; 0 is the plain loss. A number or a traced scalar.
      draws: M.
      noise: ``noise(key, shape)``, the noise of one leaf for a bound of 1; as :func:`gam_jax.discrete_beta`, or a
        function of ``jax.random``.
      spread: c, the weight of the standard deviation over the draws, >= 0, for which M must be 2 or more.
      perturb_mask: which leaves get noise: a pytree of bools, or a function from the parameters to one; default all.
        The noise of a leaf does not depend on the others'.
      draws_by: "scan", one draw after the other, or "vmap", all at once, so that layers below the first noisy one are
        computed once.
      has_aux: the loss returns ``(scalar, aux)``; then so does what comes out, with aux of every draw, along a leading
        axis [M].

    Returns:
      ``loss(params, *args, noise_key, **kwargs)``: the loss, with a typed random key to be passed by name. The same
      key, the same noise.

    Raises:
      TypeError, ValueError: for a number out of range, a mask that is none of the parameters, noise of another shape,
        a raw uint32 key.

    Example:
      >>> import jax, gam_jax
      >>> import jax.numpy as jnp
      >>> loss_fn = lambda params, batch: jnp.mean((batch @ params["w"] + params["b"]) ** 2)
      >>> perturbed = gam_jax.random_perturbation(loss_fn, bound=0.1, perturb_mask={"w": True, "b": False})
      >>> params, batch = {"w": jnp.ones(3), "b": jnp.ones(())}, jnp.eye(3)
      >>> key = jax.random.fold_in(jax.random.key(0), 7)  # of step 7
      >>> loss, grads = jax.value_and_grad(perturbed)(params, batch, noise_key=key)
      >>> print(f"{loss:.2f} and {loss_fn(params, batch):.2f}")
      4.07 and 4.00

    References:
      Shi et al., NeurIPS 2021, https://arxiv.org/abs/2111.01549; Bisla, Wang, Choromanska (LPF-SGD), AISTATS 2022,
      https://arxiv.org/abs/2201.08025; Li et al. (RWP), TMLR 2024, https://arxiv.org/abs/2404.00357
    """
    loss = Loss.create(loss_fn, has_aux, of="random_perturbation", reserved=("noise_key",), by_name=False)
    check_number("bound", bound)
    check_integer("draws", draws)
    check_function("noise", noise)
    check_takes("noise", noise, "key", "shape")
    check_number("spread", spread)
    if perturb_mask is not None:
        check_mask(perturb_mask)
    check_flag("has_aux", has_aux)
    check_choice("draws_by", draws_by, ("scan", "vmap"))
    spreads = not (isinstance(spread, int | float) and spread == 0)
    if spreads and draws < 2:
        raise ValueError(f"spread needs 2 draws or more, got draws={draws} with spread={spread!r}")

    @functools.wraps(loss_fn)
    def perturbed(params: PyTree, *args: Any, noise_key: jax.Array, **kwargs: Any) -> Any:
        check_params(params, params)
        check_key(noise_key)
        check_arguments(loss.signature, args, kwargs)
        mask = resolve_mask(perturb_mask, params)

        def draw(key: jax.Array) -> tuple[jax.Array, Any]:
            value, aux = loss(_perturb(params, mask, bound, noise, key), (args, kwargs))
            return widen(value), aux

        keys = jax.random.split(noise_key, draws)
        values, aux = jax.vmap(draw)(keys) if draws_by == "vmap" else jax.lax.map(draw, keys)
        value = values.mean()
        if spreads:
            value += spread * global_norm(values - value) / math.sqrt(draws - 1)
        return (value, aux) if has_aux else value

    perturbed.__signature__ = _with_key(loss_fn)  # pyright: ignore[reportAttributeAccessIssue]
    return perturbed


def _perturb(params: PyTree, mask: PyTree | None, bound: Any, noise: Callable[..., Any], key: jax.Array) -> PyTree:
    """The parameters with one draw of noise, formed in float32 or wider, in their dtypes."""
    leaves, structure = jax.tree.flatten(params)
    moves = [True] * len(leaves) if mask is None else jax.tree.leaves(mask)
    keys = [jax.random.fold_in(key, i) for i in range(len(leaves))]
    drawn = [
        _noisy(jnp.asarray(leaf), bound, noise, own) if move else leaf
        for leaf, move, own in zip(leaves, moves, keys, strict=True)
    ]
    return structure.unflatten(drawn)


def _noisy(leaf: jax.Array, bound: Any, noise: Callable[..., Any], key: jax.Array) -> jax.Array:
    drawn = noise(key, leaf.shape)
    dtype, shape = getattr(drawn, "dtype", None), getattr(drawn, "shape", None)
    real = dtype is not None and (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer))
    if not real or shape != leaf.shape:
        raise TypeError(f"noise must return an array of real numbers of shape {leaf.shape}, got {drawn!r}")
    return add_scaled(leaf, bound, drawn)


def _with_key(loss_fn: LossFn) -> inspect.Signature:
    """The signature of the loss with a key beside, by name: so links of a chain find it."""
    parameters = list(inspect.signature(loss_fn).parameters.values())
    rest = [p for p in parameters if p.kind is p.VAR_KEYWORD]
    key = inspect.Parameter("noise_key", inspect.Parameter.KEYWORD_ONLY)
    return inspect.Signature([p for p in parameters if p.kind is not p.VAR_KEYWORD] + [key] + rest)
