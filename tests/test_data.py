import hashlib
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


def literal_space():
    """{bytes of an image: (shape, probability)} of the founding data."""
    space = {}
    for shape, low in (("circle", 4), ("square", 2)):
        cases = [(s, r, c) for s in range(low, 15) for r in (15, 16) for c in (15, 16)]
        for case in cases:
            space[literal_image(shape, *case).tobytes()] = (shape, 0.5 / len(cases))
    return space


def test_enumerated_images_are_those_of_the_definition(tiny):
    images, shapes, probabilities = data.enumerate_images(tiny.data)
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


def test_golden_batch(tiny):
    """Changes only when the data of a seed are meant to change: every run then starts anew."""
    batch = data.make_batch(tiny, "train", 7)
    digest = hashlib.sha256(b"".join(field.tobytes() for field in batch)).hexdigest()
    assert digest[:16] == "15dd1190dfbd6a2b"


def test_other_sizes_and_shapes_render_inside_the_image(tiny):
    tiny.data.update({"image_size": 21, "max_size": 7})
    tiny.data.update({"shapes": ("square", "circle"), "min_sizes": (1, 6)})
    images, shapes, probabilities = data.enumerate_images(tiny.data)
    assert len(images) == data.count_images(tiny.data) == 7 * 7 * (6 + 1)
    assert probabilities[shapes == 0].sum() == pytest.approx(0.5)
    areas = (images > 0).sum(axis=(1, 2, 3))
    assert set(areas[shapes == 0]) == {(2 * half) ** 2 for half in range(1, 7)}


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
