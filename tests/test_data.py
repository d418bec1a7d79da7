import hashlib
import importlib
import time
from collections import Counter

import numpy as np
import pytest

import data


def literal_image(shape, size, row, column):
    """One image drawn pixel by pixel from the words of the definition."""
    image = np.zeros((32, 32), np.uint8)
    for i in range(32):
        for j in range(32):
            if shape == "circle":
                lit = (i - row) ** 2 + (j - column) ** 2 < size**2
            else:
                lit = row - size <= i <= row + size - 1 and column - size <= j <= column + size - 1
            image[i, j] = 255 if lit else 0
    return image


def literal_space(placement="margin"):
    """{bytes of an image: (shape, probability)}: size uniform, then centre uniform."""
    space = {}
    for shape, low in (("circle", 4), ("square", 2)):
        for size in range(low, 15):
            if placement == "margin":
                places = [15, 16]
            else:  # every centre around which all lit pixels are inside the image
                before, behind = (size, size - 1) if shape == "square" else (size - 1, size - 1)
                places = [c for c in range(32) if c - before >= 0 and c + behind <= 31]
            for row in places:
                for column in places:
                    image = literal_image(shape, size, row, column)
                    probability = 0.5 / (15 - low) / len(places) ** 2
                    space[image.tobytes()] = (shape, probability)
    return space


@pytest.fixture
def everywhere(tiny):
    tiny.data.update({"placement": "inside", "split": "disjoint"})
    return tiny


def test_enumerated_images_are_those_of_the_definition(tiny):
    images, shapes, probabilities = data.enumerate_images(tiny.data, "test")
    assert images.dtype == np.uint8 and images.shape == (96, 32, 32, 1)
    names = [tiny.data.shapes[shape] for shape in shapes]
    found = {x.tobytes(): (n, p) for x, n, p in zip(images, names, probabilities, strict=True)}
    assert found.keys() == literal_space().keys()
    for key, (shape, probability) in literal_space().items():
        assert found[key][0] == shape
        assert found[key][1] == pytest.approx(probability, abs=1e-15)
    assert probabilities.sum() == pytest.approx(1)
    assert data.count_images(tiny.data) == 96


def test_drawn_images_follow_the_enumerated_distribution(tiny):
    tiny.batch_size = 50_000
    batch = data.make_batch(tiny, "train", 0)
    images = np.concatenate([batch.image1, batch.image2])
    counts = Counter(image.tobytes() for image in images)
    space = literal_space()
    assert counts.keys() == space.keys()
    expected = np.array([space[key][1] * len(images) for key in counts])
    chi_square = ((np.array(list(counts.values())) - expected) ** 2 / expected).sum()
    assert chi_square < 153  # 95 degrees of freedom: exceeded once in 7,000 seeds


def test_labels_say_whether_the_shapes_are_the_same(tiny):
    tiny.batch_size = 2000
    batch = data.make_batch(tiny, "validation", 3)
    shape = {key: name for key, (name, _) in literal_space().items()}
    for image1, image2, label in zip(*batch, strict=True):
        assert label == (shape[image1.tobytes()] == shape[image2.tobytes()])
    assert batch.label.dtype == np.float32
    assert batch.label.mean() == pytest.approx(0.5, abs=0.05)


def test_a_batch_is_a_function_of_seed_split_and_step(tiny):
    def digest(split="train", step=5, seed=0):
        tiny.seed = seed
        batch = data.make_batch(tiny, split, step)
        return hashlib.sha256(b"".join(field.tobytes() for field in batch)).hexdigest()

    assert digest() == digest()
    others = {digest(), digest(step=6), digest(seed=1), digest("validation"), digest("test")}
    assert len(others) == 5


def test_streams_of_neighbouring_steps_do_not_overlap():
    words = [data.random_generator(0, "train", step).integers(2**63, size=64) for step in range(9)]
    assert len(np.unique(words)) == 9 * 64


@pytest.mark.parametrize(
    "name, golden", [("default", "49ada9f8ed88cdff"), ("everywhere", "cb7cdb64967184d1")]
)
def test_golden_batch(name, golden):
    """Changes only when the data of a seed are meant to change: every run then starts anew."""
    config = importlib.import_module(f"configs.{name}").get_config()
    batch = data.make_batch(config, "train", 7)
    digest = hashlib.sha256(b"".join(field.tobytes() for field in batch)).hexdigest()
    assert digest[:16] == golden


def test_other_sizes_and_shapes(tiny):
    tiny.data.update({"image_size": 21, "max_size": 7})
    tiny.data.update({"shapes": ("square", "circle"), "min_sizes": (1, 6)})
    images, shapes, probabilities = data.enumerate_images(tiny.data, "test")
    assert len(images) == data.count_images(tiny.data) == 7 * 7 * (6 + 1)
    assert probabilities[shapes == 0].sum() == pytest.approx(0.5)
    areas = (images > 0).sum(axis=(1, 2, 3))
    assert set(areas[shapes == 0]) == {(2 * half) ** 2 for half in range(1, 7)}


def test_everywhere_lists_every_place_where_the_whole_shape_fits(everywhere):
    everywhere.data.split = "shared"
    images, shapes, probabilities = data.enumerate_images(everywhere.data, "train")
    assert np.bincount(shapes).tolist() == [3256, 4485]
    assert data.count_images(everywhere.data) == 7741
    space = literal_space("inside")
    assert len(space) == 7741  # no two of them look alike
    for image, shape, p in zip(images, shapes, probabilities, strict=True):
        name, probability = space[image.tobytes()]
        assert name == everywhere.data.shapes[shape] and p == pytest.approx(probability)


def test_a_space_that_takes_too_much_memory_is_not_listed(tiny):
    tiny.data.update({"image_size": 200, "max_size": 15})
    assert data.enumerate_images(tiny.data, "test") is None
    assert data.make_batch(tiny, "test", 0).image1.shape == (8, 200, 200, 1)


def test_disjoint_splits_share_no_image_and_leave_none_out(everywhere):
    parts = [data.enumerate_images(everywhere.data, split) for split in data.SPLITS]
    seen = [{image.tobytes() for image in images} for images, _, _ in parts]
    assert set.union(*seen) == literal_space("inside").keys()
    assert sum(map(len, seen)) == 7741
    for share, (images, shapes, probabilities) in zip((0.8, 0.1, 0.1), parts, strict=True):
        assert len(images) == pytest.approx(7741 * share, rel=0.05)
        assert probabilities[shapes == 0].sum() == pytest.approx(0.5)
        assert probabilities.sum() == pytest.approx(1)


@pytest.mark.parametrize("split", ["train", "test"])
def test_both_ways_to_draw_follow_the_enumerated_distribution(everywhere, split, monkeypatch):
    """From the list of all images, and anew: chi-square over images grouped by probability."""
    everywhere.batch_size = 20_000
    images, _, probabilities = data.enumerate_images(everywhere.data, split)
    index = {image.tobytes(): i for i, image in enumerate(images)}
    for list_images in (data.list_images, lambda *_: None):
        monkeypatch.setattr(data, "list_images", list_images)
        batch = data.make_batch(everywhere, split, 0)
        drawn = np.concatenate([batch.image1, batch.image2])
        counts = np.bincount([index[image.tobytes()] for image in drawn], minlength=len(images))
        groups = np.arange(len(images)) * 100 // len(images)
        expected = np.bincount(groups, probabilities * len(drawn))
        chi_square = ((np.bincount(groups, counts) - expected) ** 2 / expected).sum()
        assert chi_square < 160  # 99 degrees of freedom: exceeded once in 10,000 seeds


def test_pixels_decide_the_side_whatever_the_rest_of_the_batch(everywhere):
    images, _, _ = data.enumerate_images(everywhere.data, "train")
    assert data.in_split(everywhere.data, "train", images[5:9]).all()
    assert not data.in_split(everywhere.data, "test", images[::-7]).any()
    positions = data.hash_pixels(
        np.random.default_rng(0).integers(0, 256, (10_000, 5, 5, 1), np.uint8)
    )
    counts, _ = np.histogram(positions, 20, (0, 1))
    assert counts.sum() == 10_000 and ((counts - 500) ** 2 / 500).sum() < 50


def test_prefetch_keeps_the_order_and_raises_where_the_error_belongs():
    def square(step):
        if step == 5:
            raise ValueError("step 5 is bad")
        return step * step

    results = data.prefetch(square, range(3, 9))
    assert [next(results), next(results)] == [9, 16]
    with pytest.raises(ValueError, match="step 5 is bad"):
        next(results)


def test_prefetch_works_ahead_while_the_caller_is_busy():
    done = []
    results = data.prefetch(done.append, range(10), depth=2)
    next(results)
    deadline = time.monotonic() + 10
    while len(done) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert done == [0, 1, 2]
    results.close()
