"""A training step is the mathematics that it should be, on any devices, at the cost that the method has."""

import collections
import dataclasses
import functools
import itertools
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from experiments.data import DATA_SETS, augment
from experiments.data.config import DataConfig
from experiments.models.config import ModelConfig
from experiments.optim.config import OptimConfig
from experiments.train.config import TrainConfig
from experiments.train.integrity import checksums
from experiments.train.mesh import Mesh
from experiments.train.programs import Programs
from experiments.train.setup import set_up
from experiments.train.state import Sums
from experiments.train.step import cross_entropy, evaluation_step, rank, train_step
from tests.experiments.train.runs import train, use_convnet

PLAIN = OptimConfig(method="plain", learning_rate=0.1, weight_decay=0.02, momentum=0.9)
OPTIM = {
    "plain": PLAIN,
    "sam": dataclasses.replace(PLAIN, method="sam", sam_rho=0.1),
    "gam": dataclasses.replace(PLAIN, method="gam", gam_rho=0.1, gam_alpha=0.5),
    "held": dataclasses.replace(PLAIN, method="gam", gam_rho=0.1, gam_alpha=0.5, interval=2, between="hold"),
}
MODEL = {"mlp": ModelConfig(name="mlp", hidden=(128,)), "convnet": ModelConfig(name="resnet20", dropout=0.5)}
DATA = DataConfig(name="digits", validation=0.05, train_size=61, noise=0.3, augment="basic")
BATCH = 16


@functools.cache
def setup_of(network, method):
    config = TrainConfig(
        workdir=Path("unused"),
        data=DATA,
        model=MODEL[network],
        optim=OPTIM[method],
        epochs=3,
        batch_size=BATCH,
        label_smoothing=0.2,
        seed=5,
    )
    with pytest.MonkeyPatch.context() as patched:
        if network == "convnet":
            use_convnet(patched)
        return set_up(config)


def mesh_of(rows, columns):
    devices = jax.devices()[: rows * columns]
    return Mesh(jax.make_mesh((rows, columns), ("data", "fsdp"), (AxisType.Auto,) * 2, devices=devices))


@functools.cache
def compiled(network, method, rows=1, columns=1):
    """The programs on a mesh, and what XLA says of the training step."""
    found = Programs(setup_of(network, method), mesh_of(rows, columns))
    return found, found.compile()


def batches(count):
    return list(itertools.islice(setup_of("mlp", "plain").pipeline.train(0), count))


def states(count, *of):
    """The states before the first step and after each of so many steps, as NumPy arrays."""
    programs, _ = compiled(*of)
    state = programs.create()
    found = [jax.device_get(state)]
    for step, batch in enumerate(batches(count)):
        state = programs.step(state, batch, step)
        found.append(jax.device_get(state))
    return found


def assert_close(one, other, rtol=1e-4, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), one, other)


def forward(params, images, key):
    """The network of :func:`use_convnet` in training, with dropout 0.5; and the moments of its batch."""
    kernel = params["conv"]["kernel"]
    numbers = jax.lax.conv_dimension_numbers(images.shape, kernel.shape, ("NHWC", "HWIO", "NHWC"))
    x = jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=numbers)
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2), ddof=1)
    scale, bias = params["norm"]["scale"], params["norm"]["bias"]
    normed = (x - x.mean((0, 1, 2), keepdims=True)) / jnp.sqrt(x.var((0, 1, 2), keepdims=True) + 1e-5)
    features = jnp.maximum(jnp.einsum("bhwc,c->bhwc", normed, scale) + bias[None, None, None], 0).mean((1, 2))
    features = jnp.where(jax.random.bernoulli(key, 0.5, features.shape), 2 * features, 0)
    return features @ params["head"]["kernel"] + params["head"]["bias"][None], {"mean": mean, "var": var}


@jax.jit
def gradient(params, images, target, key):
    """Of the cross-entropy, by hand, and ``(loss, (logits, moments))``."""

    def loss_fn(params):
        logits, moments = forward(params, images, key)
        return -(target * jax.nn.log_softmax(logits)).sum(1).mean(), (logits, moments)

    found, grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    return jax.device_get((grads, found))


def by_hand(method, start, count):
    """So many steps of SGD or of SAM from a state, one line for each line of the definition."""
    params, running = start.params, start.model_state["norm"]
    velocity, sums = jax.tree.map(np.zeros_like, params), Sums(0.0, 0, 0, 0)
    augmented = jax.jit(augment.build("basic", (8, 8, 1)))
    for t, batch in enumerate(batches(count)):
        augmentation, network = jax.random.split(jax.random.fold_in(jax.random.fold_in(jax.random.key(5), 1), t))
        keys = [jax.random.fold_in(augmentation, index) for index in batch.index]
        pixels = [augmented(key[None], image[None])[0] for key, image in zip(keys, batch.image, strict=True)]
        images = np.stack(pixels) / np.float32(16)
        target = np.full((BATCH, 10), 0.2 / 9, np.float32)
        target[np.arange(BATCH), batch.label] = 0.8

        grads, (loss, (logits, moments)) = gradient(params, images, target, network)
        if method == "sam":
            norm = np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(grads)))
            there = jax.tree.map(lambda p, g, norm=norm: p + 0.1 * g / norm, params, grads)
            grads, _ = gradient(there, images, target, network)
        rate = 0.1 * 0.5 * (1 + np.cos(np.pi * t / 9))
        velocity = jax.tree.map(lambda v, g, p: 0.9 * v + g + 0.02 * p, velocity, grads, params)
        params = jax.tree.map(lambda p, v, rate=rate: p - rate * v, params, velocity)
        running = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, running, moments)
        guesses = np.argsort(-logits, -1) == batch.label[:, None]
        sums = Sums(*np.add(sums, (BATCH * loss, guesses[:, 0].sum(), guesses[:, :5].sum(), BATCH)))
    return params, {"norm": running}, sums


@pytest.mark.parametrize("method", ["plain", "sam"])
def test_steps_equal_their_transcription(method):
    start, *_, found = states(3, "convnet", method)
    params, model_state, sums = by_hand(method, start, 3)
    assert_close(found.params, params)
    assert_close(found.model_state, model_state)
    assert_close(found.sums, sums)
    assert (found.step, found.broken) == (3, -1)


def test_an_interval_has_two_programs_that_are_one_optimizer():
    setup = setup_of("mlp", "held")
    step = jax.jit(functools.partial(train_step, setup.config, setup.seen, setup.chain.value_and_grad, setup.chain.tx))
    expected = compiled("mlp", "held")[0].create()
    for found, batch in zip(states(4, "mlp", "held")[1:], batches(4), strict=True):
        expected = step(expected, batch)
        assert_close(found, jax.device_get(expected))
    held, gradient = compiled("mlp", "held")[1], 2 * BATCH * (2 * 64 * 128 + 3 * 128 * 10)  # none of the pixels
    assert held["flops_per_step_between"] == gradient and held["flops_per_step"] > 4 * gradient


def test_statistics_and_metrics_are_those_of_the_clean_pass():
    (_, plain), (_, gam) = (states(1, "convnet", method) for method in ("plain", "gam"))
    assert_close(gam.model_state, plain.model_state)
    assert_close(gam.sums, plain.sums)
    assert not np.allclose(gam.params["conv"]["kernel"], plain.params["conv"]["kernel"], rtol=1e-3)


def test_the_first_loss_that_is_not_finite_is_remembered():
    programs, _ = compiled("convnet", "plain")
    first, second, third = batches(3)
    state = programs.step(programs.create(), first, 0)
    assert int(state.broken) == -1
    state = programs.step(state._replace(params=jax.tree.map(lambda leaf: leaf * jnp.inf, state.params)), second, 1)
    assert int(state.broken) == 2
    assert int(programs.step(state, third, 2).broken) == 2


@pytest.mark.slow
def test_devices_change_nothing_but_rounding():
    for network, method, *mesh in (("convnet", "sam", 8, 1), ("mlp", "held", 1, 8)):
        one, many = (states(2, network, method, *devices)[-1] for devices in ((1, 1), mesh))
        assert_close(many._replace(opt_state=()), one._replace(opt_state=()))


def test_fsdp_divides_weights_momentum_and_the_held_term():
    state = compiled("mlp", "held", 1, 8)[0].create()
    weights = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (64, 128)]
    assert len(weights) == 3
    for leaf in weights:
        assert {shard.data.shape for shard in leaf.addressable_shards} == {(64, 16)}


def test_gam_costs_six_gradients_and_sam_two():
    plain, sam, gam = (compiled("convnet", method)[1]["flops_per_step"] for method in ("plain", "sam", "gam"))
    assert 1.8 < sam / plain < 2.1 and 4 < gam / plain < 6.1


@pytest.mark.parametrize("part, size", [("train", 61), ("validation", 50), ("test", 797)])
def test_evaluation_counts_every_example_once(part, size):
    """None of these sizes is a multiple of the batch."""
    programs, _ = compiled("mlp", "held", 1, 8)
    state, setup = programs.create(), setup_of("mlp", "held")
    image, label = setup.pipeline.parts[part]
    assert len(label) == size
    logits = jax.device_get(setup.model.apply(state.params, {}, image / np.float32(16), train=False)[0])
    losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(size), label]
    found = programs.evaluate(state.params, state.model_state, part)
    assert found.keys() == {f"{part}_loss", f"{part}_accuracy"}
    np.testing.assert_allclose(found[f"{part}_loss"], losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(found[f"{part}_accuracy"], (np.argmax(logits, -1) == label).mean(), rtol=1e-6)


def test_fillers_do_not_count_whatever_they_hold():
    setup = setup_of("mlp", "held")
    params = compiled("mlp", "held")[0].create().params
    (*_, last) = setup.pipeline.evaluation("test")
    assert 0 < (last.weight == 0).sum() < BATCH
    other = np.where(last.weight == 0, 9 - last.label, last.label).astype(np.int32)
    add = jax.jit(functools.partial(evaluation_step, setup.model, DATA_SETS["digits"], params, {}, Sums.zero()))
    sums = add(last)
    assert_close(sums, add(last._replace(label=other)), rtol=0, atol=0)
    assert float(sums.examples) == last.weight.sum()


def test_the_rank_of_the_label_is_its_place_in_the_sorted_logits():
    logits, labels = np.random.default_rng(0).normal(size=(500, 12)), np.arange(500) % 12
    place = np.argmax(np.argsort(-logits, axis=-1) == labels[:, None], axis=-1)
    np.testing.assert_array_equal(rank(logits, labels), place)
    assert ((place == 0) == (np.argmax(logits, -1) == labels)).all()


@pytest.mark.parametrize("value", [0.0, jnp.nan])
def test_a_network_that_says_nothing_is_not_right(value):
    assert (rank(np.full((4, 12), value), np.arange(4)) == 11).all()


def test_five_guesses_are_counted_where_there_are_more_than_ten_classes():
    sums: Any = Sums(8.0, 1.0, 3.0, 4.0)
    assert sums.means(10) == {"loss": 2.0, "accuracy": 0.25}
    assert sums.means(11) == {"loss": 2.0, "accuracy": 0.25, "top5_accuracy": 0.75}


def test_smoothed_cross_entropy_gives_the_other_classes_an_equal_share():
    logits = jnp.log(jnp.array([[0.7, 0.2, 0.1]]))
    found = cross_entropy(logits, np.array([1]), smoothing=0.3)
    np.testing.assert_allclose(found, -(0.15 * np.log(0.7) + 0.7 * np.log(0.2) + 0.15 * np.log(0.1)), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "int32", "bfloat16", "uint8", "bool", "float64"])
def test_checksums_detect_every_flipped_bit(x64, dtype):
    array = np.array([[60, 0.5, 0], [7, 1, 30]]).astype(jnp.dtype(dtype))
    bits = 1 if dtype == "bool" else 8
    flipped = np.repeat(array[None], array.nbytes * bits, axis=0)
    raw = flipped.view(np.uint8).reshape(len(flipped), -1)
    for i in range(len(flipped)):
        raw[i, i // bits] ^= 1 << i % bits
    sums = jax.jit(checksums)([array, array[::-1], *flipped])
    assert sums.dtype == np.uint32 and (sums[1:] != sums[0]).all()  # in the reversed array places differ only


def test_checksums_do_not_depend_on_where_arrays_lie():
    tree = {"a": np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32), "b": np.arange(8)}
    specs = (PartitionSpec(), PartitionSpec("data"), PartitionSpec(("data", "fsdp")))
    placed = (jax.device_put(tree, NamedSharding(mesh_of(2, 4).devices, spec)) for spec in specs)
    one, *others = (jax.jit(checksums)(arrays) for arrays in placed)
    for other in others:
        np.testing.assert_array_equal(one, other)


def test_a_run_and_its_resumption_compile_each_program_once(tmp_path, caplog):
    def compilations():
        caplog.clear()
        with jax.log_compiles():
            assert train(tmp_path, "--method", "plain") == 0
        found = collections.Counter(re.findall(r"Compiling jit\((\w+)\)", caplog.text))
        assert all(found[name] <= 1 for name in ("initial_weights", "initial_state", "zero", "checksums"))
        assert all(found[name] <= 1 for name in ("validate", "average"))
        return found["training_step"], found["evaluation_step"]

    assert compilations() == (1, 1)
    shutil.rmtree(tmp_path / "checkpoints" / "16")
    assert compilations() == (1, 1)
