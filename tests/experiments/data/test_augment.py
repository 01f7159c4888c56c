"""Augmentation: PIL's pixels, the published probabilities, and nothing that depends on the place in the batch."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.datasets
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image, ImageEnhance, ImageOps

from experiments.common.errors import UserError
from experiments.data.augment import NAMES, basic, build, operations, policies

SHAPE = (32, 32, 3)
FILL = (125, 123, 114)
BLENDS = ("Color", "Contrast", "Brightness", "Sharpness")
STEPS = [*range(0, 31, 3), 14]
"""Of 30: the magnitudes of AutoAugment and RandAugment."""
AMOUNTS = {
    "Identity": [0],
    "AutoContrast": [0],
    "Equalize": [0],
    "Invert": [0],
    "Rotate": [sign * degrees for degrees in STEPS for sign in (1, -1)],
    "ShearX": [sign * percent / 100 for percent in STEPS for sign in (1, -1)],
    "ShearY": [sign * percent / 100 for percent in STEPS for sign in (1, -1)],
    "TranslateX": [sign * step / 96 for step in STEPS for sign in (1, -1)],
    "TranslateY": [sign * step / 96 for step in STEPS for sign in (1, -1)],
    "Posterize": range(1, 9),
    "Solarize": [0, 1, 51.2, 128, 205, 255, 256],
    **dict.fromkeys(BLENDS, [0, 0.1, 0.46, 0.58, 1, 1.18, 1.42, 1.9]),
}


def pil(name, amount, image, fill):
    """The same operation by Pillow."""
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    colour = fill[0] if image.shape[2] == 1 else tuple(fill)
    moved = lambda *matrix: picture.transform(picture.size, Image.Transform.AFFINE, matrix, fillcolor=colour)  # noqa: E731
    height, width, _ = image.shape
    if name in BLENDS:
        picture = getattr(ImageEnhance, name)(picture).enhance(amount)
    elif name == "Rotate":
        picture = picture.rotate(amount, fillcolor=colour)
    elif name == "ShearX":
        picture = moved(1, amount, 0, 0, 1, 0)
    elif name == "ShearY":
        picture = moved(1, 0, 0, amount, 1, 0)
    elif name == "TranslateX":
        picture = moved(1, 0, amount * width, 0, 1, 0)
    elif name == "TranslateY":
        picture = moved(1, 0, 0, 0, 1, amount * height)
    elif name == "Posterize":
        picture = ImageOps.posterize(picture, amount)
    elif name == "Solarize":
        picture = ImageOps.solarize(picture, amount)
    elif name != "Identity":
        picture = getattr(ImageOps, name.lower())(picture)
    return np.asarray(picture).reshape(image.shape)


@functools.cache
def images(shape):
    """Photographs, noise, and the cases in which PIL's tables are special: flat, dark, few levels."""
    height, width, channels = shape
    rng = np.random.default_rng(0)
    photos = sklearn.datasets.load_sample_images().images
    corners = [(0, 0), (100, 200), (250, 400), (290, 80)]
    patches = [photo[y : y + 4 * height : 4, x : x + 4 * width : 4] for photo in photos for y, x in corners]
    noise = rng.integers(0, 256, (height, width, 3))
    dark = rng.integers(3, 40, (height, width, 3))
    flat = np.broadcast_to([7, 130, 255], (height, width, 3))
    two_levels = np.where(rng.random((height, width, 1)) < 0.1, 255, 4) * np.ones(3, int)
    rare = np.where(rng.random((height, width, 3)) < 0.4, noise, 200)  # more than 255 equalized levels before clipping
    stack = np.stack([*patches, noise, dark, flat, two_levels, rare])
    return stack[..., :channels].astype(np.uint8)


def stacked(cases, shape):
    rows = [operations.operation(name, amount, shape) for name, amount in cases]
    return operations.Operation(*map(np.stack, zip(*rows, strict=True)))


def whole_quotients(originals):
    """Where AutoContrast need not round, and its result there."""
    lowest, highest = (extreme(originals.astype(int), axis=(1, 2), keepdims=True) for extreme in (np.min, np.max))
    stretched, rest = np.divmod((originals - lowest) * 255, np.maximum(highest - lowest, 1))
    return rest == 0, np.where(highest > lowest, stretched, originals)


@pytest.mark.parametrize("shape", [SHAPE, (20, 36, 3), (28, 28, 1), (8, 8, 1)])
def test_operations_equal_pil(shape):
    cases = [(name, amount) for name, amounts in AMOUNTS.items() for amount in amounts]
    originals, fill = images(shape), FILL[: shape[2]]
    of_all = jax.vmap(jax.vmap(operations.apply, (None, 0, None)), (0, None, None))
    results = jax.jit(of_all)(stacked(cases, shape), originals, jnp.array(fill, jnp.uint8))
    assert results.dtype == jnp.uint8
    for (name, amount), ours in zip(cases, np.asarray(results).astype(int), strict=True):
        theirs = np.stack([pil(name, amount, image, fill) for image in originals]).astype(int)
        if name in BLENDS:  # fused multiply-add
            assert np.abs(ours - theirs).max() <= 1 and np.mean(ours != theirs) < 1e-4, (name, amount)
        elif name == "AutoContrast":
            whole, exact = whole_quotients(originals)
            np.testing.assert_array_equal(ours[~whole], theirs[~whole])
            np.testing.assert_array_equal(ours[whole], exact[whole])
            assert set(np.unique((ours - theirs)[whole])) <= {0, 1}  # PIL's float64 loses a level
        else:
            np.testing.assert_array_equal(ours, theirs, err_msg=f"{name} {amount}")


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def assert_frequencies(counts, total, probability):
    sigma = np.sqrt(total * probability * (1 - probability))
    np.testing.assert_array_less(np.abs(counts - total * probability), 5 * sigma + 1e-9)


TABLE_7 = """
Invert .1 7 Contrast .2 6, Rotate .7 2 TranslateX .3 9, Sharpness .8 1 Sharpness .9 3, ShearY .5 8 TranslateY .7 9,
AutoContrast .5 8 Equalize .9 2, ShearY .2 7 Posterize .3 7, Color .4 3 Brightness .6 7, Sharpness .3 9 Brightness .7 9,
Equalize .6 5 Equalize .5 1, Contrast .6 7 Sharpness .6 5, Color .7 7 TranslateX .5 8, Equalize .3 7 AutoContrast .4 8,
TranslateY .4 3 Sharpness .2 6, Brightness .9 6 Color .2 8, Solarize .5 2 Invert .0 3, Equalize .2 0 AutoContrast .6 0,
Equalize .2 8 Equalize .6 4, Color .9 9 Equalize .6 6, AutoContrast .8 4 Solarize .2 8, Brightness .1 3 Color .7 0,
Solarize .4 5 AutoContrast .9 3, TranslateY .9 9 TranslateY .7 9, AutoContrast .9 2 Solarize .8 3,
Equalize .8 8 Invert .1 3, TranslateY .7 9 AutoContrast .9 1"""
"""The policy for CIFAR-10 of Cubuk et al. (2018): operation, probability, magnitude, twice each."""


def test_autoaugment_is_the_published_table():
    rows = [row.split() for row in TABLE_7.split(",")]
    read = [tuple((row[i], float(row[i + 1]), int(row[i + 2])) for i in (0, 3)) for row in rows]
    assert policies.AUTOAUGMENT == tuple(read) and len(read) == 25


def draws(policy):
    return map(np.asarray, jax.jit(jax.vmap(lambda key: policies.choose(key, policy)))(keys(40000)))


def test_randaugment_draws_each_pair_of_operations_equally_often():
    chosen, variants = draws(policies.randaugment(SHAPE))
    assert_frequencies(np.bincount(chosen @ np.array([14, 1]), minlength=196), 40000, 1 / 196)
    assert np.min(variants) == 1
    assert_frequencies(np.sum(variants == 2, axis=(0, 2)), 40000, 1 / 2)


def test_autoaugment_applies_each_operation_with_its_probability():
    chosen, variants = draws(policies.autoaugment(SHAPE))
    assert_frequencies(np.bincount(chosen[:, 0], minlength=25), 40000, 1 / 25)
    for i, pair in enumerate(policies.AUTOAUGMENT):
        those = variants[chosen[:, 0] == i, 0]
        both = np.mean([probability for _, probability, _ in pair])
        for step, (_, probability, _) in enumerate(pair):
            assert_frequencies(np.sum(those[:, step] > 0), len(those), probability)
        assert_frequencies(np.sum(those == 2), 2 * len(those), both / 2)


RANDAUGMENT_AMOUNTS = {
    **{"Rotate": 14, "ShearX": 0.14, "ShearY": 0.14, "TranslateX": 5 / 32, "TranslateY": 5 / 32},
    **{"Posterize": 7, "Solarize": 137, "Identity": 0, "Equalize": 0},
}
AUTOAUGMENT_AMOUNTS = {
    **{("Rotate", 2): 6, ("ShearY", 7): 0.21, ("ShearY", 8): 0.24, ("Posterize", 7): 2},
    **{("TranslateX", 8): 8 / 32, ("TranslateX", 9): 9 / 32, ("TranslateY", 3): 3 / 32, ("TranslateY", 9): 9 / 32},
    **{("Solarize", 2): 205, ("Solarize", 3): 180, ("Solarize", 5): 128, ("Solarize", 8): 52},
    **{(name, magnitude): 0 for name in ("Equalize", "Invert") for magnitude in range(10)},
}


def exact_steps(name, chosen, variants):
    """Which of PIL's operations an image goes through; None for those that are not PIL's to the last bit."""
    for draw, choice in enumerate(chosen):
        for step, variant in enumerate(variants[draw]):
            if name == "randaugment":
                operation = policies.RANDAUGMENT[choice]
                amount = RANDAUGMENT_AMOUNTS.get(operation)
            else:
                operation, _, magnitude = policies.AUTOAUGMENT[choice][step]
                amount = AUTOAUGMENT_AMOUNTS.get((operation, magnitude))
            if variant:
                directed = operation in ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
                yield operation, None if amount is None else -amount if variant == 2 and directed else amount


@pytest.mark.parametrize("name", ["randaugment", "autoaugment"])
def test_policies_equal_pil_step_by_step(name):
    policy = getattr(policies, name)(SHAPE)
    several, image = keys(300), images(SHAPE)[1]
    augment = policies.augmentation(policy, jnp.array(FILL, jnp.uint8))
    results = np.asarray(jax.jit(jax.vmap(augment, (0, None)))(several, image))
    choices = map(np.asarray, jax.jit(jax.vmap(lambda key: policies.choose(key, policy)))(several))
    seen = set()
    for result, chosen, variants in zip(results, *choices, strict=True):
        steps = list(exact_steps(name, chosen, variants))
        if all(amount is not None for _, amount in steps):
            expected = functools.reduce(lambda image, step: pil(*step, image, FILL), steps, image)
            np.testing.assert_array_equal(result, expected, err_msg=str(steps))
            seen |= set(steps)
    assert len(seen) >= 14  # directions counted


def test_enhancements_have_the_published_factors():
    table = policies.autoaugment(SHAPE).operations
    for i, pair in enumerate(policies.AUTOAUGMENT):
        for step, (name, _, magnitude) in enumerate(pair):
            expected = 0.1 + 0.18 * magnitude if name in BLENDS else 1
            np.testing.assert_allclose(table.factor[i, step], [1, expected, expected], rtol=1e-6)
    table = policies.randaugment(SHAPE).operations
    for i, name in enumerate(policies.RANDAUGMENT):
        np.testing.assert_allclose(table.factor[i, 0], [1, 1.42, 0.58] if name in BLENDS else 1, rtol=1e-6)


def test_magnitude_zero_changes_nothing():
    table = policies.randaugment(SHAPE, magnitude=0).operations
    fixed = [i for i, name in enumerate(policies.RANDAUGMENT) if name not in ("AutoContrast", "Equalize")]
    for leaf, neutral in zip(table, operations.Operation(), strict=True):
        if leaf is not table.blend:
            assert np.all(leaf[fixed] == neutral)


def test_crops_are_uniform():
    rows, columns = np.mgrid[:32, :32].astype(np.uint8)
    image = np.stack([rows, columns, np.full_like(rows, 255)], axis=2)
    crops = np.asarray(jax.jit(jax.vmap(basic.random_crop, (0, None)))(keys(8100), image))
    offsets = crops[:, 16, 16, :2].astype(int) - 12
    assert_frequencies(np.bincount(offsets @ np.array([9, 1]), minlength=81), 8100, 1 / 81)
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    for crop, (top, left) in zip(crops[:100], offsets[:100], strict=True):
        np.testing.assert_array_equal(crop, padded[top : top + 32, left : left + 32])


def test_flips_are_even():
    image = images(SHAPE)[0]
    flip = jax.jit(build("basic", SHAPE, crop=False))
    results = np.asarray(flip(keys(1000), np.broadcast_to(image, (1000, *SHAPE))))
    mirrored = np.all(results == image[:, ::-1], axis=(1, 2, 3))
    assert np.all(mirrored | np.all(results == image, axis=(1, 2, 3)))
    assert_frequencies(mirrored.sum(), 1000, 1 / 2)


def test_cutout_is_a_square_with_its_centre_anywhere():
    cut = jax.vmap(lambda key: basic.cutout(key, jnp.zeros(SHAPE, jnp.uint8), jnp.array([9, 8, 7], jnp.uint8)))
    results = np.asarray(jax.jit(cut)(keys(6400)))
    inside = results[..., 0] == 9
    np.testing.assert_array_equal(results, inside[..., None] * np.array([9, 8, 7]))
    rows, columns = inside.any(axis=2), inside.any(axis=1)
    np.testing.assert_array_equal(inside, rows[:, :, None] & columns[:, None, :])
    squares = np.array([[max(0, c - 8) <= i < c + 8 for i in range(32)] for c in range(32)])
    for sides in (rows, columns):
        centres = (sides[:, None] == squares[None]).all(axis=2)
        assert np.all(centres.sum(axis=1) == 1)
        assert_frequencies(centres.sum(axis=0), 6400, 1 / 32)


@pytest.mark.parametrize("shape, margin, size", [((28, 28, 1), 4, 14), ((8, 8, 1), 1, 4)])
def test_margin_and_square_go_with_the_size(shape, margin, size):
    image = np.arange(1, shape[0] + 1, dtype=np.uint8)[:, None, None] * np.ones(shape, np.uint8)
    crops = jax.jit(jax.vmap(basic.random_crop, (0, None)))(keys(300), image)
    assert np.max(np.sum(crops[:, :, shape[1] // 2] == 0, axis=(1, 2))) == margin
    holes = jax.jit(jax.vmap(basic.cutout, (0, None, None)))(keys(300), image, jnp.zeros(1, jnp.uint8)) == 0
    assert np.max(np.sum(holes, axis=(1, 2, 3))) == size**2


@pytest.mark.parametrize("name", NAMES)
def test_image_depends_on_its_key_alone(name):
    """Not on the place in the batch, nor on the device that it is on; and devices need not talk to each other."""
    batch, several = np.concatenate([images(SHAPE)] * 2)[:16], keys(16)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec("data"))
    augment = build(name, SHAPE, fill=FILL)
    program = jax.jit(augment, in_shardings=split, out_shardings=split).lower(several, batch).compile()

    def augmented(keys, batch):
        return np.asarray(program(jax.device_put(keys, split), jax.device_put(batch, split)))

    once = augmented(several, batch)
    order = np.random.default_rng(0).permutation(16)
    np.testing.assert_array_equal(augmented(several[order], batch[order]), once[order])
    assert not re.search(r"all-|collective|reduce-scatter", program.as_text())
    if name in ("basic", "cutout"):  # on one device; the policies take long to compile
        np.testing.assert_array_equal(jax.jit(augment)(several, batch), once)
    if name == "none":
        np.testing.assert_array_equal(once, batch)
    else:
        assert np.any(once != batch, axis=(1, 2, 3)).sum() > 8
        assert np.any(once != augmented(keys(16, seed=1), batch), axis=(1, 2, 3)).sum() > 8
    if name not in ("none", "basic", "randaugment_light"):  # the square is the last step; a quarter of it is inside
        assert np.all(np.sum(np.all(once == np.array(FILL), axis=3), axis=(1, 2)) >= 64)


def test_bad_input_is_refused():
    with pytest.raises(UserError, match="one of none, basic, .*, got 'autoaugmnt'"):
        build("autoaugmnt", SHAPE)
    with pytest.raises(UserError, match=r"for each of 1 channels, got \(1, 2, 3\)"):
        build("cutout", (28, 28, 1), fill=(1, 2, 3))
    with pytest.raises(UserError, match=r"0 \.\.\. 255 .* got \(300,\)"):
        build("cutout", (28, 28, 1), fill=(300,))
    with pytest.raises(UserError, match="randaugment takes images of 1 or 3 channels, got 4"):
        build("randaugment", (32, 32, 4))
    with pytest.raises(UserError, match=r"uint8 images of shape \(32, 32, 3\), got float32 \(32, 32, 3\)"):
        build("basic", SHAPE)(keys(2), jnp.zeros((2, *SHAPE)))
