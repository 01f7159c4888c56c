"""Our networks are those of transformers and timm: the same tensors in their files, and the same logits.

The tests marked ``torch`` ask the libraries; the others remember what they answered.
"""

import hashlib
import zlib

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from experiments.models import pretrained
from experiments.models.pretrained_names import namings
from tests.experiments.models.torch_layout import MAKE, config, in_torch_layout, shapes, zeros

DIGESTS = {
    ("efficientnet_b0", "transformers"): "ad804ab96f96b558",
    ("efficientnet_b0", "timm"): "5f2202b5d2bef8eb",
    ("swin_t", "transformers"): "66093a28a83dac52",
    ("swin_t", "timm"): "d6c7c5f248bb107e",
}
SIZES = {"efficientnet_b0": 64, "swin_t": 200}  # maps of 50, 25, 13 and 7: windows and mergings pad three of them
LOGITS = {
    "efficientnet_b0": [
        [0.5347561240196228, 0.6370564699172974, 0.701648473739624],
        [0.5529775023460388, 0.6408407092094421, 0.6801536679267883],
    ],
    "swin_t": [
        [0.8679793477058411, -0.12672971189022064, 0.16888311505317688],
        [0.6076127886772156, -0.04673801735043526, 0.1404588520526886],
    ],
}
TOLERANCE = 1e-5


def digest(tensors):
    """Of names and shapes of the weights, buffers left out."""
    named = sorted((name, tensor.shape) for name, tensor in tensors.items() if tensor.dtype == np.float32)
    return hashlib.sha256(repr(named).encode()).hexdigest()[:16]


def random_tensor(name, like):
    """Decided by name and shape alone. Activations stay near 1; with larger ones EfficientNet is chaotic."""
    normal = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(like.shape, np.float32)
    if like.dtype != np.float32:
        return like
    if name.endswith("running_var"):
        return 1 + 0.5 * np.tanh(normal)
    if like.ndim == 1:
        return normal * np.float32(0.2) + np.float32(name.endswith(".weight"))
    return normal if "table" in name else normal * np.float32(np.sqrt(1.8 / like[0].size))


def random_tensors(like):
    return {name: random_tensor(name, tensor) for name, tensor in like.items()}


def random_images(size):
    return np.random.default_rng(0).standard_normal((2, size, size, 3), np.float32)


def logits(file, model, size):
    variables = pretrained.load(file, config(model), *zeros(model))
    apply = MAKE[model](config(model), (size, size, 3), 1000).apply
    return jax.jit(lambda *args: apply(*args, train=False)[0])(*variables, random_images(size))


def empty(model, naming):
    return in_torch_layout(jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes(model)), namings(model)[naming])


@pytest.mark.parametrize("model, naming", DIGESTS)
def test_names_are_those_of_the_library(model, naming):
    assert digest(empty(model, naming)) == DIGESTS[model, naming]


@pytest.mark.parametrize("model", ["efficientnet_b0", pytest.param("swin_t", marks=pytest.mark.slow)])
def test_logits_are_those_that_pytorch_computed(tmp_path, model):
    file = tmp_path / "model.safetensors"
    save_file(random_tensors(empty(model, "transformers")), file)
    np.testing.assert_allclose(logits(file, model, SIZES[model])[:, :3], LOGITS[model], rtol=TOLERANCE, atol=TOLERANCE)


def transformers_network(model):
    transformers = pytest.importorskip("transformers", reason="needs the extra 'torch'")
    if model == "swin_t":
        return transformers.SwinForImageClassification(transformers.SwinConfig(num_labels=1000))
    b0 = transformers.EfficientNetConfig(
        image_size=224, width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280, num_labels=1000
    )
    return transformers.EfficientNetForImageClassification(b0)


def assert_equal(file, model, network, size):
    torch = pytest.importorskip("torch", reason="needs the extra 'torch'")
    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(random_images(size).transpose(0, 3, 1, 2).copy()))
    expected = getattr(expected, "logits", expected).numpy()
    ours = logits(file, model, size)
    assert (expected[0] - expected[1]).std() > 500 * TOLERANCE  # the images matter
    np.testing.assert_allclose(ours, expected, rtol=TOLERANCE, atol=TOLERANCE)
    return expected[:, :3]


@pytest.mark.torch
@pytest.mark.parametrize("size", ["small", 224])
@pytest.mark.parametrize("model", MAKE)
def test_transformers(tmp_path, model, size):
    network = transformers_network(model)
    network.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file(random_tensors(tensors), file, {"format": "pt"})
    network = type(network).from_pretrained(tmp_path)
    expected = assert_equal(file, model, network, SIZES[model] if size == "small" else size)
    assert digest(tensors) == DIGESTS[model, "transformers"]
    if size == "small":
        np.testing.assert_allclose(expected, LOGITS[model], rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.torch
@pytest.mark.parametrize(
    "model, published, size",
    [
        ("efficientnet_b0", "tf_efficientnet_b0", 224),
        ("efficientnet_b0", "tf_efficientnet_b0", 61),
        ("swin_t", "swin_tiny_patch4_window7_224", 224),
    ],
)
def test_timm(tmp_path, model, published, size):
    torch = pytest.importorskip("torch", reason="needs the extra 'torch'")
    timm = pytest.importorskip("timm", reason="needs the extra 'torch'")
    network = timm.create_model(published)
    tensors = random_tensors({name: tensor.numpy() for name, tensor in network.state_dict().items()})
    network.load_state_dict({name: torch.from_numpy(np.asarray(tensor)) for name, tensor in tensors.items()})
    file = tmp_path / "model.safetensors"
    save_file(tensors, file)
    assert_equal(file, model, network, size)
    assert digest(tensors) == DIGESTS[model, "timm"]
