"""Gradient norm Aware Minimization, exact (Algorithm 1 of the paper)."""

import functools
from collections.abc import Callable
from typing import Any, Unpack, get_args

import jax
import optax

from gam_jax._checks import check_choice
from gam_jax._engine import Engine
from gam_jax._maximum import Search
from gam_jax._method import Method, Step
from gam_jax._options import OptionArgs, options_from, with_options
from gam_jax._transform import Diagnostics, State, as_link
from gam_jax._types import HvpMode, LossFn, PyTree, ScalarOrSchedule
from gam_jax._value_and_grad import as_value_and_grad
from gam_jax.rules._algorithm_1 import algorithm_1


class GamState(State):
    """The state of :func:`gam_jax.gam`."""

    __slots__ = ()
    method = "gam"


def _rule(
    engine: Engine,
    updates: PyTree | None,
    *,
    rho: PyTree,
    alpha: jax.Array,
    ascent_hvp: HvpMode | None,
    search: Search,
) -> Step:
    here = engine.norm_gradient(engine.params, ascent_hvp)
    h_loss = here.point.grad if updates is None else updates
    return Step(here.point, *algorithm_1(engine, here, h_loss, rho, alpha, search))


def _method(
    rho: Any, alpha: Any, ascent_hvp: Any, rho_prime: Any, ascent_steps: Any, restarts: Any, options: Any
) -> Method:
    check_choice("ascent_hvp", ascent_hvp, (None, *get_args(HvpMode)))
    search = Search(ascent_steps, restarts)
    search.check_radius(rho)
    rule = functools.partial(_rule, ascent_hvp=ascent_hvp, search=search)
    coefficients, settings = {"rho": rho, "alpha": alpha}, options_from(options, rho_prime=rho_prime)
    return Method(rule, Diagnostics, coefficients, settings, adds=True)


@with_options
def gam(
    loss_fn: LossFn,
    rho: ScalarOrSchedule = 0.1,
    alpha: ScalarOrSchedule = 0.5,
    *,
    ascent_hvp: HvpMode | None = None,
    rho_prime: float | jax.Array = 1e-3,
    ascent_steps: int = 1,
    restarts: jax.Array | None = None,
    **options: Unpack[OptionArgs],
) -> optax.GradientTransformationExtraArgs:
    r"""Adds the gradient of the first-order flatness to the updates: exact GAM as a link of an optax chain.

    First-order flatness (Definition 4.1) is the largest gradient norm within a ball, times its radius,
    :math:`R^{(1)}_\rho(w) = \rho \max_{\|w' - w\| \le \rho} \|\nabla L(w')\|`. With the incoming updates
    :math:`h^{loss}`, the gradient of the oracle loss, this link computes (Algorithm 1, Eqs. 7 and 8)

    .. math::
        f &= H(w) g / (\|g\| + \xi), \qquad g = \nabla L(w) \\
        w^{adv} &= w + \rho f / (\|f\| + \xi) \\
        h^{norm} &= \rho H(w^{adv}) g^{adv} / (\|g^{adv}\| + \xi), \qquad g^{adv} = \nabla L(w^{adv}) \\
        h^{loss} &\leftarrow h^{loss} + \alpha h^{norm}

    with exact Hessian-vector products. The oracle loss may differ from ``loss_fn``: after
    ``optax.add_decayed_weights`` it is the decayed one, after :func:`gam_jax.sam` it is SAM's (SAM + GAM).

    Cost: 6 gradient evaluations, the caller's own included, when the compiler merges that one with this link's (see
    ``gam_jax/_linearize.py``). It cannot inside the ``lax.cond`` of ``interval > 1`` or when the loss scans over
    layers (7), nor entirely when the caller takes the argmax of the same logits (6.6 on the CPU, where XLA merges
    argmax and max). :func:`gam_value_and_grad` costs 6 by construction. With ``num_microbatches`` 9.
    ``ascent_steps=k`` looks for the largest gradient norm in the ball at k points (as :func:`gam_jax.sam` does for the
    loss), w_adv first, and takes h_norm there: 3 + 3 k gradients, and 3 k more for each of the ``restarts``.
    State: seven scalars, and with ``between="hold"`` one buffer like the parameters.

    Cheaper, in gradients a step, and to be combined; a finite ``max_ratio`` keeps the rougher terms from diverging:

    * ``ascent_hvp="finite_difference"``, 5: f costs one gradient, at :math:`w + \rho' g / (\|g\| + \xi)`. Only its
      direction enters, and h_norm stays the exact gradient of the norm at the point that it leads to.
    * ``share=n``, 1 + 6 / n: the term is that of every n-th row of the batch. Over random parts it is on average the
      gradient of the mean flatness of a part (as in m-sharpness), which is larger than that of the whole.
    * ``interval=k``, 1 + 6 / k, with nothing between or, by ``between="hold"``, the last term once more. A held term
      acts k times, so that alpha is to be chosen smaller than for a skipped one.
    * ``interval=gam_jax.late_phase(...)``: in the last part of the run alone.

    Choosing rho and alpha: what counts most is their product. To first order
    :math:`\nabla L(w + r u) = g + r H u`, so that SAM of radius r, with :math:`u = g / \|g\|`, adds
    :math:`r H g / \|g\|`, and this link adds :math:`\alpha \rho` times the same at a point nearby: alpha * rho stands
    where SAM's radius stands, and a good radius of SAM is a good first product. It wants to be near one over the top
    Hessian eigenvalue of a network that the base optimizer has trained.

    The defaults, 0.1 and 0.5, have the product 0.05, SAM's usual radius. In 9 of the 21 tasks of the table in
    docs/tuning.md it lies among the products within a point of the best; for an MLP with wrong labels it is too little,
    which does no harm, and for two of the ResNets and one ViT too much, by 2 to 3 points. Good on validation images of
    small networks, from that table; several times as much broke training:

    ==========================================  ===========  ===============
    base optimizer, network                     rho          alpha * rho
    ==========================================  ===========  ===============
    SGD, MLP                                    0.2 to 0.5   0.1 to 0.4
    SGD, ResNet with BatchNorm, true labels     0.05 to 0.2  0.005 to 0.05
    SGD, ResNet with BatchNorm, wrong labels    0.05 to 0.2  0.03 to 0.1
    AdamW, ViT                                  0.05         0.005 to 0.05
    ==========================================  ===========  ===============

    Choosing the interval: 4 or 5 with ``between="hold", max_ratio=1.0`` kept nine tenths of the gain or more on the
    one task where it was measured and there was one to keep; skipping loses a third or more there.

    ``optax.MultiSteps`` around it accumulates the incoming gradient alone: the term added is that of the last
    microbatch. ``num_microbatches`` gives that of the whole batch.

    A line search of optax behind it wants a ``value_fn`` that takes all that is passed to ``update`` by name, as
    ``loss_fn`` itself does. ``optax.lookahead`` around it passes nothing on: build the chain within the step, around a
    loss that closes over the batch; its state is the same.

    Args:
      loss_fn: ``loss_fn(params, ...) -> scalar``. Its other arguments are passed to ``update`` by name, as in
        ``tx.update(grads, state, params, batch=batch)``, hence not called ``updates``, ``state`` or ``params``;
        names that it does not take are ignored. Of a model of nnx or equinox it takes the trained arrays and merges the
        rest. All passes see the same arguments, random keys too. Gradient norms, hence rho and alpha, scale with what
        it returns: the mean over a batch, say, where the paper writes a sum.
      rho: perturbation radius, in units of the parameters. A float, a traced scalar or a schedule of this
        transformation's step count, clamped at 0. Default 0.1 (see above). The paper tunes over
        {.05, .1, .2, .5, 1, 2}. Or a pytree of these
        with the structure of the parameters or a prefix of it, such as one for each layer: then each leaf has its own
        rho in the last two lines before the sum, as a parameter group of PyTorch would, while norms stay those over
        all leaves, and first_order_flatness is the norm of rho times the gradient.
      alpha: weight of the flatness term, likewise; 0 is the base optimizer. Default 0.5 (see above). The paper tunes
        over {.1, .2, .5, 1, 2, ..., 10}.
      ascent_hvp: how the product in f is computed, if not as ``hvp`` says (:class:`gam_jax.Options`).
      rho_prime: step of the finite difference, where one is used.
      ascent_steps: k, the points looked at from each start; default 1, Algorithm 1. More want one rho for all leaves.
      restarts: typed keys, one for each random start (:func:`gam_jax.sam`). Default None.
      **options: see :class:`gam_jax.Options`.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` whose state holds ``count`` and ``diagnostics``
      (:class:`gam_jax.Diagnostics`).

    Raises:
      ValueError: for a negative or non-finite coefficient, or an unknown option value; in ``update``, for a mask or a
        batch that does not fit, or updates of another structure or shape than the parameters.
      TypeError: for a loss with ``*args`` or with an argument named as one of ``update``'s own; in ``update``, for a
        missing argument of the loss, a loss that is not a scalar, parameters or updates that are not floating-point, a
        state that other options made.

    Example:
      >>> import jax, optax, gam_jax
      >>> import jax.numpy as jnp
      >>> def loss_fn(params, batch):
      ...     return jnp.mean((batch["x"] @ params - batch["y"]) ** 2)
      >>> batch = {"x": jnp.eye(3), "y": jnp.ones(3)}
      >>> params = jnp.array([3.0, 1.0, 2.0])
      >>> tx = optax.chain(gam_jax.gam(loss_fn, rho=0.1, alpha=0.5), optax.sgd(0.1, momentum=0.9))
      >>> state = tx.init(params)
      >>> loss, grads = jax.value_and_grad(loss_fn)(params, batch)
      >>> updates, state = tx.update(grads, state, params, batch=batch)
      >>> params = optax.apply_updates(params, updates)
      >>> f"{optax.tree.get(state, 'first_order_flatness'):.3f}"
      '0.156'

      The flatness of a third of the batch, and the gradient of all of it:

      >>> tx = optax.chain(gam_jax.gam(loss_fn, rho=0.1, alpha=0.5, share=3), optax.sgd(0.1, momentum=0.9))

    References:
      Zhang, Xu, Yu, Zou, Cui: Gradient Norm Aware Minimization Seeks First-Order Flatness and Improves
      Generalization. CVPR 2023. https://arxiv.org/abs/2303.03108
    """
    method = _method(rho, alpha, ascent_hvp, rho_prime, ascent_steps, restarts, options)
    return as_link(loss_fn, method, GamState)


@with_options
def gam_value_and_grad(
    loss_fn: LossFn,
    rho: ScalarOrSchedule = 0.1,
    alpha: ScalarOrSchedule = 0.5,
    *,
    ascent_hvp: HvpMode | None = None,
    rho_prime: float | jax.Array = 1e-3,
    ascent_steps: int = 1,
    restarts: jax.Array | None = None,
    has_diagnostics: bool = False,
    **options: Unpack[OptionArgs],
) -> Callable[..., tuple[Any, ...]]:
    r"""``jax.value_and_grad`` with the gradient of :math:`L + \alpha R^{(1)}_\rho` in place of that of L.

    One line of a training step changes, and no optimizer state:

    .. code-block:: diff

        - loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        + loss, grads = gam_jax.gam_value_and_grad(loss_fn)(params, batch)

    The mathematics and the arguments are those of :func:`gam`, with L itself as the oracle loss. Gradient and
    Hessian-vector products share their passes by construction rather than by the compiler's grace. Each method of the
    family has this form, by its name and ``_value_and_grad``; :func:`sam_gam_value_and_grad` is SAM + GAM.

    Cost: 6 gradient evaluations (8 with ``num_microbatches``), 5 with ``ascent_hvp="finite_difference"``; 1 on the
    steps that ``interval`` skips; 6 with ``groups``, with the memory of one group; 1 + 6 / n with ``share=n``.

    Args:
      loss_fn: ``loss_fn(params, *args, **kwargs)``, returning a scalar, or ``(scalar, aux)`` with ``has_aux=True``.
      rho: perturbation radius. With a schedule, or with an ``interval``, the returned function takes the step count.
      alpha: weight of the flatness term.
      ascent_hvp: as in :func:`gam`.
      rho_prime: step of the finite difference, where one is used.
      ascent_steps, restarts: as in :func:`gam`.
      has_diagnostics: return what the method saw as well, as a link keeps it in its state
        (:class:`gam_jax.Diagnostics`).
      **options: see :class:`gam_jax.Options`. There is no state, hence no ``between="hold"`` or ``"look"``.

    Returns:
      A function ``(params, *args, **kwargs) -> (loss, grads)``, or ``((loss, aux), grads)`` with ``has_aux=True``; with
      ``has_diagnostics=True`` a third entry, of zeros on the steps that ``interval`` skips. With a schedule or an
      interval it needs ``count=step`` too (otherwise ``count`` is the loss's, if it takes one). Loss and aux are those
      of the clean pass; with ``axis_name`` loss, grads and diagnostics are averaged over it, and aux is each replica's
      own; with ``num_microbatches`` or ``groups`` aux is stacked along a new leading axis.

    Raises:
      ValueError, TypeError: as :func:`gam` does; TypeError if ``count`` is needed and not given.

    Example:
      >>> import jax.numpy as jnp, gam_jax
      >>> def loss_fn(params, scale):
      ...     return scale * jnp.sum(params**4)
      >>> loss, grads = gam_jax.gam_value_and_grad(loss_fn, rho=0.1, alpha=0.5)(jnp.ones(2), 1.0)
      >>> print(loss, jnp.array_str(grads, precision=2))
      2.0 [4.49 4.49]
      >>> fn = gam_jax.gam_value_and_grad(loss_fn, has_diagnostics=True)
      >>> loss, grads, seen = fn(jnp.ones(2), 1.0)
      >>> print(f"{seen.first_order_flatness:.2f}")
      0.69
    """
    method = _method(rho, alpha, ascent_hvp, rho_prime, ascent_steps, restarts, options)
    return as_value_and_grad(loss_fn, method, has_diagnostics)
