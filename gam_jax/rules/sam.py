"""Sharpness-Aware Minimization and its relatives: SAM, ASAM, GSAM."""

from typing import NamedTuple, Unpack

import jax
import optax

from gam_jax._engine import Engine
from gam_jax._options import OptionArgs, Options, with_options
from gam_jax._transform import State, from_rule
from gam_jax._tree import add_scaled, cosine, perpendicular
from gam_jax._types import LossFn, PyTree, ScalarOrSchedule


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


def _rule(engine: Engine, updates: PyTree, *, rho: PyTree, gamma: jax.Array) -> tuple[PyTree, SamDiagnostics]:
    g0 = engine.clean_gradient(updates)
    g1 = engine.gradient(engine.ascend(engine.params, g0, rho))
    update = add_scaled(g1, -gamma, perpendicular(g0, to=g1))
    return update, SamDiagnostics(engine.metric.norm(g0), engine.metric.norm(g1), cosine(g0, g1))


@with_options
def sam(
    loss_fn: LossFn, rho: ScalarOrSchedule, *, gamma: ScalarOrSchedule = 0.0, **options: Unpack[OptionArgs]
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

    * ``interval=k, between="hold"`` adds the last :math:`g_1 - g_0` to the gradients between, much as LookSAM (Liu et
      al. 2022) does with the component of :math:`g_1` orthogonal to :math:`g_0`.

    Cost: 2 gradient evaluations, the caller's own included.

    ``optax.MultiSteps`` around it accumulates the incoming gradient alone: what comes out is the gradient of the last
    microbatch, at points to which the accumulated one leads. ``num_microbatches`` gives that of the whole batch.

    Args:
      loss_fn: as in :func:`gam_jax.gam`.
      rho: perturbation radius, a float, a traced scalar or a schedule. Foret et al. use 0.05; ASAM wants about 10 times
        as much. Or a pytree of these, one for each leaf or layer (:func:`gam_jax.gam`). Good on validation images of
        small networks (README, "Choosing rho and alpha"): with SGD 0.01 to 0.15 for a ResNet with BatchNorm (0.3 with
        wrong labels), 0.2 to 0.5 for an MLP; with AdamW 0.01 to 0.05 for a ViT.
      gamma: GSAM's weight of the orthogonal component, likewise; called alpha in its paper, which tunes over
        {.1, .2, .3} for ResNets and {.4, .6} for ViTs.
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

    References:
      Foret et al., ICLR 2021, https://arxiv.org/abs/2010.01412; Kwon et al., ICML 2021,
      https://arxiv.org/abs/2102.11600; Zhuang et al., ICLR 2022, https://arxiv.org/abs/2203.08065;
      Liu et al., CVPR 2022, https://arxiv.org/abs/2203.02714
    """
    return from_rule(
        loss_fn, _rule, SamDiagnostics, {"rho": rho, "gamma": gamma}, Options(**options), state_class=SamState
    )
