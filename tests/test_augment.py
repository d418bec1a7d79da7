"""Random changes of images against SciPy, definitions in NumPy and cases worked by hand."""

from functools import cache, partial

import jax
import numpy as np
import pytest
from conftest import tiny_config
from scipy import ndimage

import augment
import data
import train_step
from configs import default
from model import AXIS
from settings import frozen

ALL = {"rotation": 20.0, "scale": 0.2, "shear": 0.2, "shift": 0.1, "p_flip": 0.5}
ALL |= {"blur": 1.0, "contrast": 0.5, "brightness": 30.0, "noise": 10.0, "p_erase": 0.5}

pytestmark = pytest.mark.usefixtures("strict_dtype_promotion")


def options(**changes):
    config = default.augment_config()
    config.update(changes)
    return frozen(config)


def random_images(n=6, height=12, width=13, channels=3):
    return np.random.default_rng(0).integers(0, 256, (n, height, width, channels)).astype(np.uint8)


def change(images, step=0, places=None, **changes):
    places = np.arange(len(images)) if places is None else places
    return np.asarray(jitted(options(**changes))(step, places, images))


@cache
def jitted(options):
    return jax.jit(partial(augment.augment, options, 3))


def numbers(n=1, **fixed):
    """Numbers that change nothing (0 is the middle of every range) but for these."""
    plain = dict.fromkeys(augment.Numbers._fields, 0.0) | fixed
    return augment.Numbers(*(np.full((n, 1, 1, 1), v, np.float32) for v in plain.values()))


def moved(images, numbers, **changes):
    def move(images, numbers):
        places = augment.coordinates(options(**changes), numbers, *images.shape[1:3])
        return augment.resample(images, *places)

    return np.asarray(jax.jit(move)(images, numbers))


def test_what_is_off_leaves_no_trace():
    config, batch = tiny_config(), data.make_batch(tiny_config(), "train", 0)
    assert augment.augment_batch(config, 0, batch) is batch


@pytest.mark.parametrize("key", sorted({*default.augment_config()} - {"p_unchanged"}))
def test_each_option_alone_changes_images(key):
    images = random_images()
    assert key in ALL and (change(images, **{key: ALL[key]}) != images).any()


def test_a_share_of_the_images_is_unchanged_and_the_others_as_without_it():
    images = random_images(400)
    grey_levels = {"contrast": 0.5, "brightness": 30.0}
    every = change(images, **grey_levels)
    assert (every != images).any(axis=(1, 2, 3)).all()
    for share in (0.25, 0.6):
        found = change(images, p_unchanged=share, **grey_levels)
        unchanged = (found == images).all(axis=(1, 2, 3))
        assert unchanged.mean() == pytest.approx(share, abs=0.08)  # over three deviations
        np.testing.assert_array_equal(found[~unchanged], every[~unchanged])
    np.testing.assert_array_equal(change(images, p_unchanged=1.0, **grey_levels), images)


def test_shifts_and_quarter_turns_worked_by_hand():
    images = random_images(1, 8, 8)
    down = moved(images, numbers=numbers(shift_y=1, shift_x=-1), shift=0.25)  # 2 pixels
    rows, columns = np.arange(8) + 2, np.arange(8) - 2
    np.testing.assert_array_equal(down, images[:, rows.clip(0, 7)][:, :, columns.clip(0, 7)])
    turned = moved(images, numbers=numbers(angle=1), rotation=90.0)
    np.testing.assert_array_equal(turned[0], np.rot90(images[0], -1))
    odd = random_images(2, 7, 9, 1)
    np.testing.assert_array_equal(change(odd, p_flip=1.0), odd[:, :, ::-1])
    flipped = (
        change(random_images(200, 3, 4), p_flip=0.3)[:, :, 0] == random_images(200, 3, 4)[:, :, 3]
    )
    assert flipped.all(axis=(1, 2)).mean() == pytest.approx(0.3, abs=0.1)


@pytest.mark.parametrize("height, width, channels", [(12, 13, 3), (32, 32, 1)])
def test_one_bilinear_resampling_is_scipys(height, width, channels):
    """The affine map written as a product of matrices; float64."""
    images, n = random_images(4, height, width, channels), 4
    random = np.random.default_rng(1)
    u = {name: random.uniform(-1, 1, n).astype(np.float32) for name in augment.Numbers._fields}
    shaped = augment.Numbers(*(v.reshape(n, 1, 1, 1) for v in u.values()))
    keys = {key: ALL[key] for key in augment.GEOMETRIC}
    found = moved(images, shaped, **keys)
    sides, middle = np.array([height, width]), np.array([height - 1, width - 1]) / 2
    grid = np.stack(np.mgrid[:height, :width], axis=-1) - middle
    for i in range(n):
        angle = np.deg2rad(20) * u["angle"][i]
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        lean = np.array([[1, 0], [0.2 * u["shear"][i], 1]])
        flip = -1 if u["flip"][i] < 0 else 1
        zoom = np.diag(np.exp(0.2 * np.array([u["scale_y"][i], u["scale_x"][i]])) * [1, flip])
        shift = 0.1 * np.array([u["shift_y"][i], u["shift_x"][i]])
        y, x = np.moveaxis(grid @ (turn @ lean @ zoom).T + middle + sides * shift, -1, 0)
        for c in range(channels):
            plane = images[i, :, :, c].astype(float)
            expected = ndimage.map_coordinates(plane, [y, x], order=1, mode="nearest")
            # Places are rounded to 1/256 pixel, and the matrix to 1/4096.
            error = np.abs(found[i, :, :, c] - expected)
            assert error.max() < 8 and error.mean() < 1


def test_blur_is_scipys_and_keeps_what_is_constant():
    image = random_images(1, 31, 32, 1)
    sigma = np.full((1, 1, 1, 1), 1.5, np.float32)
    found = np.asarray(augment.blur(image.astype(np.float32), sigma))[0, 8:-8, 8:-8, 0]
    expected = ndimage.gaussian_filter(image[0, :, :, 0].astype(float), 1.5, truncate=8)
    np.testing.assert_allclose(found, expected[8:-8, 8:-8], atol=2)
    plain = np.full((6, 9, 9, 1), 77, np.uint8)
    np.testing.assert_array_equal(change(plain, blur=3.0), plain)


def test_grey_levels_follow_their_definitions():
    plain = np.full((400, 4, 4, 1), 128, np.uint8)
    levels = change(plain, brightness=50.0)
    assert (np.ptp(levels, axis=(1, 2)) == 0).all() and levels.min() < 84 and levels.max() > 172
    assert levels.std() == pytest.approx(50 / 3**0.5, rel=0.1)
    two = plain + np.array([-20, 20], np.int8).astype(np.uint8)[None, None, [0, 1, 0, 1], None]
    spread = np.ptp(change(two, contrast=0.5).astype(float), axis=(1, 2)) / 40
    assert (change(two, contrast=0.5).mean(axis=(1, 2)) == 128).all()
    assert np.log(spread).std() == pytest.approx(0.5 / 3**0.5, rel=0.1)
    noise = change(np.full((400, 12, 12, 1), 128, np.uint8), noise=20.0).astype(float) - 128
    sizes = noise.std(axis=(1, 2, 3))
    assert sizes.max() == pytest.approx(20, rel=0.1) and sizes.mean() == pytest.approx(10, rel=0.1)
    normal = noise[sizes > 3] / sizes[sizes > 3, None, None, None]
    assert (normal**4).mean() == pytest.approx(3, abs=0.15)
    assert abs(noise.mean()) < 0.2


def test_what_is_erased_is_a_rectangle_of_the_mean_colour():
    images = random_images(300, 30, 40)
    found = change(images, p_erase=0.6)
    changed = (found != images).any(axis=-1)
    assert changed.any(axis=(1, 2)).mean() == pytest.approx(0.6, abs=0.1)
    mean = np.round(images.mean(axis=(1, 2)))
    areas = []
    for i in np.flatnonzero(changed.any(axis=(1, 2))):
        rows, columns = (np.flatnonzero(changed[i].any(axis=axis)) for axis in (1, 0))
        inside = found[i, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert (np.abs(inside - mean[i]) <= 1).all()
        areas.append(inside.shape[0] * inside.shape[1] / 1200)
    assert 0.01 < min(areas) < 0.05 and 0.17 < max(areas) < 0.22


def test_an_image_depends_on_seed_step_and_place_alone():
    images = random_images(8, 33, 33)
    whole = change(images, step=5, **ALL)
    np.testing.assert_array_equal(whole, change(images, step=5, **ALL))
    for places in (np.arange(4), np.arange(4, 8), np.array([6, 1])):
        np.testing.assert_array_equal(change(images[places], 5, places, **ALL), whole[places])
    assert (whole != change(images, step=6, **ALL)).any(axis=(1, 2, 3)).all()
    same = change(np.repeat(images[:1], 8, axis=0), step=5, **ALL)
    assert len(np.unique(same, axis=0)) == 8


def test_devices_change_their_own_part_of_the_batch():
    """As the training step does: in a scan of two steps under pmap, on 1, 2 and 4 devices."""
    config = tiny_config()
    config.augment.update(ALL | {"p_unchanged": 0.4})
    config = frozen(config)
    batches = [data.make_batch(config, "train", step) for step in range(2)]

    def steps(batches):
        def one(step, batch):
            return step + 1, augment.augment_batch(config, step, batch)

        return jax.lax.scan(one, np.int32(0), batches)[1]

    found = {}
    for devices in (1, 2, 4):
        changed = jax.pmap(steps, AXIS)(train_step.stack_batches(batches, devices))
        found[devices] = [np.concatenate(np.asarray(side), axis=1) for side in changed[:2]]
    np.testing.assert_array_equal(found[2], found[1])
    np.testing.assert_array_equal(found[4], found[1])
    before = np.stack([np.stack([batch[side] for batch in batches]) for side in (0, 1)])
    unchanged = (before == np.stack(found[1])).all(axis=(3, 4, 5))
    assert 3 < unchanged.sum() < 24  # of 32
    for side, changed in enumerate(found[1]):
        for step, batch in enumerate(batches):
            places = 2 * np.arange(8) + side
            alone = augment.augment(config.augment, config.seed, step, places, batch[side])
            np.testing.assert_allclose(changed[step], alone, atol=1)  # two programs
