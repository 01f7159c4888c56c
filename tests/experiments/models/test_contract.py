"""What every network owes the trainer and the optimizers, on a small version of each architecture."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.common.errors import UserError
from experiments.models import pyramidnet, resnet, vit, wide_resnet
from experiments.models.config import ModelConfig
from experiments.models.registry import build

IMAGE_SHAPE, CLASSES = (8, 8, 3), 5
IMAGES = jax.random.normal(jax.random.key(1), (6, *IMAGE_SHAPE))
ARCHITECTURES = {
    "resnet20": functools.partial(resnet.model, resnet.Architecture((1, 1), 4, 4, 4, projection=False)),
    "resnext": functools.partial(resnet.model, resnet.Architecture((1, 1), 4, 4, 8, bottleneck=True, groups=2)),
    "wrn28_2": functools.partial(wide_resnet.model, 10, 1),
    "pyramidnet110": functools.partial(pyramidnet.model, 8, 30),
    "vit": functools.partial(vit.model, vit.Architecture(patch=4, embedding=8, heads=2, depth=3)),
}
ALL = pytest.mark.parametrize("name", ARCHITECTURES)


def quick(*names, but=()):
    """Only these are compiled in the quick tests; the others share most of their code."""
    marks = {name: () if name in names else pytest.mark.slow for name in ARCHITECTURES if name not in but}
    return pytest.mark.parametrize("name", [pytest.param(name, marks=mark) for name, mark in marks.items()])


compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiles faster


def make(name, **options):
    """A small network."""
    return ARCHITECTURES[name](ModelConfig(name=name, **options), IMAGE_SHAPE, CLASSES)


@functools.cache
def initialise(name):
    """``key -> params, model_state``, compiled; whatever the options."""
    return compiled(make(name).init)


def zeros(name):
    """Parameters and state for what looks at programs alone."""
    shapes = jax.eval_shape(make(name).init, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


@functools.cache
def trained(name, **options):
    """Gradient, new state and logits of a training step at initialisation."""
    params, state = initialise(name)(jax.random.key(0))
    loss_fn = lambda params, state, images: loss_of(make(name, **options), state, images)(params)  # noqa: E731
    (_, aux), grads = compiled(jax.value_and_grad(loss_fn, has_aux=True))(params, state, IMAGES)
    return grads, *aux


def loss_of(model, state, images=IMAGES):
    """The loss in training as a function of the parameters, with the new state and the logits."""

    def loss_fn(params):
        logits, new_state = model.apply(params, state, images, train=True)
        labels = jnp.arange(len(images)) % CLASSES
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), (new_state, logits)

    return loss_fn


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@ALL
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_parameters_and_state_are_float32(name, dtype):
    model = make(name, dtype=dtype)
    params, state = jax.eval_shape(model.init, jax.random.key(0))
    for train in (True, False):
        logits, new_state = jax.eval_shape(functools.partial(model.apply, train=train), params, state, IMAGES)
        assert (logits.shape, logits.dtype) == ((6, CLASSES), jnp.float32)
        assert jax.tree.map(jnp.shape, new_state) == jax.tree.map(jnp.shape, state)
        assert {leaf.dtype for leaf in jax.tree.leaves((params, state, new_state))} == {jnp.dtype("float32")}


def products(jaxpr):
    """Types of the results of all convolutions and matrix products, in order."""
    types = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("conv_general_dilated", "dot_general"):
            types.append(str(eqn.outvars[0].aval.dtype))
        for inner in map(lambda value: getattr(value, "jaxpr", value), eqn.params.values()):
            types += products(inner) if hasattr(inner, "eqns") else []
    return types


@ALL
def test_bfloat16_computes_all_but_softmax_and_logits(name):
    apply = functools.partial(make(name, dtype="bfloat16").apply, train=True)
    *types, logits = products(jax.make_jaxpr(apply)(*zeros(name), IMAGES).jaxpr)
    attention = ["float32"] if name == "vit" else []  # scores
    assert logits == "float32" and sorted(types) == sorted(["bfloat16"] * (len(types) - len(attention)) + attention)


@pytest.mark.parametrize("name", ["resnet20", "vit"])
def test_bfloat16_computes_nearly_the_same(name):
    *_, logits = trained(name)
    apply = compiled(functools.partial(make(name, dtype="bfloat16").apply, train=True))
    approximate, _ = apply(*initialise(name)(jax.random.key(0)), IMAGES)
    assert 0 < np.abs(approximate - logits).max() < 0.1 * np.abs(logits).max()


@quick("resnet20", but=("vit",))
def test_state_moves_in_training_alone(name):
    params, state = initialise(name)(jax.random.key(0))
    _, moved, _ = trained(name)
    assert all(jnp.any(a != b) for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(state), strict=True))
    evaluate = compiled(functools.partial(make(name).apply, train=False))
    logits, unmoved = evaluate(params, moved, IMAGES)
    assert_equal(unmoved, moved)
    other_company, _ = evaluate(params, moved, IMAGES.at[1:].multiply(3))
    np.testing.assert_allclose(other_company[0], logits[0], rtol=1e-4, atol=1e-5)
    assert jnp.any(evaluate(params, state, IMAGES)[0] != logits)


def test_a_network_without_statistics_has_no_state():
    assert initialise("vit")(jax.random.key(0))[1] == trained("vit")[1] == {}


@quick("resnet20", "vit")
def test_remat_changes_no_number(name):
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), trained(name), trained(name, remat="all")
    )


@ALL
def test_remat_changes_what_is_kept(name):
    params, state = zeros(name)
    programs = [jax.make_jaxpr(loss_of(make(name, remat=remat), state))(params) for remat in ("none", "all")]
    assert ["remat" in str(program) for program in programs] == [False, True]


@quick("resnext", "vit")
def test_hessian_vector_product_is_the_derivative_of_the_gradient(name, monkeypatch):
    monkeypatch.setattr(jax.nn, "relu", jax.nn.softplus)  # finite differences would meet the kinks
    params, state = initialise(name)(jax.random.key(0))
    rng = np.random.default_rng(2)
    direction = jax.tree.map(lambda p: rng.standard_normal(p.shape, np.float32), params)

    @compiled
    def grad_and_product(params, state, images, direction, step):
        grad = jax.grad(loss_of(make(name), state, images), has_aux=True)
        at = jax.tree.map(lambda p, d: p + step * d, params, direction)
        value, product = jax.linearize(lambda params: grad(params)[0], at)
        return value, product(direction)

    steps = (0.0, 1e-3, -1e-3)
    (_, product), (ahead, _), (behind, _) = (grad_and_product(params, state, IMAGES, direction, s) for s in steps)
    product, ahead, behind = map(flat, (product, ahead, behind))
    np.testing.assert_allclose(
        np.linalg.norm((ahead - behind) / 2e-3 - product), 0, atol=0.01 * np.linalg.norm(product)
    )


def test_hessian_of_the_imagenet_stem_is_symmetric():
    architecture, config = resnet.Architecture((1,), 4, 4, 4), ModelConfig(name="resnet18")
    model = resnet.model(architecture, config, (66, 66, 3), CLASSES)
    params, state = compiled(model.init)(jax.random.key(0))
    assert params["stem"]["conv"]["kernel"].shape == (7, 7, 3, 4)
    rng = np.random.default_rng(2)
    images = rng.standard_normal((2, 66, 66, 3), np.float32)
    u, v = (jax.tree.map(lambda p: rng.standard_normal(p.shape, np.float32), params) for _ in range(2))

    @compiled
    def product(direction):
        grad = jax.grad(lambda params: loss_of(model, state, images)(params)[0])
        return jax.jvp(grad, (params,), (direction,))[1]

    one, two = flat(u) @ flat(product(v)), flat(v) @ flat(product(u))
    assert abs(one) > 1e-2
    np.testing.assert_allclose(one, two, rtol=1e-3)


@ALL
def test_initialisation_is_a_function_of_the_key(name):
    (params, state), same, (other, _) = (initialise(name)(jax.random.key(seed)) for seed in (0, 0, 1))
    assert_equal((params, state), same)
    kernels = lambda params: [x for x in jax.tree.leaves(params) if x.ndim > 2]  # noqa: E731
    assert all(jnp.any(a != b) for a, b in zip(kernels(params), kernels(other), strict=True))
    assert all(
        isinstance(entry.key, str) for path, _ in jax.tree.leaves_with_path((params, state)) for entry in path[1:]
    )


def test_mlp_flattens_images():
    model = build(ModelConfig(name="mlp", hidden=(7,)), IMAGE_SHAPE, CLASSES)
    params, state = model.init(jax.random.key(0))
    images = jnp.ones((6, *IMAGE_SHAPE))
    logits, new_state = model.apply(params, state, images, train=True)
    assert [layer["weight"].shape for layer in params] == [(192, 7), (7, 5)] and state == new_state == {}
    np.testing.assert_allclose(logits, model.apply(params, state, 2 * images, train=False)[0] / 2, rtol=1e-5)


OPTIONS = {"width": 2.0, "hidden": (3,), "dtype": "bfloat16", "remat": "all", "dropout": 0.5, "drop_path": 0.5}


@pytest.mark.parametrize("name", ["mlp", "resnet20", "wrn28_2", "vit"])
def test_no_option_is_ignored(name):
    """An option changes the program, or is refused by an error that names it and the networks that have it."""

    def program(**options):
        model = build(ModelConfig(name=name, **options), (32, 32, 3), 10)
        apply = functools.partial(model.apply, train=True, key=jax.random.key(1))
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        return str(shapes) + str(jax.make_jaxpr(apply)(*shapes, jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)))

    default, refused = program(), set()
    for field, value in OPTIONS.items():
        try:
            assert program(**{field: value}) != default
        except UserError as error:
            assert f"model.{field}, got {value}" in str(error) and repr(name) in str(error)
            assert ("mlp" if field == "hidden" else "vit") in str(error).split("option of")[1]
            refused.add(field)
    assert refused == {
        "mlp": {"width", "dtype", "remat", "dropout", "drop_path"},
        "vit": {"hidden"},
    }.get(name, {"hidden", "dropout", "drop_path"})


def test_only_transfer_networks_start_from_a_file(tmp_path):
    with pytest.raises(UserError, match=r"'vit' has no model\.pretrained.*option of efficientnet_b0, swin_t$"):
        build(ModelConfig(name="vit", pretrained=tmp_path), IMAGE_SHAPE, CLASSES)
