"""One training step and one evaluation step, as mathematics; :mod:`experiments.train.programs` compiles them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.data import Array, Batch, DataSet
from experiments.data.augment.mixup import mixup
from experiments.models.registry import Model
from experiments.models.shards import AXES
from experiments.train.config import LossName, TrainConfig
from experiments.train.losses import LOSSES, cross_entropy
from experiments.train.state import Sums, TrainState, averaging
from gam_jax._shards import varying_axes


def normalise(images: Array, data_set: DataSet) -> jax.Array:
    """From pixels, uint8, to the float32 that a network sees: mean 0 and standard deviation 1 over the data set."""
    mean, std = (jnp.array(values, jnp.float32)[None, None, None] for values in (data_set.mean, data_set.std))
    return (jnp.asarray(images, jnp.float32) / 255 - mean) / std


def rank(logits: jax.Array, labels: Array) -> jax.Array:
    """How many other classes have no smaller logit than the label, shape (batch,); all where logits are NaN.

    So ties count as wrong, and a network whose logits are all equal has accuracy 0.

    It takes no maximum: XLA would merge an argmax with the maximum of the loss, and the gradients that the loss and
    the optimizer could share would be computed twice.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    return jnp.sum(~(logits < own), axis=-1) - 1


LossFn = Callable[..., tuple[jax.Array, Any]]


def make_loss(model: Model, smoothing: float, name: LossName = "softmax") -> LossFn:
    """The loss of the optimizer: ``(params, batch, model_state, key) -> (mean loss, (logits, new model_state))``.

    The images of the batch are normalised, and its labels may be mixed. It is the loss of every pass of a step, on the
    same batch, key and batch statistics; what it returns beside its value is used from the clean pass only.
    """

    def loss_fn(params: Any, batch: Batch, model_state: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        logits, model_state = model.apply(params, model_state, batch.image, train=True, key=key)
        return LOSSES[name](logits, batch.label, smoothing).mean(), (logits, model_state)

    return loss_fn


def make_measured_loss(model: Model, data_set: DataSet) -> Callable[[Any, Batch, Any], jax.Array]:
    """``(params, batch, model_state) -> loss``: the mean cross-entropy as in evaluation, of a batch of pixels.

    Examples of weight 0 do not count.
    """

    def loss_fn(params: Any, batch: Batch, model_state: Any) -> jax.Array:
        logits, _ = model.apply(params, model_state, normalise(batch.image, data_set), train=False)
        losses = jnp.where(batch.weight > 0, cross_entropy(logits, batch.label), 0.0)
        return losses.sum() / jnp.asarray(batch.weight > 0, losses.dtype).sum()

    return loss_fn


def train_step(
    config: TrainConfig,
    seen: Callable[[jax.Array, Array], jax.Array],
    value_and_grad: Callable[..., Any],
    tx: optax.GradientTransformationExtraArgs,
    state: TrainState,
    batch: Batch,
    seed: jax.Array | None = None,
) -> TrainState:
    """One step of the optimizer on one batch of pixels. Randomness follows from the seed and the step alone.

    Gradient and optimizer are those of a chain (:class:`experiments.optim.chain.Chain`). The seed is that of the
    config, unless another one is given: an argument of a program that is compiled once for all.
    """
    seed_key = jax.random.key(config.seed if seed is None else seed)
    key = jax.random.fold_in(jax.random.fold_in(seed_key, 1), state.step)
    augmentation, network = jax.random.split(key)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(augmentation, batch.index)
    images, labels = seen(keys, batch.image), batch.label
    if config.mixup > 0:
        labels = jnp.asarray(labels)
        axes = AXES if varying_axes(labels) else ()  # on shards, a device has its own rows
        images, labels = mixup(jax.random.fold_in(key, 2), config.mixup, images, labels, axes)
    seen_batch = batch._replace(image=images, label=labels)
    arguments = {"batch": seen_batch, "model_state": state.model_state, "key": network}
    (loss, (logits, model_state)), gradient, saw = value_and_grad(state.params, state.step, **arguments)
    more = {} if saw is None else {"saw": saw}
    updates, opt_state = tx.update(gradient, state.opt_state, state.params, **arguments, **more)
    params = optax.apply_updates(state.params, updates)

    size = len(batch.label)
    return TrainState(
        step=state.step + 1,
        params=params,
        model_state=model_state,
        opt_state=opt_state,
        averaging=averaging(config).update(state.averaging, params),
        sums=_add(state.sums, size * loss, rank(logits, batch.label), jnp.ones(size)),
        followed=state.followed,
        broken=jnp.where((state.broken < 0) & ~jnp.isfinite(loss), state.step + 1, state.broken),
    )


REFRESHING_STEPS = 100
"""Batches from which the batch statistics of averaged parameters are estimated, at most."""


def running_statistics(
    model: Model,
    seen: Callable[[jax.Array, Array], jax.Array],
    params: Any,
    model_state: Any,
    batch: Batch,
    seed: jax.typing.ArrayLike,
) -> Any:
    """The batch statistics after the network has seen one more batch of training pixels with these parameters."""
    key = jax.random.key(seed)
    images = seen(jax.vmap(jax.random.fold_in, (None, 0))(key, batch.index), batch.image)
    return model.apply(params, model_state, images, train=True, key=key)[1]


def evaluation_step(model: Model, data_set: DataSet, params: Any, model_state: Any, sums: Sums, batch: Batch) -> Sums:
    """Adds the losses and right predictions of a batch; examples of weight 0 fill it up and do not count."""
    logits, _ = model.apply(params, model_state, normalise(batch.image, data_set), train=False)
    losses = jnp.where(batch.weight > 0, cross_entropy(logits, batch.label), 0.0)
    return _add(sums, losses.sum(), rank(logits, batch.label), batch.weight)


def _add(sums: Sums, loss: jax.Array, ranks: jax.Array, weight: Array) -> Sums:
    return Sums(
        loss=sums.loss + loss,
        correct=sums.correct + jnp.sum((ranks < 1) * weight),
        correct_in_5=sums.correct_in_5 + jnp.sum((ranks < 5) * weight),
        examples=sums.examples + weight.sum(),
    )
