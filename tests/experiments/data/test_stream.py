"""Streamed data: random crops, resuming, worker processes; and the images themselves."""

import io
import itertools
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import absl.flags
import numpy as np
import pytest
from PIL import Image

from experiments.data import open_data
from experiments.data.config import DataConfig
from experiments.data.images import centre_box, cut, decode, pixels, random_box, resize_all
from tests.experiments.data import tiny_data

ROOT = Path(__file__).parents[3]
ONE = {"process_index": 0, "process_count": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tfds")
    tiny_data.prepare(folder, "imagenet", {"train": 23, "validation": 9}, "JPEG")
    return folder


def opened(folder, *, batch_size=4, process_index=0, process_count=1, seed=0, **changes):
    config = DataConfig(name="imagenet", folder=folder, image_size=16, validation=0.0, **changes)
    return open_data(config, seed=seed, batch_size=batch_size, process_index=process_index, process_count=process_count)


def by_index(batches):
    """The images of these batches by example, each as often as it was seen."""
    seen = {}
    for batch in batches:
        for index, image in zip(batch.index, batch.image, strict=True):
            seen.setdefault(int(index), []).append(image)
    return seen


def test_crops_are_new_in_every_epoch_and_the_same_for_the_same_seed(folder):
    epochs = by_index(itertools.islice(opened(folder, batch_size=23).train(0), 3))
    assert len(epochs) == 23
    assert all(len({image.tobytes() for image in images}) == 3 for images in epochs.values())
    (other,) = itertools.islice(opened(folder, batch_size=23, seed=1).train(0), 1)
    assert all((other.image[row] != epochs[int(i)][0]).any() for row, i in enumerate(other.index))


def test_without_augmentation_training_sees_what_evaluation_sees(folder):
    pipeline = opened(folder, augment="none")
    evaluated = by_index(batch for batch in pipeline.evaluation("train"))
    trained = by_index(itertools.islice(pipeline.train(0), 12))
    for index, images in trained.items():
        for image in images:
            np.testing.assert_array_equal(image, evaluated[index][0])


def test_the_test_set_of_imagenet_is_its_validation_split(folder):
    batches = list(opened(folder).evaluation("test"))
    labels = np.concatenate([batch.label[batch.weight == 1] for batch in batches])
    assert sorted(labels) == list(range(9))


def test_worker_processes_change_nothing(folder):
    absl.flags.FLAGS.unparse_flags()  # as in a program that is not started by absl
    expected = list(itertools.islice(opened(folder, noise=0.5).train(3), 5))
    found = list(itertools.islice(opened(folder, noise=0.5, workers=2).train(3), 5))
    for one, other in zip(expected, found, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_process_reads_without_tensorflow_and_its_workers_end_when_it_is_killed(folder, tmp_path):
    program = f"""
import dataclasses, multiprocessing, signal, sys
from pathlib import Path
from experiments.data import open_data
from experiments.data.config import DataConfig
if __name__ == "__main__":
    for name in ("tensorflow", "tensorflow_datasets", "grain"):
        assert name not in sys.modules, name
    config = DataConfig(name="imagenet", folder=Path({str(folder)!r}), image_size=16)
    here = {{"seed": 0, "batch_size": 4, "process_index": 0, "process_count": 1}}
    next(open_data(config, **here).train(0))
    assert "grain" in sys.modules and "tensorflow" not in sys.modules
    batches = open_data(dataclasses.replace(config, workers=1), **here).train(0)
    next(batches)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    signal.pause()
"""
    (tmp_path / "program.py").write_text(program)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(tmp_path / "program.py")]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        (worker,) = map(int, process.stdout.readline().split())
        process.kill()
        try:
            process.communicate(timeout=30)  # the worker shares the pipe, which ends when both are gone
        except subprocess.TimeoutExpired:
            os.kill(worker, signal.SIGKILL)
            pytest.fail("the worker outlived its process by 30 seconds")


# Single images


def gradient(width, height):
    """Red grows from left to right, green from top to bottom."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 9)], -1).round().astype(np.uint8))


def test_random_boxes_have_the_published_areas_and_shapes():
    rng = np.random.default_rng(0)
    boxes = np.array([random_box(rng, 500, 375) for _ in range(4000)])
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    assert boxes.min() >= 0 and boxes[:, 2].max() <= 500 and boxes[:, 3].max() <= 375
    area, ratio = width * height / (500 * 375), width / height
    assert 0.079 < area.min() < 0.1 and 0.9 < area.max() <= 1
    assert 0.74 < ratio.min() < 0.76 and 1.32 < ratio.max() < 1.35
    small = area < 0.4  # which always fit, so that nothing was thrown away
    assert abs(area[small].mean() - 0.24) < 4 * (0.32 / math.sqrt(12 * small.sum()))
    assert abs(np.log(ratio[small]).mean()) < 4 * np.log(4 / 3) / math.sqrt(3 * small.sum())
    left = boxes[small, 0] / (500 - width[small])
    assert abs(left.mean() - 0.5) < 4 / math.sqrt(12 * small.sum())


@pytest.mark.parametrize(("width", "height", "expected"), [(1000, 20, 80 / 3), (20, 1000, 80 / 3)])
def test_an_image_without_room_for_a_box_gives_its_middle(width, height, expected):
    left, upper, right, lower = random_box(np.random.default_rng(0), width, height)
    assert max(right - left, lower - upper) == pytest.approx(expected)
    assert min(right - left, lower - upper) == 20
    assert (left + right, upper + lower) == pytest.approx((width, height))


def test_centre_box_is_the_square_of_the_usual_evaluation():
    assert centre_box(512, 256) == (144, 16, 368, 240)  # the shorter side is 256 already: 224 around the centre
    assert centre_box(256, 512) == (16, 144, 240, 368)


def test_a_box_is_cut_where_it_is():
    image = cut(gradient(256, 128), (64, 32, 192, 96), 8)
    assert image.shape == (8, 8, 3) and image.dtype == np.uint8
    np.testing.assert_allclose(image[:, :, 0], np.broadcast_to(64 + 128 * (np.arange(8) + 0.5) / 8, (8, 8)), atol=1.5)
    np.testing.assert_allclose(image[:, :, 1].T, np.broadcast_to(64 + 128 * (np.arange(8) + 0.5) / 8, (8, 8)), atol=1.5)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "P"])
def test_any_file_gives_the_channels_that_are_asked_for(mode):
    file = io.BytesIO()
    gradient(20, 10).convert(mode).save(file, "PNG" if mode == "P" else "JPEG")
    assert pixels(decode(file.getvalue(), 3)).shape == (10, 20, 3)
    assert pixels(decode(file.getvalue(), 1)).shape == (10, 20, 1)


def test_resizing_keeps_every_image_whole():
    images = np.stack([pixels(gradient(32, 32)), pixels(gradient(32, 32))[::-1]])
    larger = resize_all(images, 64)
    assert larger.shape == (2, 64, 64, 3)
    np.testing.assert_allclose(larger[:, ::2, ::2], images, atol=6)
    assert resize_all(images, 32) is images
