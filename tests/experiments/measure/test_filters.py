"""Filters of our networks: those that names and shapes tell, and layer by layer in the ViT."""

import jax
import numpy as np
import pytest

from experiments.measure.flatness.filters import filter_axes
from experiments.measure.flatness.measure import landscape_plan
from experiments.models.config import ModelConfig
from experiments.models.registry import NAMES, build
from gam_jax import flatness
from gam_jax.flatness import _filters

LARGER = {"resnet101", "wrn28_10", "vit_s32", "vit_s16", "vit_b32", "vit_b16", "vit_l16"}  # of a smaller one's kind


def test_a_parameter_without_a_rule_is_refused():
    with pytest.raises(ValueError, match=r"params\['norm'\]\['gain'\], got shape \(3,\)"):
        filter_axes((jax.tree_util.DictKey("norm"), jax.tree_util.DictKey("gain")), np.ones(3))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in LARGER])
def test_every_network_is_known(name):
    params, _ = jax.eval_shape(build(ModelConfig(name=name), (32, 32, 3), 10).init, jax.random.key(0))
    leaves = jax.tree.leaves_with_path(params)
    told = [_filters.filter_axes(params, axes) for axes in (filter_axes, -1)]
    for (path, leaf), ours, by_name in zip(leaves, *told, strict=True):
        assert ours == by_name or path[-1].key in ("class_token", "positions"), (path, leaf.shape)


@pytest.mark.slow
def test_the_landscape_of_a_vit_is_normalised_layer_by_layer(monkeypatch):
    model = build(ModelConfig(name="vit", width=0.1, depth=3), (8, 8, 1), 10)
    params, _ = model.init(jax.random.key(0))
    params["blocks"]["up"]["kernel"] = params["blocks"]["up"]["kernel"] * np.array([1.0, 10.0, 100.0])[:, None, None]
    used = []

    class Run:
        loss_fn, batches = None, None

    class Settings:
        seed, directions, radius, points = 0, 2, 1.0, 3

    Run.params = params
    monkeypatch.setattr(flatness, "loss_slice", lambda *args, **options: used.append(args[3]))
    for name, draw in landscape_plan(Run, Settings).items():
        if name != "point":  # which needs data
            draw()
    assert len(used) == 3
    norm = lambda x: np.linalg.norm(x, axis=-2)  # noqa: E731
    for direction in used:
        for module in ("query_key_value", "project", "up", "down"):
            kernels = direction["blocks"][module]["kernel"], params["blocks"][module]["kernel"]
            np.testing.assert_allclose(norm(kernels[0]), norm(kernels[1]), rtol=1e-4)
        still = [direction["blocks"][f"norm{i}"][name] for i in (1, 2) for name in ("scale", "bias")]
        assert not any(leaf.any() for leaf in [*still, direction["blocks"]["up"]["bias"], direction["norm"]["scale"]])
