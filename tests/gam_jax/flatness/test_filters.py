"""Filter normalisation: layer by layer in stacks, biases and norms at rest, whatever their rank; or a refusal."""

import jax
import numpy as np
import pytest
from flax import nnx

from gam_jax import flatness
from gam_jax.flatness._filters import filter_axes

KEY = jax.random.key(0)


def arrays(**shapes):
    """Normal entries, of another size for each index of the first axis."""
    out = {}
    for name, shape in shapes.items():
        sizes = 10.0 ** np.arange(shape[0] if shape else 1).reshape(-1, *[1] * (len(shape) - 1))
        out[name] = jax.random.normal(KEY, shape) * (sizes if shape else 1.0)
    return out


def one(params, **options):
    return flatness.filter_normalized_directions(params, key=KEY, num=1, **options)[0]


def assert_filters(direction, weights, *kept):
    """The norms of the direction are those of the weights for each index of the kept axes, and for no fewer."""
    axes = tuple(axis for axis in range(weights.ndim) if axis not in kept)
    norm = lambda x: np.sqrt(np.sum(np.square(np.asarray(x, np.float64)), axes))  # noqa: E731
    np.testing.assert_allclose(norm(direction), norm(weights), rtol=1e-5)
    assert np.linalg.norm(direction - weights) > 0.1 * np.linalg.norm(weights)


# parameters, filter_axis, and what to expect of each leaf: the kept axes, None for a zero direction
KNOWN = {
    "stacked dense": (arrays(kernel=(3, 4, 5), bias=(3, 5)), -1, {"kernel": (0, 2), "bias": None}),
    "square stack": (arrays(kernel=(3, 4, 4), bias=(3, 4)), -1, {"kernel": (0, 2), "bias": None}),
    "stacked twice": (arrays(kernel=(2, 3, 4, 5), bias=(2, 3, 5)), -1, {"kernel": (0, 1, 3), "bias": None}),
    "convolution of one axis": (arrays(kernel=(3, 4, 5), bias=(5,)), -1, {"kernel": (2,), "bias": None}),
    "stacked convolution": (arrays(kernel=(3, 2, 2, 4, 5), bias=(3, 5)), -1, {"kernel": (0, 4), "bias": None}),
    "heads": (arrays(kernel=(6, 2, 5), bias=(2, 5)), -1, {"kernel": (1, 2), "bias": None}),
    "stacked heads": (arrays(kernel=(3, 6, 2, 5), bias=(3, 2, 5)), -1, {"kernel": (0, 2, 3), "bias": None}),
    "stacked PyTorch": (arrays(weight=(3, 5, 4), bias=(3, 5)), 0, {"weight": (0, 1), "bias": None}),
    "stacked Haiku": (arrays(w=(3, 4, 5), b=(3, 5)), -1, {"w": (0, 2), "b": None}),
    "numbered": (arrays(w1=(3, 4, 5), b1=(3, 5)), -1, {"w1": (0, 2), "b1": None}),
    "stacked norm": (arrays(scale=(3, 5), bias=(3, 5)), -1, {"scale": None, "bias": None}),
    "stacked norm of PyTorch": (arrays(weight=(3, 5), bias=(3, 5)), 0, {"weight": None, "bias": None}),
    "embedding": (arrays(embedding=(9, 4)), -1, {"embedding": (0,)}),
    "convolution before a norm": (arrays(kernel=(3, 3, 2, 5), scale=(5,)), -1, {"kernel": (3,), "scale": None}),
    "dense": (arrays(kernel=(4, 5)), -1, {"kernel": (1,)}),
    "transposed": (arrays(kernel=(4, 5)), -2, {"kernel": (0,)}),
    "matrix without a name": (arrays(projection=(4, 5), gain=()), -1, {"projection": (1,), "gain": None}),
}


@pytest.mark.parametrize("case", KNOWN)
def test_filters_are_known(case):
    params, filter_axis, expected = KNOWN[case]
    direction = one(params, filter_axis=filter_axis)
    for name, kept in expected.items():
        if kept is None:
            assert not direction[name].any()
        else:
            assert_filters(direction[name], params[name], *kept)


def test_layers_without_a_bias_are_stacked_as_their_neighbours():
    layers = {"norm": arrays(scale=(3, 4)), "up": arrays(kernel=(3, 4, 5)), "head": arrays(kernel=(3, 4, 2, 2))}
    stem = {"embed": arrays(kernel=(2, 2, 6, 4)), "norm": arrays(scale=(4,))}
    params = {"layers": layers, "stem": stem}
    direction = one(params)
    assert_filters(direction["layers"]["up"]["kernel"], layers["up"]["kernel"], 0, 2)
    assert_filters(direction["layers"]["head"]["kernel"], layers["head"]["kernel"], 0, 3)
    assert_filters(direction["stem"]["embed"]["kernel"], stem["embed"]["kernel"], 3)
    assert not direction["layers"]["norm"]["scale"].any() and not direction["stem"]["norm"]["scale"].any()


def test_a_scanned_network_equals_its_layers_one_by_one():
    """What nnx.vmap stacks has the axes of each layer alone, and one more."""

    class Layer(nnx.Module):
        def __init__(self, rngs):
            self.norm, self.dense = nnx.LayerNorm(6, rngs=rngs), nnx.Linear(6, 6, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(2, 6, rngs=rngs)
            self.conv, self.table = nnx.Conv(6, 4, 3, rngs=rngs), nnx.Embed(7, 6, rngs=rngs)

    single = nnx.state(nnx.eval_shape(lambda: Layer(nnx.Rngs(0))), nnx.Param)
    stacked = nnx.state(nnx.vmap(lambda key: Layer(nnx.Rngs(key)))(jax.random.split(KEY, 5)), nnx.Param)
    for alone, together in zip(filter_axes(single, -1), filter_axes(stacked, -1), strict=True):
        assert together == (None if alone is None else (0, *(axis + 1 for axis in alone)))
    assert jax.tree.structure(one(stacked)) == jax.tree.structure(stacked)


def test_the_caller_says_which_axes():
    params = {"kernel": arrays(x=(3, 4, 5))["x"], "table": arrays(x=(3, 4))["x"], "mask": arrays(x=(3, 4))["x"]}
    paths = []

    def axes(path, leaf):
        paths.append(jax.tree_util.keystr(path))
        return {3: (0, -1), 2: None if "mask" in paths[-1] else 0}[leaf.ndim]

    direction = one(params, filter_axis=axes)
    assert_filters(direction["kernel"], params["kernel"], 0, 2)
    assert_filters(direction["table"], params["table"], 0)
    assert not direction["mask"].any()
    assert paths == ["['kernel']", "['mask']", "['table']"]


UNKNOWN = {
    "a convolution or a stack": arrays(kernel=(3, 4, 5)),
    "no name": arrays(x=(3, 4, 5))["x"],
    "heads or a stack": arrays(kernel=(4, 4, 4), bias=(4, 4)),
    "a bias of something else": arrays(kernel=(3, 4, 5), bias=(2, 5)),
    "neighbours that differ": {
        "layers": {"norm": arrays(scale=(3, 5))},
        "norm": arrays(scale=(5,)),
        "free": arrays(kernel=(3, 4, 5)),
    },
    "a matrix or stacked vectors": {"layers": {"norm": arrays(scale=(3, 5)), "gate": arrays(g=(3, 4))}},
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_nothing_is_guessed(case):
    with pytest.raises(ValueError, match=r"cannot know which axes of params.* number stacked layers .*filter_axis=-1"):
        one(UNKNOWN[case])
    assert jax.tree.leaves(one(UNKNOWN[case], filter_axis=lambda path, leaf: None))


@pytest.mark.parametrize(
    ("filter_axis", "error", "message"),
    [
        ("last", TypeError, "an axis or a function .* got filter_axis='last'"),
        (True, TypeError, "filter_axis=True"),
        (1.0, TypeError, "filter_axis=1.0"),
        (2, ValueError, r"got filter_axis=2 for params\['kernel'\] of shape \(4, 5\)"),
        (-3, ValueError, r"got filter_axis=-3 for params\['kernel'\] of shape \(4, 5\)"),
        (lambda path, leaf: 2, ValueError, r"got filter_axis\(path, leaf\)=2 for params\['kernel'\]"),
        (lambda path, leaf: (0, -2), ValueError, r"different axes .* got filter_axis\(path, leaf\)=\(0, -2\)"),
        (lambda path, leaf: "out", TypeError, r"got filter_axis\(path, leaf\)='out'"),
        (lambda path, leaf: True, TypeError, r"got filter_axis\(path, leaf\)=True"),
    ],
)
def test_bad_filter_axes(filter_axis, error, message):
    with pytest.raises(error, match=message):
        one(arrays(kernel=(4, 5)), filter_axis=filter_axis)
