"""The geometry in which a step is taken: plain, adaptive, and with parameters left out."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gam_jax._calls import check_takes
from gam_jax._check_trees import check_like_params, check_params
from gam_jax._checks import check_bools, check_number
from gam_jax._shards import Apart
from gam_jax._signature import readable
from gam_jax._tree import add_scaled, global_norm, normalize, scale_by, widen
from gam_jax._types import PyTree


@dataclasses.dataclass(frozen=True)
class Metric:
    r"""The geometry in which a step of length rho is taken: a diagonal scaling T per parameter.

    Norms are :math:`\|T x\|` and directions :math:`T^2 x / (\|T x\| + \xi)`, so that the step ``rho * direction``
    has length rho in the norm :math:`\|T^{-1}\epsilon\|`. T is 1 by default, ``|w|`` for adaptive sharpness
    (ASAM, Kwon et al. 2021) or what the caller gives, and 0 on the leaves that ``mask`` leaves out: these neither move
    nor enter a norm.

    Attributes:
      scaling: T, a pytree like the parameters in float32 or wider, or None for 1.
      mask: a pytree of Python bools (True takes part), or None for all.
      eps: the xi of the paper's Algorithm 1.
      apart: the mesh axes that do not divide the leaves.
    """

    scaling: PyTree | None
    mask: PyTree | None
    eps: float | jax.Array
    apart: Apart = None

    def scaled(self, tree: PyTree) -> PyTree:
        """``T x``: of a gradient, that in the coordinates ``u`` of the points ``w + T u``, in which balls are round."""
        if self.scaling is not None:
            tree = jax.tree.map(lambda t, x: t * widen(x), self.scaling, tree)
        return self.masked(tree)

    def masked(self, tree: PyTree) -> PyTree:
        """Zero on the leaves that the mask leaves out."""
        if self.mask is None:
            return tree
        return jax.tree.map(lambda keep, x: x if keep else jnp.zeros_like(x), self.mask, tree)

    def norm(self, tree: PyTree) -> jax.Array:
        """``||T x||``."""
        return global_norm(self.scaled(tree), self.apart)

    def direction(self, tree: PyTree) -> PyTree:
        """``T^2 x / (||T x|| + eps)``, in float32 or wider; zero at zero."""
        unit = normalize(self.scaled(tree), self.eps, self.apart)
        return unit if self.scaling is None else self.scaled(unit)

    def reach(self, radius: PyTree, tree: PyTree, norm: jax.Array) -> jax.Array:
        """``||radius T x||``: with one radius for all leaves ``radius * norm``, where ``norm`` is that of ``tree``."""
        return radius * norm if jax.tree_util.all_leaves([radius]) else self.norm(scale_by(radius, tree))

    def shifted(self, start: PyTree, offset: PyTree) -> PyTree:
        """``start + T u``, in the dtypes of ``start``."""
        return add_scaled(start, 1.0, self.scaled(offset))

    def ascend(self, start: PyTree, toward: PyTree, radius: PyTree) -> PyTree:
        """``start + radius * direction(toward)``, formed in float32 or wider, in the dtypes of ``start``."""
        return add_scaled(start, radius, self.direction(toward))


def resolve_mask(mask: Any, params: PyTree) -> PyTree | None:
    """The mask as a pytree of Python bools with the structure of the parameters."""
    if mask is None:
        return None
    mask = _of(params, mask)
    check_like_params("perturb_mask", mask, params)
    check_bools("perturb_mask", mask)
    return jax.tree.map(bool, mask)


def resolve_scaling(adaptive: Any, params: PyTree) -> PyTree | None:
    """T as a pytree in float32 or wider with the structure of the parameters; None for 1."""
    if isinstance(adaptive, bool | np.bool_):
        return scale_by(1.0, jax.tree.map(jnp.abs, params)) if adaptive else None
    scaling = _of(params, adaptive)
    check_like_params("adaptive", scaling, params)
    paths = jax.tree.leaves_with_path(scaling)
    for (path, leaf), param in zip(paths, jax.tree.leaves(params), strict=True):
        where = f"adaptive{jax.tree_util.keystr(path)}"
        array = isinstance(leaf, float | jax.Array | np.ndarray)
        if not array or not jnp.issubdtype(getattr(leaf, "dtype", float), jnp.floating):
            raise TypeError(f"adaptive must hold floating-point arrays, got {leaf!r} at {where}")
        if jnp.shape(leaf) not in ((), param.shape):
            raise ValueError(
                f"adaptive must hold scalars or arrays like the parameters, got shape {jnp.shape(leaf)} for "
                f"{param.shape} at {where}"
            )
    return scale_by(1.0, jax.tree.map(jnp.asarray, scaling))


def check_mask(mask: Any) -> None:
    """Raises unless ``mask`` is None, a function of the parameters or a pytree of bools."""
    if _is_function(mask):
        check_takes("perturb_mask", mask, "params")
    else:
        check_bools("perturb_mask", mask)


def check_scaling(adaptive: Any) -> None:
    """Raises unless ``adaptive`` is a bool, a function of the parameters or a pytree that may hold arrays."""
    if _is_function(adaptive):
        check_takes("adaptive", adaptive, "params")
    if isinstance(adaptive, str | int | float | complex | None) and not isinstance(adaptive, bool):
        raise TypeError(
            "adaptive must be True, False, a pytree of scalings like the parameters or a function from the parameters "
            f"to one, got adaptive={adaptive!r}"
        )


@readable
def asam_scaling(params: PyTree, *, eta: float = 0.01, biases: PyTree | None = None) -> PyTree:
    r"""ASAM's scaling as its authors run it, for ``adaptive=gam_jax.asam_scaling``.

    .. math:: T = |w| + \eta \text{ for weights}, \qquad T = 1 \text{ for biases.}

    With ``adaptive=True``, which is the paper's :math:`T = |w|`, biases that start at zero never move in an ascent.

    Cost: one pass over the parameters.

    Args:
      params: the parameters.
      eta: what is added to weights; 0.01 in the authors' program. For another,
        ``functools.partial(gam_jax.asam_scaling, eta=0.1)``.
      biases: a pytree of bools with the structure of the parameters, True for biases. By default a leaf is a bias if
        its own name is ``b``, ``b1``, ``b2`` and so on, or has "bias" in it. The scales of normalization layers are
        weights, as in the authors' program.

    Returns:
      T, a pytree like the parameters, in float32 or wider.

    Raises:
      ValueError: for a leaf without a name, as in a list of arrays, if ``biases`` does not say what it is; for a
        negative or non-finite eta.

    Example:
      >>> import gam_jax
      >>> import jax.numpy as jnp
      >>> params = {"kernel": jnp.array([3.0, -4.0]), "bias": jnp.zeros(2)}
      >>> scaling = gam_jax.asam_scaling(params)
      >>> print(scaling["kernel"], scaling["bias"])
      [3.01 4.01] [1. 1.]
      >>> tx = gam_jax.sam(lambda params: jnp.sum(params["kernel"] ** 2), rho=0.5, adaptive=gam_jax.asam_scaling)

    References:
      Kwon et al., ICML 2021. https://arxiv.org/abs/2102.11600
    """
    check_params(params, params)
    check_number("eta", eta)
    if biases is None:
        biases = jax.tree.map_with_path(lambda path, _: _is_bias(path), params)
    check_like_params("biases", biases, params)
    check_bools("biases", biases)

    def scaling(is_bias: bool, param: Any) -> jax.Array:
        wide = widen(jnp.asarray(param))
        return jnp.ones_like(wide) if is_bias else jnp.abs(wide) + jnp.asarray(eta, wide.dtype)

    return jax.tree.map(scaling, biases, params)


def _is_bias(path: Any) -> bool:
    """Whether the last name on the path is a bias's; a box's ``value`` is none."""
    names = [str(getattr(entry, "name", getattr(entry, "key", ""))) for entry in path]
    names = [name for name in names if name and not name.isdigit() and name != "value"]
    if not names:
        raise ValueError(
            f"asam_scaling tells biases by their names, and params{jax.tree_util.keystr(path)} has none: give biases=, "
            "a pytree of bools"
        )
    return bool(re.fullmatch(r"b\d*|.*bias.*", names[-1].lower()))


def _of(params: PyTree, value: Any) -> Any:
    """The value, or what it returns for the parameters if it is a function: a leaf, not a pytree that can be called."""
    return value(params) if _is_function(value) else value


def _is_function(value: Any) -> bool:
    return callable(value) and jax.tree_util.all_leaves([value])
