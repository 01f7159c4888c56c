"""Sharpness-Aware Minimization and its relatives: SAM, ASAM, GSAM."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import jax
import optax

from gam_jax._engine import Engine
from gam_jax._maximum import ONE_STEP, Look, Search
from gam_jax._method import Method, Step
from gam_jax._options import OptionArgs, options_from, with_options
from gam_jax._transform import State, as_link
from gam_jax._tree import add_scaled, cosine, perpendicular
from gam_jax._types import LossFn, PyTree, ScalarOrSchedule
from gam_jax._value_and_grad import as_value_and_grad


class SamDiagnostics(NamedTuple):
    """What SAM saw, at no extra cost.

    Attributes:
      grad_norm: ``||grad L(w)||``.
      perturbed_grad_norm: ``||grad L||`` at the ascent point of the loss.
      cosine: of the angle between the two gradients.
    """

    grad_norm: jax.Array
    perturbed_grad_norm: jax.Array
    cosine: jax.Array


class SamState(State):
    """The state of :func:`gam_jax.sam`."""

    __slots__ = ()
    method = "sam"


def _rule(engine: Engine, updates: PyTree | None, *, rho: PyTree, gamma: jax.Array, search: Search) -> Step:
    here = engine.clean(updates)
    g1, seen = sam_gradient(engine, here.grad, rho, search)
    return Step(here, add_scaled(g1, -gamma, perpendicular(here.grad, g1, engine.apart)), seen)


def sam_gradient(engine: Engine, g0: PyTree, rho: PyTree, search: Search = ONE_STEP) -> tuple[PyTree, SamDiagnostics]:
    """The gradient at the ascent point of the loss, which the clean gradient leads to."""

    def look(params: PyTree) -> Look:
        there = engine.curvature.at(params)
        assert there.value is not None
        return Look(there.value, there.grad)

    g1 = search.highest(engine, look, g0, rho).grad
    return g1, SamDiagnostics(engine.metric.norm(g0), engine.metric.norm(g1), cosine(g0, g1, engine.apart))


def _method(rho: Any, gamma: Any, search: Search, options: Any) -> Method:
    search.check_radius(rho)
    rule = functools.partial(_rule, search=search)
    return Method(rule, SamDiagnostics, {"rho": rho, "gamma": gamma}, options_from(options))


@with_options
def sam(
    loss_fn: LossFn,
    rho: ScalarOrSchedule = 0.05,
    *,
    gamma: ScalarOrSchedule = 0.0,
    ascent_steps: int = 1,
    restarts: jax.Array | None = None,
    **options: Unpack[OptionArgs],
) -> optax.GradientTransformationExtraArgs:
    r"""Replaces the gradient by that at the worst point nearby: SAM, and with options ASAM and GSAM.

    With the incoming updates :math:`g_0 = \nabla L(w)`, which must be the clean gradient of ``loss_fn``,

    .. math::
        g_1 = \nabla L(w + \rho\, g_0 / (\|g_0\| + \xi)), \qquad
        update = g_1 - \gamma\, (g_0 - \langle g_0, \hat g_1\rangle \hat g_1)

    * SAM (Foret et al. 2021): the default.
    * ASAM (Kwon et al. 2021): ``adaptive=True``, the step is :math:`\rho\, T^2 g_0 / \|T g_0\|` with :math:`T = |w|`;
      as its authors run it, ``adaptive=gam_jax.asam_scaling``.
    * GSAM (Zhuang et al. 2022): ``gamma > 0``, the weight of the component of the clean gradient orthogonal to g_1,
      which is descended along the other way; its rho is a schedule proportional to the learning rate.
    * SAM + GAM: ``optax.chain(sam(loss_fn, 0.05), gam(loss_fn, 0.1, 0.5), optax.sgd(0.1))``.

    * LookSAM (Liu et al. 2022): ``interval=5, between="look", look_ratio=0.7``.
    * m-sharpness, with which SAM's gains were published: ``groups=n`` on one device, ``per_replica`` over several.

    Of what comes in, only the direction is used, as that of the ascent; gamma, ``share``, "hold" and "look" use more
    of it. So a link before this one changes where the gradient is taken, and its lengths are lost: clipping there does
    nothing, weight decay belongs after. On purpose this gives, with references of the tests,

    * VaSSO (Li and Giannakis 2023): ``optax.chain(optax.ema(0.9, debias=False), sam(...))``, an ascent along the mean.
    * GC-SAM (Hassan et al. 2025): ``optax.chain(optax.centralize(), sam(...), optax.centralize())``.
    * DISAM (Zhang et al. 2024): the gradient that is passed in is that of the mean loss of the domains less a multiple
      of their variance, ``loss_fn`` the mean alone.
    * WSAM (Yue et al. 2023) of weight c is :func:`gam_jax.gradient_norm_penalty` with ``hvp="finite_difference"``,
      ``rho_prime=rho`` and ``strength=rho * c / (1 - c)``.

    SA-GD (Schliserman et al. 2025) takes the gradient at the true maximum of the loss in the ball,
    :math:`\nabla L(w + \arg\max_{\|\epsilon\| \le \rho} L(w + \epsilon))`, of which SAM's point is the first guess.
    ``ascent_steps=k`` looks for it by projected ascent, as :func:`gam_jax.flatness.zeroth_order_flatness` does: at k
    points one after the other, SAM's first, each along the gradient at the highest so far. ``restarts`` does so from
    random points of the sphere as well, which also sees what lies around a minimum, where there is no gradient to
    follow. The result is the gradient at the highest of all these points.

    Cost: 2 gradient evaluations, the caller's own included; 1 + k with ``ascent_steps=k``, and k more for each of the
    ``restarts``.

    ``optax.MultiSteps`` around it accumulates the incoming gradient alone: what comes out is the gradient of the last
    microbatch, at points to which the accumulated one leads. ``num_microbatches`` gives that of the whole batch.

    Args:
      loss_fn: as in :func:`gam_jax.gam`.
      rho: perturbation radius, a float, a traced scalar or a schedule. Default 0.05, as in Foret et al., which is good
        for the ResNets and the ViT below, and little for an MLP; ASAM wants about 10 times as much. Or a pytree of
        these, one for each leaf or layer (:func:`gam_jax.gam`). Good on validation images of small networks
        (docs/tuning.md): with SGD 0.01 to 0.15 for a ResNet with BatchNorm (0.3 with wrong labels), 0.2 to
        0.5 for an MLP; with AdamW 0.01 to 0.05 for a ViT.
      gamma: GSAM's weight of the orthogonal component, likewise; called alpha in its paper, which tunes over
        {.1, .2, .3} for ResNets and {.4, .6} for ViTs.
      ascent_steps: k, the points looked at from each start. Default 1, SAM. More want one radius for all leaves.
      restarts: typed keys, one for each random start, as ``jax.random.split(jax.random.key(0), 3)`` makes them. The
        random directions are the same at every step; those of divided parameters depend on how these are divided.
      **options: see :class:`gam_jax.Options`.

    Returns:
      An ``optax.GradientTransformationExtraArgs``, with :class:`gam_jax.SamDiagnostics` in its state.

    Raises:
      ValueError, TypeError: as :func:`gam_jax.gam` does.

    Example:
      >>> import jax, optax, gam_jax
      >>> import jax.numpy as jnp
      >>> loss_fn = lambda params: jnp.sum(params**2)
      >>> tx = gam_jax.sam(loss_fn, rho=0.5)
      >>> params = jnp.array([3.0, 4.0])
      >>> updates, state = tx.update(jax.grad(loss_fn)(params), tx.init(params), params)
      >>> print(jnp.array_str(updates, precision=2))
      [6.6 8.8]

      The true maximum, where the loss curves more across the gradient than along it:

      >>> loss_fn = lambda params: jnp.sum(jnp.array([1.0, 9.0]) * params**2) / 2
      >>> tx = gam_jax.sam(loss_fn, rho=0.5, ascent_steps=20, restarts=jax.random.split(jax.random.key(0), 3))
      >>> params = jnp.array([1.0, 0.0])
      >>> updates, state = tx.update(jax.grad(loss_fn)(params), tx.init(params), params)
      >>> print(jnp.array_str(jnp.abs(updates), precision=1))
      [1.1 4.4]

    References:
      Foret et al., ICLR 2021, https://arxiv.org/abs/2010.01412; Kwon et al., ICML 2021,
      https://arxiv.org/abs/2102.11600; Zhuang et al., ICLR 2022, https://arxiv.org/abs/2203.08065;
      Liu et al., CVPR 2022, https://arxiv.org/abs/2203.02714; Li and Giannakis, NeurIPS 2023,
      https://arxiv.org/abs/2310.15225; Yue et al., KDD 2023, https://arxiv.org/abs/2305.15817; Zhang et al., ICLR 2024,
      https://arxiv.org/abs/2405.18861; Hassan et al. 2025, https://arxiv.org/abs/2501.11584; Schliserman,
      Vansover-Hager and Koren 2025, https://arxiv.org/abs/2511.03548
    """
    return as_link(loss_fn, _method(rho, gamma, Search(ascent_steps, restarts), options), SamState)


@with_options
def sam_value_and_grad(
    loss_fn: LossFn,
    rho: ScalarOrSchedule = 0.05,
    *,
    gamma: ScalarOrSchedule = 0.0,
    ascent_steps: int = 1,
    restarts: jax.Array | None = None,
    has_diagnostics: bool = False,
    **options: Unpack[OptionArgs],
) -> Callable[..., tuple[Any, ...]]:
    r"""``jax.value_and_grad`` with the gradient of SAM, ASAM or GSAM in place of that of the loss.

    The mathematics and the arguments are those of :func:`sam`; what is returned, and what the options mean, is said
    at :func:`gam_value_and_grad`.

    Cost: 2 gradient evaluations; 1 + k with ``ascent_steps=k``, and k more for each of the ``restarts``.

    Args:
      loss_fn: ``loss_fn(params, *args, **kwargs)``, returning a scalar, or ``(scalar, aux)`` with ``has_aux=True``.
      rho: perturbation radius.
      gamma: GSAM's weight of the orthogonal component.
      ascent_steps, restarts: as in :func:`sam`.
      has_diagnostics: return what the method saw as well (:class:`gam_jax.SamDiagnostics`).
      **options: see :class:`gam_jax.Options`.

    Returns:
      A function ``(params, *args, **kwargs) -> (loss, grads)``.

    Raises:
      ValueError, TypeError: as :func:`gam_value_and_grad` does.

    Example:
      >>> import gam_jax
      >>> import jax.numpy as jnp
      >>> loss_fn = lambda params, scale: scale * jnp.sum(params**2)
      >>> loss, grads = gam_jax.sam_value_and_grad(loss_fn, rho=0.5)(jnp.array([3.0, 4.0]), 1.0)
      >>> print(loss, jnp.array_str(grads, precision=2))
      25.0 [6.6 8.8]
    """
    return as_value_and_grad(loss_fn, _method(rho, gamma, Search(ascent_steps, restarts), options), has_diagnostics)
