import hashlib
import importlib
import time

import numpy as np
import pytest

import data
import settings
import shapes
import spaces
from configs import default
from errors import UserError
from images import hash_pixels
from listings import SPLITS
from shapes import SHAPES


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
    images, kinds, probabilities = data.enumerate_images(tiny.data, "test")
    assert images.dtype == np.uint8 and images.shape == (96, 32, 32, 1)
    names = [tiny.data.shapes[shape] for shape in kinds]
    found = {x.tobytes(): (n, p) for x, n, p in zip(images, names, probabilities, strict=True)}
    assert found.keys() == literal_space().keys()
    for key, (shape, probability) in literal_space().items():
        assert found[key][0] == shape
        assert found[key][1] == pytest.approx(probability, abs=1e-15)
    assert probabilities.sum() == pytest.approx(1)


def test_labels_say_whether_the_shapes_are_the_same(tiny):
    tiny.batch_size = 2000
    batch = data.make_batch(tiny, "validation", 3)
    shape = {key: name for key, (name, _) in literal_space().items()}
    for image1, image2, label, local_classes in zip(*batch, strict=True):
        assert label == (local_classes[0] == local_classes[1])
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


def test_streams_of_neighbouring_steps_and_pairs_do_not_overlap():
    words = [data.uniforms(0, "train", step, 0, 16, 0, 4) for step in range(9)]
    assert len(np.unique(words)) == 9 * 64
    parts = [data.uniforms(0, "train", 3, first, 4, 0, 4) for first in (0, 4, 8, 12)]
    assert (np.concatenate(parts) == words[3]).all()


GOLDEN = {
    "default": "309bf611c3a327f0",
    "everywhere": "71318700c69ab039",
    "heldout": "1b24e124af6356fb",
    "rotation": "e1dcaf1627089805",
    "unseen": "21bdb1bdd29079ca",
    "identity": "ba0702063eeeaeed",
}


def golden(name, **changes):
    config = importlib.import_module(f"configs.{name}").get_config()
    config.batch_size = 32
    config.data.update(changes)
    batch = data.make_batch(config, "train", 7)
    return hashlib.sha256(b"".join(field.tobytes() for field in batch[:3])).hexdigest()[:16]


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_batch(name):
    """Changes only when the data of a seed are meant to change: every run then starts anew."""
    assert golden(name) == GOLDEN[name]


@pytest.mark.parametrize("name", GOLDEN)
def test_the_hosts_parts_are_the_batch(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    whole = data.make_batch(config, "validation", 2)
    parts = [data.make_batch(config, "validation", 2, host, 4) for host in range(4)]
    for field, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        assert (field == np.concatenate(pieces)).all()


def test_other_sizes_and_shapes(tiny):
    tiny.data.update({"image_size": 21, "max_size": 7})
    tiny.data.update({"shapes": ("square", "circle"), "min_sizes": (1, 6)})
    images, shapes, probabilities = data.enumerate_images(tiny.data, "test")
    assert len(images) == 7 * 7 * (6 + 1)
    assert probabilities[shapes == 0].sum() == pytest.approx(0.5)
    areas = (images > 0).sum(axis=(1, 2, 3))
    assert set(areas[shapes == 0]) == {(2 * half) ** 2 for half in range(1, 7)}


def test_everywhere_lists_every_place_where_the_whole_shape_fits(everywhere):
    everywhere.data.split = "shared"
    images, shapes, probabilities = data.enumerate_images(everywhere.data, "train")
    assert np.bincount(shapes).tolist() == [3256, 4485]
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
    parts = [data.enumerate_images(everywhere.data, split) for split in SPLITS]
    seen = [{image.tobytes() for image in images} for images, _, _ in parts]
    assert set.union(*seen) == literal_space("inside").keys()
    assert sum(map(len, seen)) == 7741
    for share, (images, kinds, probabilities) in zip((0.8, 0.1, 0.1), parts, strict=True):
        assert len(images) == pytest.approx(7741 * share, rel=0.05)
        assert probabilities[kinds == 0].sum() == pytest.approx(0.5)
        assert probabilities.sum() == pytest.approx(1)


def test_pixels_decide_the_side_whatever_the_rest_of_the_batch(everywhere):
    images, _, _ = data.enumerate_images(everywhere.data, "train")
    assert spaces.in_split(everywhere.data, "train", images[5:9]).all()
    assert not spaces.in_split(everywhere.data, "test", images[::-7]).any()
    hashes = hash_pixels(np.random.default_rng(0).integers(0, 256, (10_000, 5, 5, 1), np.uint8))
    counts, _ = np.histogram(hashes, 20, (0, 1))
    assert counts.sum() == 10_000 and ((counts - 500) ** 2 / 500).sum() < 50


def test_golden_hashes():
    """Another hash would put images that a run was trained on into its test."""
    odd = np.arange(50, dtype=np.uint8).reshape(2, 5, 5, 1)  # no multiple of 8 bytes an image
    assert hash_pixels(odd).tolist() == [0.08781645715280728, 0.35205352855119454]
    colour = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    assert hash_pixels(colour).tolist() == [0.8507738507405765]


def draw_both(config, pairs):
    """Digests of the images that training and test draw in so many pairs."""
    config.batch_size = 5000
    for split in ("train", "test"):
        batches = (data.make_batch(config, split, step) for step in range(pairs // 5000))
        yield {image.tobytes() for batch in batches for both in batch[:2] for image in both}


@pytest.mark.parametrize(
    "pairs", [5000, pytest.param(100_000, marks=pytest.mark.slow)], ids=["few", "many"]
)
@pytest.mark.parametrize("name", ["everywhere", "heldout", "unseen", "identity"])
def test_training_and_test_draw_no_common_image(name, pairs):
    config = importlib.import_module(f"configs.{name}").get_config()
    train, test = draw_both(config, pairs)
    assert train and test and not train & test


def test_equal_pixels_of_different_latents_are_on_one_side(everywhere):
    """Circles turned at random: thousands of latents for each image."""
    everywhere.data.p_rotation, everywhere.data.max_size = 1.0, 11
    train, test = draw_both(everywhere, 10_000)
    assert len(train) < 15_000 and train and test and not train & test


def chi_square(config, split, pairs):
    """Of the pairs drawn against `enumerate_pairs`, and its degrees of freedom."""
    images, first, second, label, weight = data.enumerate_pairs(config.data, split, 10**6)[:5]
    assert weight.sum() == pytest.approx(1) and (weight > 0).all()
    index = {image.tobytes(): i for i, image in enumerate(images)}
    assert len(index) == len(images)
    place = {frozenset(pair): i for i, pair in enumerate(zip(first, second, strict=True))}
    config.batch_size = pairs
    batch = data.make_batch(config, split, 0)
    ids = [[index[image.tobytes()] for image in both] for both in batch[:2]]
    drawn = np.array([place[frozenset(pair)] for pair in zip(*ids, strict=True)])
    assert (label[drawn] == batch.label).all()
    expected = weight * pairs
    counts = np.bincount(drawn, minlength=len(weight))
    return ((counts - expected) ** 2 / expected).sum(), len(weight) - 1


@pytest.mark.parametrize("p_same", [0.0, 0.3, 1.0])
def test_drawn_pairs_follow_the_enumerated_distribution(tiny, p_same):
    tiny.data.update({"p_same": p_same, "max_size": 6, "image_size": 14})
    found, freedom = chi_square(tiny, "train", 40_000)
    assert abs(found - freedom) < 4.5 * (2 * freedom) ** 0.5
    if p_same:
        label, weight = data.enumerate_pairs(tiny.data, "train", 10**6)[3:5]
        assert (label * weight).sum() == pytest.approx(p_same)
    assert data.enumerate_pairs(tiny.data, "train", 100) is None


@pytest.mark.parametrize("name", ["everywhere", "heldout", "unseen", "identity"])
def test_sampled_images_show_the_classes_that_come_with_them(name, monkeypatch):
    config, drawn = importlib.import_module(f"configs.{name}").get_config(), {}
    config.data.images_per_class = 0  # else see test_batches.py

    def render(options, latents):
        shown = shapes.render(options, latents)
        classes = latents.identity if name == "identity" else latents.shape
        drawn.update(zip(map(bytes, shown), classes.tolist(), strict=True))
        return shown

    monkeypatch.setattr(spaces, "render", render)
    spaces.open_frozen.cache_clear()
    pairs = data.sample_pairs(config, "test", 64)
    assert len(np.unique(np.stack([pairs.first, pairs.second]))) == len(pairs.images)
    first = len(config.data.shapes) if name == "identity" else 0  # its only kind are blobs
    classes = [first + drawn[image.tobytes()] for image in pairs.images]
    np.testing.assert_array_equal(classes, pairs.class_ids)
    same = pairs.class_ids[pairs.first] == pairs.class_ids[pairs.second]
    np.testing.assert_array_equal(pairs.label, same)
    config.batch_size = 64
    batch = data.make_batch(config, "test", 0)
    for drawn, places in ((batch.image1, pairs.first), (batch.image2, pairs.second)):
        np.testing.assert_array_equal(drawn, pairs.images[places])


@pytest.mark.parametrize("pairs", [pytest.param(200_000, marks=pytest.mark.slow), 20_000])
@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("name", ["default", "everywhere"])
def test_drawn_images_follow_the_enumerated_ones(name, listed, pairs, monkeypatch):
    """Chi-square of up to 400,000 images, from the list of all images and drawn anew."""
    config = importlib.import_module(f"configs.{name}").get_config()
    images, _, probabilities = data.enumerate_images(config.data, "test")
    index = {image.tobytes(): i for i, image in enumerate(images)}
    if not listed:
        monkeypatch.setattr(spaces, "list_latents", lambda *_: None)
        spaces.open_frozen.cache_clear()
    counts = np.zeros(len(images))
    config.batch_size = 20_000
    for step in range(pairs // config.batch_size):
        batch = data.make_batch(config, "test", step)
        drawn = [index[image.tobytes()] for both in batch[:2] for image in both]
        counts += np.bincount(drawn, minlength=len(images))
    spaces.open_frozen.cache_clear()
    expected = probabilities * 2 * pairs
    found, freedom = ((counts - expected) ** 2 / expected).sum(), len(expected) - 1
    assert abs(found - freedom) < 4.5 * (2 * freedom) ** 0.5


def random_config(random):
    """A config from all over the allowed ranges, of images that are not listed."""
    config = default.get_config()
    names = random.permutation([*SHAPES])[: random.integers(2, 6)]
    continuous = bool(random.random() < 0.7)
    config.data.update({
        "shapes": tuple(map(str, names)),
        "min_sizes": tuple(random.integers(2, 6, len(names)).tolist()),
        "max_size": int(random.integers(8, 12)),
        "image_size": int(random.integers(36, 45)),
        "placement": str(random.choice(["margin", "inside"])),
        "num_identities": 20,
        "p_same": float(random.choice([0, 0.5, 0.8])),
        "continuous": continuous,
        "antialias": bool(random.random() < 0.7),
        "p_rotation": float(random.choice([0, 0.5, 1])),
    })  # fmt: skip
    config.data.match_area = continuous and bool(random.random() < 0.4)
    config.batch_size = 200
    settings.check(config)
    return config


@pytest.mark.parametrize("case", range(40))
def test_whatever_the_config_shapes_are_whole_and_labels_true(case, monkeypatch):
    config = random_config(np.random.default_rng(case))
    drawn = []

    def render(options, latents):
        drawn.append(latents)
        return shapes.render(options, latents)

    monkeypatch.setattr(spaces, "render", render)
    monkeypatch.setattr(spaces, "list_latents", lambda *_: None)
    batch = data.make_batch(config, "train", 1)
    (latents,) = drawn
    assert (batch.label == (latents.shape[::2] == latents.shape[1::2])).all()
    p_same, n = config.data.p_same or 1 / len(config.data.shapes), len(batch.label)
    assert abs(batch.label.mean() - p_same) < 4 * (p_same * (1 - p_same) / n) ** 0.5
    light = np.stack(batch[:2], axis=1).reshape(2 * n, -1).astype(int)
    config.data.image_size += 16  # the same shapes with 8 pixels more on every side
    moved = latents._replace(row=latents.row + 8, column=latents.column + 8)
    wide = shapes.render(config.data, moved).reshape(2 * n, -1).astype(int)
    assert np.abs(light.sum(axis=1) - wide.sum(axis=1)).max() <= 1  # rounded another way
    large = latents.size > 5
    area = light.sum(axis=1)[large] / 255
    true = np.array([SHAPES[name].area for name in config.data.shapes])[latents.shape]
    assert area == pytest.approx((true * latents.size**2)[large], rel=0.35)


def test_match_area_makes_area_and_place_tell_nothing():
    config = importlib.import_module("configs.unseen").get_config()
    config.data.held_out_shapes = ()
    u = np.random.default_rng(0).random((4000, 6))
    per_shape = [
        shapes.draw_latents(config.data, u, np.full(4000, k))
        for k in range(len(config.data.shapes))
    ]
    roots = [SHAPES[name].area ** 0.5 for name in config.data.shapes]
    for one, root in zip(per_shape, roots, strict=True):
        assert one.size * root == pytest.approx(per_shape[0].size * roots[0])
        offset = SHAPES[config.data.shapes[one.shape[0]]].offset
        assert one.row + offset == pytest.approx(per_shape[0].row)


@pytest.mark.parametrize("listed", [False, True])
def test_a_class_without_an_image_in_a_split_is_refused(tiny, listed, monkeypatch):
    if not listed:
        monkeypatch.setattr(spaces, "list_latents", lambda *_: None)
    spaces.open_frozen.cache_clear()
    tiny.data.update({"split": "disjoint", "min_sizes": (14, 14), "shapes": ("circle", "ring")})
    with pytest.raises(UserError, match="more sizes or places are needed"):
        data.check_splits(tiny)


def test_classes_have_the_names_of_kinds_and_the_numbers_of_blobs():
    unseen = importlib.import_module("configs.unseen").get_config()
    names = data.class_names(unseen.data, np.array([0, 7, 9, 9 + 1234]))
    first, held_out = unseen.data.shapes[0], unseen.data.shapes[7]
    assert names.tolist() == [first, held_out, "blob 0", "blob 1234"]


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
    results = data.prefetch(done.append, range(10), workers=1)
    next(results)
    deadline = time.monotonic() + 10
    while len(done) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert done == [0, 1, 2]
    results.close()
