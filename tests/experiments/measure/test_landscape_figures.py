"""The planes around several networks: one scale, captions in the picture, and how wide each valley is."""

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest

from experiments.measure.flatness import landscape_figures

X = np.linspace(-1, 1, 41)
SQUARES = X**2 + X[:, None] ** 2


def result(method, loss, accuracy):
    config = {"optim": {"method": method}, "averaging": "none"}
    return {
        "checkpoint": {"name": f"{method}-8", "step": 8, "config": config},
        "measured": {
            "line 0": {"x": X.tolist(), "values": loss[20].tolist()},
            "plane": {"x": X.tolist(), "y": X.tolist(), "values": loss.tolist()},
            "point": {"test_accuracy": accuracy},
        },
    }


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """The axes of the planes and of the bar, in place of a file."""
    figures = []
    monkeypatch.setattr(landscape_figures, "save", lambda figure, path: figures.append(figure) or path)

    def draw(results):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            landscape_figures.draw_landscape(results, tmp_path)
        return figures[1].axes

    yield draw
    plt.close("all")


def test_one_scale_for_all_planes_and_captions_in_the_picture(drawn):
    sgd, sam, *_ = axes = drawn([result("plain", 0.5 + 16 * SQUARES, 0.764), result("sam", 0.9 + 4 * SQUARES, 0.8)])
    assert [axis.get_title() for axis in (sgd, sam)] == ["SGD", "SAM"]
    assert [axis.texts[0].get_text() for axis in (sgd, sam)] == ["test accuracy 76%", "test accuracy 80%"]
    first, second = sgd.collections[0], sam.collections[0]
    assert first.norm is second.norm and first.levels.tolist() == second.levels.tolist()
    assert first.levels[0] == 0.5 and axes[-1].get_ylabel() == "training loss"
    assert axes[0].figure.get_facecolor() == (1, 1, 1, 1)  # readable on a dark page


def test_bold_is_where_the_loss_is_1_higher_than_the_networks_own(drawn):
    for axis, curvature in zip(
        drawn([result("plain", 0.5 + 16 * SQUARES, 0.7), result("sam", 0.9 + 4 * SQUARES, 0.8)]), (16, 4), strict=False
    ):
        (bold,) = [lines for lines in axis.collections if len(lines.levels) == 1]
        (path,) = bold.get_paths()
        np.testing.assert_allclose(np.linalg.norm(path.vertices, axis=1), curvature**-0.5, rtol=0.02)


def test_a_plane_without_a_valley_is_drawn_too(drawn):
    plane, *_ = drawn([result("plain", np.ones_like(SQUARES), 0.1)])
    assert [lines for lines in plane.collections if len(lines.levels) == 1] == []
