"""Pretrained weights: every naming is read, and whatever does not fit exactly is refused by name; no pickles."""

import logging
import pickle
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from experiments.common.errors import UserError
from experiments.models import pretrained
from experiments.models.pretrained_names import namings
from tests.experiments.models.torch_layout import MAKE, config, in_torch_layout, shapes, zeros


def random_weights(model, width=0.25, classes=5):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(s.dtype), shapes(model, width, classes))


def saved(tmp_path, tensors):
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def load(path, model, width=0.25, classes=5):
    return pretrained.load(path, config(model, width=width), *zeros(model, width=width, classes=classes))


def assert_equal(ours, expected):
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


@pytest.mark.parametrize("model, naming", [(model, naming) for model in MAKE for naming in namings(model)])
def test_round_trip(tmp_path, caplog, model, naming):
    weights = random_weights(model)
    tensors = in_torch_layout(weights, namings(model)[naming])
    buffers = {"x.num_batches_tracked": np.array(3), "y.relative_position_index": np.zeros((4, 4), np.int64)}
    loaded = load(saved(tmp_path, tensors | buffers), model)
    assert_equal(loaded, weights)
    warned = (model, naming) == ("efficientnet_b0", "timm")
    assert ("tf_efficientnet_b0" in caplog.text) == warned == bool(caplog.records)


def test_type_and_sharding_are_those_of_the_parameters(tmp_path):
    tensors = in_torch_layout(random_weights("swin_t"), namings("swin_t")["timm"])
    path = saved(tmp_path, {name: tensor.astype(np.float16) for name, tensor in tensors.items()})
    mesh = jax.sharding.Mesh(np.array(jax.devices()), "data")
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    variables = jax.device_put(zeros("swin_t", width=0.25, classes=5), everywhere)
    for leaf in jax.tree.leaves(pretrained.load(path, config("swin_t", width=0.25), *variables)):
        assert leaf.sharding == everywhere and leaf.dtype == np.float32


@pytest.mark.parametrize("model", MAKE)
def test_classifier_for_other_classes_stays_and_is_spoken_of(tmp_path, caplog, model):
    weights = random_weights(model, classes=7)
    path = saved(tmp_path, in_torch_layout(weights, namings(model)["transformers"]))
    params, state = load(path, model, classes=5)
    assert not np.any(params["classifier"]["kernel"]) and not np.any(params["classifier"]["bias"])
    del params["classifier"], weights[0]["classifier"]
    assert_equal((params, state), weights)
    [record] = caplog.records
    assert record.levelno == logging.WARNING and "classifier" in record.getMessage()


def changed(change):
    tensors = in_torch_layout(random_weights("swin_t"), namings("swin_t")["transformers"])
    change(tensors)
    return tensors


BLOCK = "swin.encoder.layers.2.blocks.1"
QUERY, KEY, NORM = (
    f"{BLOCK}.{name}" for name in ("attention.self.query.weight", "attention.self.key.weight", "layernorm_before.bias")
)
HEAD = "classifier.weight"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop(QUERY), rf"not hold swin_t as transformers names it\. missing: {QUERY}$"),
        (lambda t: t.update({"a.weight": t[NORM]}), r"unexpected: a\.weight$"),
        (lambda t: t.update({"b": t.pop(NORM)}), rf"missing: {NORM}; unexpected: b$"),
        (lambda t: t.update({KEY: t[KEY][:-1]}), rf"{KEY} float32\[95, 96\] for our stages\.2\.1.*kernel \[96, 288\]$"),
        (lambda t: t.update({QUERY: t[QUERY][0]}), rf"{QUERY} float32\[96\]"),
        (lambda t: t.update({NORM: t[NORM].astype(np.int8)}), rf"{NORM} int8\[96\]"),
        (
            lambda t: t.update({"classifier.weight": t["classifier.weight"][:-1]}),
            r"classifier\.weight float32\[4, 192\]",
        ),
        (
            lambda t: t.update({"classifier.weight": t["classifier.weight"][:, :9]}),
            r"classifier\.weight float32\[5, 9\]",
        ),
        (lambda t: t.clear() or t.update({"conv1.weight": np.ones(3)}), r"and \d+ more; unexpected: conv1\.weight$"),
    ],
)
def test_misfits_are_named(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        load(saved(tmp_path, changed(change)), "swin_t")


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".PTH", ".ckpt"])
def test_pickles_are_refused_unopened(tmp_path, suffix):
    file = tmp_path / f"model{suffix}"
    file.write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    with pytest.raises(UserError, match=r"can run code.*safetensors\.torch\.save_file"):
        load(file, "swin_t")
    disguised = file.rename(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"cannot be read as safetensors"):
        load(disguised, "swin_t")
    assert not (tmp_path / "ran").exists()


def test_other_files_and_networks_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"must be a \.safetensors file, got .*model\.npz"):
        load(tmp_path / "model.npz", "swin_t")
    with pytest.raises(UserError, match=r"there is no file .*model\.safetensors"):
        load(tmp_path / "model.safetensors", "swin_t")
    with pytest.raises(UserError, match=r"efficientnet_b0 and swin_t, got 'resnet18'"):
        pretrained.load(saved(tmp_path, {"a": np.ones(3)}), config("resnet18"), {}, {})
