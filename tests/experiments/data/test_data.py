"""The digits; and what every pipeline promises, in memory or streamed, on any number of processes."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets

from experiments.common.errors import UserError
from experiments.data import DATA_SETS, Batch, open_data
from experiments.data.config import DataConfig
from experiments.data.draws import label_offsets
from experiments.data.memory import read
from tests.experiments.data import tiny_data

ONE = {"process_index": 0, "process_count": 1}


# The digits


def digits(noise=0.3, split_seed=3):
    config = DataConfig(name="digits", validation=0.6, train_size=400, noise=noise, split_seed=split_seed)
    return open_data(config, seed=5, batch_size=50, **ONE).parts


def rows(images):
    return {row.tobytes() for row in images.image}


def test_parts_are_disjoint_and_complete():
    parts = digits()
    assert {name: len(part.label) for name, part in parts.items()} == {"train": 400, "validation": 600, "test": 797}
    assert len(set.union(*map(rows, parts.values()))) == 1797  # scikit-learn's images are all different
    assert parts["train"].image.min() == 0 and parts["train"].image.max() == 16


def test_splits_share_the_test_set_only():
    one, two = digits(split_seed=0), digits(split_seed=1)
    np.testing.assert_array_equal(one["test"].image, two["test"].image)
    assert rows(one["train"]) != rows(two["train"])


def test_noise_touches_exactly_its_share_of_the_training_labels_and_nothing_else():
    clean, noisy = digits(noise=0.0), digits()
    np.testing.assert_array_equal(clean["train"].image, noisy["train"].image)
    assert np.sum(clean["train"].label != noisy["train"].label) == 120
    for part in ("validation", "test"):
        np.testing.assert_array_equal(clean[part].label, noisy[part].label)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 1.0])
def test_noise_is_exact_and_symmetric(fraction):
    offsets = label_offsets(np.random.default_rng(0), 90_000, fraction, 10)
    wrong = offsets != 0
    assert wrong.sum() == fraction * len(offsets)
    assert offsets.min() >= 0 and offsets.max() <= 9 and offsets.dtype == np.int32
    counts = np.bincount(offsets[wrong], minlength=10)[1:]
    np.testing.assert_allclose(counts, wrong.sum() / 9, atol=5 * np.sqrt(wrong.sum() / 9))


def test_noise_of_few_classes_and_odd_sizes():
    offsets = label_offsets(np.random.default_rng(0), 7, 0.5, 2)
    assert sorted(offsets) == [0, 0, 0, 1, 1, 1, 1]  # round(3.5) is 4, as Python rounds


# What every pipeline promises


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """41 training images and 13 test images of either kind."""
    folder = tmp_path_factory.mktemp("tfds")
    tiny_data.prepare(folder, "cifar10", {"train": 41, "test": 13}, "PNG")
    tiny_data.prepare(folder, "pets", {"train": 41, "test": 13}, "JPEG")
    return folder


@pytest.fixture(params=["cifar10", "pets"])
def config(request, folder) -> DataConfig:
    """Of the data set in memory and of the one on disk."""
    return DataConfig(name=request.param, folder=folder, noise=0.3, image_size=16)


def take(pipeline, steps, start=0):
    return list(itertools.islice(pipeline.train(start), steps))


def assert_equal(some, others):
    for one, other in zip(some, others, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype


def test_batches_have_the_promised_shapes_and_types(config):
    pipeline = open_data(config, seed=0, batch_size=8, **ONE)
    assert (pipeline.num_train, pipeline.steps_per_epoch) == (37, 4)
    classes = DATA_SETS[config.name].num_classes
    assert pipeline.data_set.image_shape == (16, 16, 3)
    for batch in [*take(pipeline, 2), *pipeline.evaluation("validation")]:
        assert [(a.shape, a.dtype) for a in batch] == [
            ((8, 16, 16, 3), np.uint8),
            ((8,), np.int32),
            ((8,), np.int32),
            ((8,), np.float32),
        ]
        assert 0 <= batch.label.min() and batch.label.max() < classes


@pytest.mark.parametrize("processes", [2, 4])
def test_the_batch_of_all_processes_is_that_of_one(config, processes):
    one = take(open_data(config, seed=0, batch_size=8, **ONE), 6)
    shares = [
        take(open_data(config, seed=0, batch_size=8, process_index=index, process_count=processes), 6)
        for index in range(processes)
    ]
    together = [Batch(*map(np.concatenate, zip(*step, strict=True))) for step in zip(*shares, strict=True)]
    assert_equal(one, together)  # one block after the other


def test_start_step_is_the_same_as_skipping(config):
    pipeline = open_data(config, seed=0, batch_size=8, **ONE)
    steps = take(pipeline, 14)  # 4 in an epoch
    for start in (0, 3, 4, 9):
        assert_equal(steps[start:], take(pipeline, 14 - start, start))


def test_an_epoch_is_a_new_order_of_different_examples(config):
    pipeline = open_data(config, seed=0, batch_size=8, **ONE)
    index = np.stack([batch.index for batch in take(pipeline, 12)]).reshape(3, 32)
    assert all(len(set(epoch)) == 32 for epoch in index)
    assert len({tuple(epoch) for epoch in index}) == 3
    assert set(index.flat) == set(range(37))  # what one epoch leaves out is in another one
    other = [batch.index for batch in take(open_data(config, seed=1, batch_size=8, **ONE), 12)]
    assert not {tuple(epoch) for epoch in np.stack(other).reshape(3, 32)} & {tuple(epoch) for epoch in index}


def test_the_batch_size_only_cuts_one_order_into_pieces(config):
    small, large = (open_data(config, seed=0, batch_size=size, **ONE) for size in (2, 4))
    halves = take(small, 4)
    assert_equal(take(large, 2), [Batch(*map(np.concatenate, zip(*halves[i : i + 2], strict=True))) for i in (0, 2)])


@pytest.mark.parametrize(("part", "size"), [("train", 37), ("validation", 4), ("test", 13)])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_evaluation_counts_every_example_once(config, part, size, processes):
    shares = [
        list(open_data(config, seed=0, batch_size=8, process_index=i, process_count=processes).evaluation(part))
        for i in range(processes)
    ]
    assert {len(share) for share in shares} == {-(-size // 8)}
    assert {batch.image.shape for share in shares for batch in share} == {(8 // processes, 16, 16, 3)}
    counted = [batch.index[batch.weight == 1] for share in shares for batch in share]
    assert sorted(np.concatenate(counted)) == list(range(size))
    assert sum(batch.weight.sum() for share in shares for batch in share) == size


def everything(pipeline, part):
    """Images, labels and indices of one part, in its order."""
    batches = [Batch(*(a[batch.weight == 1] for a in batch)) for batch in pipeline.evaluation(part)]
    return Batch(*map(np.concatenate, zip(*batches, strict=True)))


def test_noise_is_on_training_labels_only_and_training_sees_the_same(config):
    clean = open_data(DataConfig(name=config.name, folder=config.folder, image_size=16), seed=0, batch_size=8, **ONE)
    noisy = open_data(config, seed=0, batch_size=8, **ONE)
    labels = everything(noisy, "train").label
    assert np.sum(everything(clean, "train").label != labels) == round(0.3 * 37)
    for part in ("validation", "test"):
        np.testing.assert_array_equal(everything(clean, part).label, everything(noisy, part).label)
    for batch in take(noisy, 4):
        np.testing.assert_array_equal(batch.label, labels[batch.index])
    other = open_data(config, seed=1, batch_size=8, **ONE)
    assert (everything(other, "train").label != labels).any()


def test_split_is_drawn_by_its_seed_alone(config):
    def images(part, seed=0, **changes):
        changed = DataConfig(name=config.name, folder=config.folder, image_size=16, **changes)
        return {image.tobytes() for image in everything(open_data(changed, seed=seed, batch_size=4, **ONE), part).image}

    train, validation, test = map(images, ("train", "validation", "test"))
    assert (len(train), len(validation)) == (37, 4)
    assert not train & validation
    assert images("validation", seed=1) == validation
    assert images("validation", split_seed=1) != validation
    assert images("train", train_size=20) < train and len(images("train", train_size=20)) == 20
    assert images("validation", train_size=20) == validation
    assert images("test", split_seed=1) == test
    assert images("train", validation=0.0) == train | validation


def test_without_validation_images_there_are_no_batches_of_them(config):
    changed = DataConfig(name=config.name, folder=config.folder, validation=0.0)
    assert list(open_data(changed, seed=0, batch_size=4, **ONE).evaluation("validation")) == []


# Data sets in memory


def test_records_are_read_with_their_labels(folder):
    pipeline = open_data(DataConfig(name="cifar10", folder=folder), seed=0, batch_size=4, **ONE)
    seen = np.concatenate([everything(pipeline, part).image for part in ("train", "validation")])
    labels = np.concatenate([everything(pipeline, part).label for part in ("train", "validation")])
    assert seen.shape == (41, 32, 32, 3)
    assert sorted(seen[:, 0, 0, 0]) == list(range(41))  # the i-th image is constant, of value i
    np.testing.assert_array_equal(labels, seen[:, 0, 0, 0] % 10)


def test_digits_are_those_of_scikit_learn():
    pipeline = open_data(DataConfig(name="digits", split_seed=3), seed=5, batch_size=50, **ONE)
    assert (pipeline.num_train, pipeline.data_set.image_shape) == (900, (8, 8, 1))
    found = [everything(pipeline, part) for part in ("train", "validation", "test")]
    images, labels = (np.concatenate([getattr(part, name) for part in found]) for name in ("image", "label"))
    expected, true = sklearn.datasets.load_digits(return_X_y=True)
    label_of = {row.astype(np.uint8).tobytes(): label for row, label in zip(expected, true, strict=True)}
    assert [label_of[image.tobytes()] for image in images] == labels.tolist()
    pixels = (images / 255 - pipeline.data_set.mean) / pipeline.data_set.std
    np.testing.assert_allclose(pixels, images / 16, rtol=1e-6)


def test_the_order_of_an_epoch_is_that_of_its_batches():
    pipeline: Any = open_data(DataConfig(name="digits", validation=0.95), seed=5, batch_size=12, **ONE)
    assert pipeline.order(1).shape == (4, 12) and len(np.unique(pipeline.order(1))) == 48
    np.testing.assert_array_equal(pipeline.order(1), [batch.index for batch in take(pipeline, 4, start=4)])
    assert (pipeline.order(0) != pipeline.order(1)).any()


def test_grey_images_are_resized_too():
    pipeline = open_data(DataConfig(name="digits", image_size=20), seed=0, batch_size=4, **ONE)
    assert next(pipeline.train(0)).image.shape == (4, 20, 20, 1)


# What the user can put right


def refused(match, config, batch_size=8, processes=1):
    with pytest.raises(UserError, match=match):
        open_data(config, seed=0, batch_size=batch_size, process_index=0, process_count=processes)


def test_sizes_that_do_not_fit_are_refused(config):
    refused("batch_size=38 is more than the 37 training images", config, batch_size=38)
    refused("multiple of the number of processes, got 8 with 3", config, processes=3)
    too_many = DataConfig(name=config.name, folder=config.folder, train_size=38)
    refused(r"train_size=38 is not possible: of the 41 .* leaves 37", too_many)


def test_options_that_would_have_no_effect_are_refused(folder):
    refused("data.workers must be 0, got 2", DataConfig(name="cifar10", folder=folder, workers=2))
    refused("no data set 'mnist': known are digits, ", DataConfig(name="mnist"))  # pyright: ignore


def test_a_data_set_that_is_not_prepared_names_the_command(tmp_path, monkeypatch):
    refused(rf"prepare --data food101 --folder {tmp_path}", DataConfig(name="food101", folder=tmp_path))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "there"))
    refused(rf"cifar100 is not in {tmp_path}/there/cifar100/3\.0\.2", DataConfig(name="cifar100"))


@pytest.mark.parametrize("name", ["cifar10", "pets"])
def test_a_data_set_of_another_kind_is_refused(tmp_path, name):
    config = DataConfig(name=name, folder=tmp_path)
    tiny_data.prepare(tmp_path, name, {"train": 4}, "PNG" if name == "cifar10" else "JPEG", changed_classes=1)
    refused("no split 'test'", config)
    info = next(tmp_path.rglob("dataset_info.json"))
    found = json.loads(info.read_text())
    found["splits"].append(found["splits"][0] | {"name": "test"})
    info.write_text(json.dumps(found))
    refused(r"has (11|38) classes, expected (10|37)", config)
    info.write_text(json.dumps(found | {"fileFormat": "tfrecord"}))
    refused("is in the format tfrecord, not array_record: prepare it with", config)
    info.write_text("{")
    refused("is damaged", config)


def test_damaged_records_in_memory_are_refused(tmp_path):
    tiny_data.prepare(tmp_path, "cifar10", {"train": 40, "test": 4}, "PNG")
    (records,) = tmp_path.rglob("*train.array_record*")
    records.write_bytes(records.read_bytes()[:-100])
    refused("split 'train', cannot be read", DataConfig(name="cifar10", folder=tmp_path))


def test_of_pacs_the_split_seed_holds_a_domain_out(tmp_path):
    """The value of an image tells its domain and its label."""
    tiny_data.write_pacs(tmp_path)
    for seed in (2, 6):
        config = DataConfig(name="pacs", folder=tmp_path, validation=0.2, split_seed=seed, augment="none")
        found = open_data(config, seed=0, batch_size=5, process_index=0, process_count=1)
        seen = {}
        for part in ("train", "validation", "test"):
            batches = list(found.evaluation(part))
            value = np.concatenate([batch.image[batch.weight > 0, 0, 0, 0] for batch in batches])
            label = np.concatenate([batch.label[batch.weight > 0] for batch in batches])
            np.testing.assert_array_equal(value % 10, label)
            seen[part] = value // 10
        assert {name: len(domains) for name, domains in seen.items()} == {"train": 84, "validation": 21, "test": 35}
        assert {*seen["test"]} == {2} and {*seen["train"]} == {*seen["validation"]} == {0, 1, 3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": np.zeros((140, 32, 32, 3), np.uint8)}, r"x is \(140, 32, 32, 3\) uint8, not \(140, 64, 64, 3\) uint8"),
        ({"domain": np.zeros(140, np.uint8)}, r"has the domains \[0\], expected \[0 1 2 3\]"),
        ({"y": np.full(140, 7, np.uint8)}, "has the label 7, expected 0 ... 6"),
    ],
)
def test_another_archive_than_that_of_pacs_is_refused(tmp_path, changes, message):
    config = DataConfig(name="pacs", folder=tmp_path)
    with pytest.raises(UserError, match="there is no .*pacs_64.npz: put an archive there"):
        read(config)
    path = tiny_data.write_pacs(tmp_path, **changes)
    with pytest.raises(UserError, match=message):
        read(config)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read"):
        read(config)
