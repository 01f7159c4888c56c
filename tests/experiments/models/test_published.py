"""Sizes of the networks against published numbers, by shapes alone."""

import math
from typing import get_args

import jax
import jax.numpy as jnp
import pytest

from experiments.common.errors import UserError
from experiments.models.config import ModelConfig, ModelName
from experiments.models.registry import NAMES, build

# Name, image size, classes, parameters, and multiply-adds of one image in billions, with the published precision:
# torchvision's tables (resnet*, vit_b32; 224 pixels), imgclsmob (wrn28_10, pyramidnet110), pytorch-cifar (resnet18,
# resnet101 at 32 pixels), pytorch-classification (ResNeXt-29, 8x64d: 34.43 M), TorchSSL (wrn28_2),
# timm (vit_s32, vit_*16).
SLOW = pytest.mark.slow  # deep, and like another row
PUBLISHED = [
    ("resnet18", 32, 10, 11_173_962, 0.556),
    ("resnet18", 32, 100, 11_220_132, None),
    ("resnet18", 224, 1000, 11_689_512, 1.81),
    ("resnet20", 32, 10, 269_722, 0.041),
    ("resnet50", 224, 1000, 25_557_032, 4.09),
    pytest.param("resnet101", 32, 10, 42_512_970, 2.51, marks=SLOW),
    ("resnet101", 224, 1000, 44_549_160, 7.80),
    ("wrn28_2", 32, 10, 1_467_610, None),
    ("wrn28_10", 32, 10, 36_479_194, 5.25),
    pytest.param("wrn28_10", 32, 100, 36_536_884, None, marks=SLOW),
    ("pyramidnet110", 32, 10, 28_485_477, 4.73),
    pytest.param("pyramidnet110", 32, 100, 28_511_307, None, marks=SLOW),
    ("resnext", 32, 10, 34_426_698, 5.4),
    ("vit_s32", 224, 1000, 22_878_952, 1.15),
    ("vit_s16", 224, 1000, 22_050_664, 4.61),
    ("vit_b32", 224, 1000, 88_224_232, 4.41),
    ("vit_b16", 224, 1000, 86_567_656, 17.58),
    ("vit_l16", 224, 1000, 304_326_632, 61.60),
    ("mlp", 28, 10, (28 * 28 * 3 + 1) * 128 + 129 * 128 + 129 * 10, None),
    # DeiT-Ti at 224 pixels with 1000 classes (5,717,416), less its larger patches, more patches and more classes
    ("vit", 32, 10, 5_717_416 - (16**2 - 4**2) * 3 * 192 - (14**2 - 8**2) * 192 - 990 * 193, None),
]
RESNET_8 = 9 * (3 * 16 + 2 * 16**2 + 16 * 32 + 32**2 + 32 * 64 + 64**2) + 2 * (16 * 3 + 32 * 2 + 64 * 2) + 65 * 10
"""Section 4.2 of He et al. (2016) with n = 1: 3 x 3 convolutions, batch normalisations, classifier."""
TRANSFER = {"efficientnet_b0", "swin_t"}  # in test_efficientnet.py and test_swin.py


def network(name, size, num_classes):
    """The apply function in evaluation, and the shapes of what it takes."""
    model = build(ModelConfig(name=name), (size, size, 3), num_classes)
    params, state = jax.eval_shape(model.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return lambda *args: model.apply(*args, train=False)[0], (params, state, images)


def multiply_adds(jaxpr):
    """Of convolutions, padding included, and of matrix products."""
    total = 0
    for eqn in jaxpr.eqns:
        shapes = [v.aval.shape for v in (*eqn.invars, *eqn.outvars)]
        if eqn.primitive.name == "conv_general_dilated":
            total += (
                math.prod(shapes[2]) * math.prod(shapes[1]) // shapes[1][eqn.params["dimension_numbers"].rhs_spec[0]]
            )
        if eqn.primitive.name == "dot_general":
            contracted = eqn.params["dimension_numbers"][0][0]
            total += math.prod(shapes[2]) * math.prod(shapes[0][axis] for axis in contracted)
        for inner in map(lambda value: getattr(value, "jaxpr", value), eqn.params.values()):
            if hasattr(inner, "eqns"):
                total += multiply_adds(inner) * eqn.params.get("length", 1)
    return total


def test_every_network_is_listed():
    assert set(NAMES) == set(get_args(ModelName)) == {getattr(row, "values", row)[0] for row in PUBLISHED} | TRANSFER


@pytest.mark.parametrize(("name", "size", "classes", "parameters", "billions"), PUBLISHED)
def test_parameters_and_multiply_adds_are_the_published_ones(name, size, classes, parameters, billions):
    apply, arguments = network(name, size, classes)
    assert sum(leaf.size for leaf in jax.tree.leaves(arguments[0])) == parameters
    assert {leaf.dtype for leaf in jax.tree.leaves(arguments[:2])} == {jnp.dtype("float32")}
    if billions is not None:
        counted = multiply_adds(jax.make_jaxpr(apply)(*arguments).jaxpr) / 1e9
        assert counted == pytest.approx(billions, rel=0.012)


def test_a_gradient_of_resnet18_costs_three_evaluations():
    apply, arguments = network("resnet18", 32, 10)
    loss_fn = lambda *args: apply(*args).sum()  # noqa: E731
    # XLA leaves the products with padding out of its count, here and there
    forward, gradient = (jax.jit(fn).lower(*arguments).cost_analysis()["flops"] for fn in (loss_fn, jax.grad(loss_fn)))
    assert gradient / forward == pytest.approx(3, rel=0.05)


def parameters(**options):
    model = build(ModelConfig(**options), (32, 32, 3), 10)
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0))[0]))


def test_depth_is_that_of_the_family():
    assert parameters(name="resnet20", depth=1) == RESNET_8
    assert parameters(name="resnet20", depth=3) == parameters(name="resnet20")
    layer = parameters(name="vit", depth=3) - parameters(name="vit", depth=2)
    assert layer == 12 * 192**2 + 13 * 192 and parameters(name="vit", depth=12) == parameters(name="vit")
    with pytest.raises(UserError, match="'resnet18' has no model.depth, got 2"):
        parameters(name="resnet18", depth=2)
    with pytest.raises(UserError, match="model.depth must be at least 1, got 0"):
        ModelConfig(name="vit", depth=0)
