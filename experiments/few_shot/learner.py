"""The two kinds of training: a base session, with noise or without, and a later session on a few images."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gam_jax
from experiments.data import DataSet
from experiments.data.memory import Images
from experiments.few_shot.config import FewShotConfig
from experiments.few_shot.episode import balanced
from experiments.few_shot.network import Params, make_network, perturbed_weights
from experiments.optim.chain import build
from experiments.optim.config import OptimConfig
from experiments.train.losses import cross_entropy

_ROWS = 200
"""Images whose features are computed at once."""


class Trained(NamedTuple):
    """A network: its parameters, and the statistics of its batch normalisation."""

    params: Params
    model_state: Any


class Learner:
    """Everything that is compiled, once for all seeds and hyper-parameters."""

    def __init__(self, config: FewShotConfig, data_set: DataSet):
        self.config, self.classes = config, data_set.num_classes
        self.network = make_network(config, data_set)
        self.mask = perturbed_weights(jax.eval_shape(self.network.init, jax.random.key(0))[0], config.perturbed)
        self._init = jax.jit(self.network.init)
        self._steps = {noisy: jax.jit(functools.partial(self._base_step, noisy)) for noisy in (False, True)}
        self._sessions = {name: jax.jit(functools.partial(self._session_step, name)) for name in ("fine_tuning", "f2m")}
        self._features = jax.jit(lambda net, pixels: self.network.features(*net, pixels, train=False)[0])

    def train(self, images: Images, seed: int, optim: OptimConfig, bound: float | None = None) -> Trained:
        """A network trained from its start on all of these images, every class alike; with noise, if it has a bound."""
        config, key = self.config, jax.random.key(seed)
        net = Trained(*self._init(key))
        state = build(optim, _none, config.steps).tx.init(net.params)
        for step, rows in enumerate(balanced(images.label, config.steps, config.batch_size, seed)):
            noise_key = jax.random.fold_in(jax.random.fold_in(key, 1), step)
            net, state = self._steps[bound is not None](net, state, optim, bound, images.take(rows), noise_key)
        return net

    def _base_step(
        self, noisy: bool, net: Trained, state: Any, optim: OptimConfig, bound: Any, images: Images, key: jax.Array
    ) -> tuple[Trained, Any]:
        loss = functools.partial(self._noisy_loss, bound, key) if noisy else self._loss
        gradient, model_state = jax.grad(loss, has_aux=True)(net.params, net.model_state, images)
        updates, state = build(optim, _none, self.config.steps).tx.update(gradient, state, net.params)
        return Trained(optax.apply_updates(net.params, updates), model_state), state

    def _loss(self, params: Params, model_state: Any, images: Images) -> tuple[jax.Array, Any]:
        features, model_state = self.network.features(params, model_state, images.image, train=True)
        return cross_entropy(self.network.logits(params, features), images.label).mean(), model_state

    def _noisy_loss(
        self, bound: Any, key: jax.Array, params: Params, model_state: Any, images: Images
    ) -> tuple[jax.Array, Any]:
        """F2M: cross-entropy and distance of the prototypes, at noisy weights; statistics of the clean ones."""
        network, config = self.network, self.config
        features, clean_state = network.features(params, model_state, images.image, train=True)
        labels = jnp.asarray(images.label)
        clean = gam_jax.class_prototypes(features, labels, self.classes)

        def loss_of_draw(params: Params) -> jax.Array:
            features, _ = network.features(params, model_state, images.image, train=True)
            moved = gam_jax.class_prototypes(features, labels, self.classes)
            fixed = config.prototype_weight * gam_jax.prototype_distance(moved, clean)
            return cross_entropy(network.logits(params, features), labels).mean() + fixed

        options: Any = {"draws": config.draws, "spread": config.spread, "perturb_mask": self.mask, "draws_by": "vmap"}
        return gam_jax.random_perturbation(loss_of_draw, bound, **options)(params, noise_key=key), clean_state

    def learn(
        self, method: str, net: Trained, base: Trained, images: Images, old: gam_jax.Prototypes, numbers: dict[str, Any]
    ) -> Trained:
        """A later session: all images that it has, in a few steps; its new class is the one that is not among the old.

        Args:
          method: "fine_tuning", which trains all parameters, or "f2m", those that had noise, near the base's.
          net: what the session starts from.
          base: what the base session ended with.
          images: of the new class, and some that are kept of each old one.
          old: the prototypes of the old classes.
          numbers: the hyper-parameters.
        """
        missing = self.classes * self.config.shots - len(images.label)
        pixels = np.pad(images.image, ((0, missing), (0, 0), (0, 0), (0, 0)))
        labels = np.pad(images.label, (0, missing), constant_values=-1)  # one shape for all sessions
        few, params = Images(pixels, labels), net.params
        state = self._session_optimizer(method, numbers).init(base.params)  # near what the base session ended with
        for _ in range(self.config.session_steps):
            params, state = self._sessions[method](params, state, net.model_state, few, old, numbers)
        return Trained(params, net.model_state)

    def _session_optimizer(self, method: str, numbers: dict[str, Any]) -> optax.GradientTransformation:
        sgd = optax.sgd(numbers["session_learning_rate"], self.config.momentum)
        if method == "fine_tuning":
            return sgd
        near = optax.chain(sgd, gam_jax.clamp_to(numbers["bound"] / 2))
        labels = jax.tree.map(lambda moves: "near" if moves else "frozen", self.mask)
        return optax.partition({"near": near, "frozen": optax.set_to_zero()}, labels)

    def _session_step(
        self,
        method: str,
        params: Params,
        state: Any,
        model_state: Any,
        few: Images,
        old: gam_jax.Prototypes,
        numbers: dict[str, Any],
    ) -> tuple[Params, Any]:
        gradient = jax.grad(self._metric_loss)(params, model_state, few, old)
        updates, state = self._session_optimizer(method, numbers).update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    def _metric_loss(self, params: Params, model_state: Any, images: Images, old: gam_jax.Prototypes) -> jax.Array:
        """Cross-entropy over minus the squared distances to the prototypes, of the images for a new class."""
        features, _ = self.network.features(params, model_state, images.image, train=False)
        own = gam_jax.class_prototypes(features, jnp.asarray(images.label), self.classes)
        logits = gam_jax.prototype_logits(features, _first(old, own))
        valid = jnp.asarray(images.label) >= 0
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(valid, images.label, 0))
        return jnp.sum(jnp.where(valid, losses, 0)) / jnp.sum(valid)

    def features(self, net: Trained, pixels: np.ndarray) -> np.ndarray:
        """Of any number of images, in evaluation mode."""
        rows = -len(pixels) % _ROWS
        padded = np.pad(pixels, ((0, rows), (0, 0), (0, 0), (0, 0)))
        parts = [self._features(net, padded[i : i + _ROWS]) for i in range(0, len(padded), _ROWS)]
        return np.concatenate(parts)[: len(pixels)]

    def prototypes(self, net: Trained, images: Images, old: gam_jax.Prototypes | None = None) -> gam_jax.Prototypes:
        """Those of the images, but for classes that have old ones, which stay."""
        own = gam_jax.class_prototypes(
            jnp.asarray(self.features(net, images.image)), jnp.asarray(images.label), self.classes
        )
        return own if old is None else _first(old, own)


def _first(old: gam_jax.Prototypes, own: gam_jax.Prototypes) -> gam_jax.Prototypes:
    """The old prototypes where there are any, else those of one's own."""
    there = old.counts > 0
    means = jnp.where(there[:, None], old.means, own.means)
    return gam_jax.Prototypes(means, jnp.where(there, old.counts, own.counts))


def _none(params: Any) -> Any:
    """Stands for the loss of an optimizer that takes none."""
    raise NotImplementedError(params)
