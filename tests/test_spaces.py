import importlib
from functools import partial

import numpy as np
import pytest

import data
import settings
import spaces
from configs import default
from listings import SPLITS
from spaces import DrawnImages, GivenPairs, ListedImages, open_split


def test_a_split_is_listed_where_it_can_be_and_remembered():
    config, heldout = default.get_config(), importlib.import_module("configs.heldout").get_config()
    for group, kind in ((config.data, ListedImages), (heldout.data, DrawnImages)):
        assert isinstance(open_split(group, "test"), kind)
        assert open_split(group, "test") is open_split(settings.frozen(group), "test")
        assert open_split(group, "test") is not open_split(group, "train")
    space = open_split(config.data, "test")
    config.data.p_same = 0.5  # a config may change after it was looked up
    assert open_split(config.data, "test").p_same == 0.5 and space.p_same == 0


@pytest.mark.parametrize("name", ["default", "heldout"])
def test_a_frozen_config_draws_the_same(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    batches = [data.make_batch(c, "train", 2) for c in (config, settings.frozen(config))]
    for field, other in zip(*batches, strict=True):
        np.testing.assert_array_equal(field, other)


EDGES = np.array([0, 0.1, 0.1, 0.4, 0.6, 1.0])  # of five; the second has no probability


@pytest.mark.parametrize(
    "first, last, without",
    [(first, last, i) for first, last in ((0, 5), (1, 4)) for i in (None, -1, 0, 2, 3, 4)]
    + [(2, 3, i) for i in (None, -1, 1, 3)],
)
def test_an_index_is_drawn_by_its_probability(first, last, without):
    count = 100_000
    u = (np.arange(count) + 0.5) / count
    excluded = None if without is None else np.full(count, without)
    found = spaces.draw_index(EDGES, u, np.full(count, first), np.full(count, last), excluded)
    expected = np.diff(EDGES) * (np.arange(5) >= first) * (np.arange(5) < last)
    if without is not None and without >= 0:
        expected[without] = 0
    shares = np.bincount(found, minlength=5) / count
    assert shares == pytest.approx(expected / expected.sum(), abs=2 / count)


def test_a_point_that_is_rounded_up_stays_within_the_bounds():
    u = np.full(5, 1 - 2**-53)
    assert 0.6 + u[0] * (1.0 - 0.6) == 1.0  # the end of the interval, which is not in it
    np.testing.assert_array_equal(
        spaces.draw_index(EDGES, u, np.arange(5), np.arange(1, 6)), range(5)
    )


@pytest.mark.parametrize("without", [None, 0, 4])
def test_the_ends_of_the_interval_stay_within_the_bounds(without):
    ends = np.array([0.0, 1 - 2**-53])
    excluded = without if without is None else np.full(2, without)
    low, high = spaces.draw_index(EDGES, ends, 0, 5, excluded)
    assert (low, high) == (2 if without == 0 else 0, 3 if without == 4 else 4)


def test_the_numbers_of_a_pair_have_one_use_each():
    of_images = spaces.latent_numbers(np.arange(spaces.PAIR_WIDTH)[None])  # 0, 1: the classes
    assert of_images.tolist() == [[*range(2, 8)], [*range(12, 18)]]


@pytest.mark.parametrize("p_same", [0.0, 0.2, 1.0])
def test_given_pairs_are_drawn_and_weighed_alike(p_same):
    images = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1)
    listed = [(0, 1, 0), (2, 3, 0), (4, 5, 0), (0, 2, 1), (3, 5, 1)]  # sorted by label
    space = GivenPairs(images, np.array(listed), p_same, np.array(list("abcdef")))
    count = 50_000
    drawn = space.draw(partial(data.uniforms, 0, "train", 0, 0, count, 0))
    assert drawn.class_ids is None
    counts = {pair: 0 for pair in listed}
    for pair in zip(drawn.first, drawn.second, drawn.label.astype(int), strict=True):
        counts[tuple(map(int, pair))] += 1
    pairs = space.enumerate_pairs(5)
    assert pairs.weight.sum() == pytest.approx(1) and space.enumerate_pairs(4) is None
    for pair, weight in zip(listed, pairs.weight, strict=True):
        assert counts[pair] / count == pytest.approx(weight, abs=0.01)
    expected = p_same or 2 / 5
    assert (pairs.label * pairs.weight).sum() == pytest.approx(expected)


def test_blobs_are_classes_of_their_own_and_half_of_the_images(tiny):
    tiny.data.update({"shapes": ("circle", "blob"), "same_as": "identity", "num_identities": 6})
    tiny.data.update({"image_size": 40, "max_size": 7, "p_same": 0.5})
    settings.check(tiny)
    space = open_split(tiny.data, "train")
    assert isinstance(space, DrawnImages) and space.class_ids.tolist() == [0, *range(2, 8)]
    assert np.diff(space.edges) == pytest.approx([1 / 2, *[1 / 12] * 6])


def test_held_out_kinds_and_identities_are_the_tests_alone():
    unseen = importlib.import_module("configs.unseen").get_config()
    of = {split: spaces.split_class_ids(unseen.data, split).tolist() for split in SPLITS}
    trained = [0, 1, 2, 3, 4, *range(9, 10_009)]
    assert of == {"train": trained, "validation": trained, "test": [5, 6, 7]}
    unseen.batch_size = 2000
    batch = data.make_batch(unseen, "train", 0)
    assert (batch.local_classes < 5).mean() == pytest.approx(0.5, abs=0.05)  # the five kinds
    assert (np.bincount(batch.local_classes[batch.local_classes < 5]) > 250).all()
    assert batch.label.mean() == pytest.approx(0.5, abs=0.05)
    identity = importlib.import_module("configs.identity").get_config()
    parts = [spaces.split_class_ids(identity.data, split) for split in SPLITS]
    assert [len(part) for part in parts] == [8000, 1000, 1000]
    assert len(np.unique(np.concatenate(parts))) == 10_000
    identity.data.num_identities = 6
    assert [len(spaces.split_class_ids(identity.data, split)) for split in SPLITS] == [2, 2, 2]
