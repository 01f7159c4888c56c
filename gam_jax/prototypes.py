"""Prototypes: class means of features, the distance that keeps them where they were, and classification by them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gam_jax._checks import check_integer
from gam_jax._signature import readable
from gam_jax._tree import widen


class Prototypes(NamedTuple):
    """Class means, as :func:`gam_jax.class_prototypes` makes them.

    Attributes:
      means: of the features of each class, shape [classes, features]; zero for a class without examples.
      counts: examples of each class, shape [classes].
    """

    means: jax.Array
    counts: jax.Array


@readable
def class_prototypes(features: jax.Array, labels: jax.Array, num_classes: int) -> Prototypes:
    r"""The mean of the features of each class, its prototype (Snell et al. 2017), differentiable in the features.

    .. math:: p_c = \frac{1}{|\{i : y_i = c\}|} \sum_{i : y_i = c} f_i

    Cost: one matrix product.

    Args:
      features: shape [examples, features], floating-point; sums are in float32 or wider.
      labels: shape [examples], integers; one outside 0 ... num_classes - 1 counts nowhere.
      num_classes: of the prototypes.

    Returns:
      :class:`gam_jax.Prototypes`.

    Raises:
      TypeError, ValueError: for features and labels of other shapes or types, a number of classes below 1.

    Example:
      >>> import gam_jax
      >>> import jax.numpy as jnp
      >>> features = jnp.array([[0.0, 2.0], [2.0, 2.0], [5.0, 5.0]])
      >>> print(gam_jax.class_prototypes(features, jnp.array([0, 0, 2]), num_classes=3).means)
      [[1. 2.]
       [0. 0.]
       [5. 5.]]

    References:
      Snell, Swersky, Zemel: Prototypical Networks for Few-shot Learning. NeurIPS 2017.
      https://arxiv.org/abs/1703.05175
    """
    features = _features("features", features)
    check_integer("num_classes", num_classes)
    shape, dtype = getattr(labels, "shape", None), getattr(labels, "dtype", None)
    if shape != features.shape[:1] or dtype is None or not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"labels must be an array of {len(features)} integers, one for each row, got labels={labels!r}")
    members = jax.nn.one_hot(labels, num_classes, dtype=features.dtype)
    counts = members.sum(0)
    return Prototypes(members.T @ features / jnp.maximum(counts, 1)[:, None], counts)


@readable
def prototype_distance(prototypes: Prototypes, to: Prototypes) -> jax.Array:
    r"""The mean squared distance of the prototypes of two networks: F2M's prototype fixing.

    .. math:: \frac{1}{|C|} \sum_{c \in C} \|p_c - p'_c\|^2

    over the classes C that both have. It is zero, and so is its gradient, where the prototypes are the same. As a term
    of a loss at noisy parameters, against the prototypes of the clean ones (:func:`gam_jax.random_perturbation`), it
    keeps a nearest-class-mean classifier valid wherever the noise reaches.

    1. The released program of F2M returns a Python number here: the term is reported, and trains nothing.

    Cost: one pass over the prototypes.

    Args:
      prototypes: of one network, :class:`gam_jax.Prototypes`.
      to: of the other, of the same shapes. ``jax.lax.stop_gradient`` around it if it is to stay.

    Returns:
      The distance, a scalar; 0 if no class has examples in both.

    Raises:
      TypeError: if they are no prototypes, or of different shapes.

    Example:
      >>> import jax, gam_jax
      >>> import jax.numpy as jnp
      >>> labels = jnp.array([0, 1])
      >>> before = gam_jax.class_prototypes(jnp.zeros((2, 3)), labels, num_classes=2)
      >>> moved = lambda shift: gam_jax.class_prototypes(shift * jnp.ones((2, 3)), labels, num_classes=2)
      >>> distance = lambda shift: gam_jax.prototype_distance(moved(shift), before)
      >>> print(distance(2.0), jax.grad(distance)(2.0))
      12.0 12.0

    References:
      Shi, Chen, Zhang, Zhan, Wu: Overcoming Catastrophic Forgetting in Incremental Few-Shot Learning by Finding Flat
      Minima. NeurIPS 2021. https://arxiv.org/abs/2111.01549
    """
    _check_prototypes("prototypes", prototypes)
    _check_prototypes("to", to)
    if prototypes.means.shape != to.means.shape:
        raise TypeError(f"to must have the shape {prototypes.means.shape} of the prototypes, got {to.means.shape}")
    both = (prototypes.counts > 0) & (to.counts > 0)
    squares = jnp.sum(jnp.square(prototypes.means - to.means), axis=-1)
    return jnp.sum(jnp.where(both, squares, 0)) / jnp.maximum(jnp.sum(both), 1)


@readable
def prototype_logits(features: jax.Array, prototypes: Prototypes) -> jax.Array:
    r"""Minus the squared distance to each prototype: the largest is the nearest class mean.

    .. math:: z_{ic} = -\|f_i - p_c\|^2

    The softmax of these logits is what prototypical networks and the later sessions of F2M train on.

    Cost: one pass over an array [examples, classes, features].

    Args:
      features: shape [examples, features], floating-point.
      prototypes: :class:`gam_jax.Prototypes` of as many features.

    Returns:
      The logits, shape [examples, classes]; minus infinity for a class without examples, which has no share in a
      softmax and no gradient.

    Raises:
      TypeError: if they are no prototypes of such features.

    Example:
      >>> import gam_jax
      >>> import jax.numpy as jnp
      >>> means = gam_jax.class_prototypes(jnp.array([[0.0], [4.0]]), jnp.array([0, 1]), num_classes=3)
      >>> print(gam_jax.prototype_logits(jnp.array([[1.0], [3.0]]), means))
      [[ -1.  -9. -inf]
       [ -9.  -1. -inf]]

    References:
      Snell, Swersky, Zemel: Prototypical Networks for Few-shot Learning. NeurIPS 2017.
      https://arxiv.org/abs/1703.05175
    """
    features = _features("features", features)
    _check_prototypes("prototypes", prototypes)
    if features.shape[1] != prototypes.means.shape[1]:
        raise TypeError(f"prototypes must have {features.shape[1]} features, got means of {prototypes.means.shape}")
    squares = jnp.sum(jnp.square(features[:, None] - prototypes.means[None]), axis=-1)
    return jnp.where(prototypes.counts[None] > 0, -squares, -jnp.inf)


def _features(name: str, value: Any) -> jax.Array:
    """The features in float32 or wider."""
    shape, dtype = getattr(value, "shape", ()), getattr(value, "dtype", None)
    if len(shape) != 2 or dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{name} must be a floating-point array [examples, features], got {name}={value!r}")
    return widen(jnp.asarray(value))


def _check_prototypes(name: str, value: Any) -> None:
    if not isinstance(value, Prototypes):
        raise TypeError(f"{name} must be Prototypes, as class_prototypes makes them, got {name}={value!r}")
