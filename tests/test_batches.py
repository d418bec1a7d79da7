"""Batches of P classes with K images each, and quarter turns as further classes."""

import numpy as np
import pytest
from PIL import Image

import data
import settings
import shapes
import spaces
from configs import folder, identity

CLASSES, IMAGES, SIDE = 12, 5, 6  # of the set on disk


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """(folder, {bytes of an image: its class}): random pictures, none of which is symmetric."""
    root, known, random = tmp_path_factory.mktemp("pictures"), {}, np.random.default_rng(0)
    for kind in range(CLASSES):
        (root / f"kind{kind:02d}").mkdir()
        for number in range(IMAGES):
            pixels = random.integers(0, 256, (SIDE, SIDE, 1), dtype=np.uint8)
            Image.fromarray(pixels[..., 0]).save(root / f"kind{kind:02d}" / f"{number}.png")
            known[pixels.tobytes()] = kind
    return root, known


def grouped(path, pairs=12, **changes):
    config = folder.get_config()
    config.batch_size = pairs
    changes = {"images_per_class": 4, "turned_classes": 1, "overlaid_classes": 0.0} | changes
    changes = {"split": "shared"} | changes
    config.data.update({"path": str(path), "image_size": SIDE, "channels": 1} | changes)
    return settings.frozen(config)


def recognise(known, image):
    """(class, turns) of an image, by comparing it with each turned picture of the set."""
    for mirrored, shown in enumerate((image, image)):
        for turns in range(4):
            undone = np.rot90(shown, -turns)
            undone = undone[:, ::-1] if mirrored else undone
            if (found := known.get(undone.tobytes())) is not None:
                return found, turns + 4 * mirrored
    raise AssertionError("not a picture of the set")


def literal_overlay(one, other):
    """Pixel by pixel the colour that is farther from the mean of its own image."""
    result = np.empty_like(one)
    means = [[x[..., c].astype(float).mean() for c in range(x.shape[2])] for x in (one, other)]
    for row, column in np.ndindex(one.shape[:2]):
        two = one[row, column], other[row, column]
        far, other_far = (
            sum(abs(float(value) - middle) for value, middle in zip(x, mean, strict=True))
            for x, mean in zip(two, means, strict=True)
        )
        result[row, column] = two[0] if far >= other_far else two[1]
    return result


def test_of_two_images_in_one_each_pixel_is_the_one_that_stands_out_more():
    images, others = np.random.default_rng(1).integers(0, 256, (2, 9, 7, 7, 3)).astype(np.uint8)
    images[:3], others[:3] = 250, 240  # paper
    images[:3, 2:5, 3], others[:3, 3, 2:5] = 20, 5  # ink
    found = data.overlay(images, others)
    for one, other, image in zip(images, others, found, strict=True):
        np.testing.assert_array_equal(image, literal_overlay(one, other))
    assert (found[0] < 100).any(axis=2).sum() == 5  # a cross, of both inks


@pytest.fixture(scope="module")
def overlays(pictures):
    """{bytes of two pictures in one: the classes of both, as a frozenset}."""
    _, known = pictures
    shown = [(np.frombuffer(x, np.uint8).reshape(SIDE, SIDE, 1), kind) for x, kind in known.items()]
    return {
        literal_overlay(one, other).tobytes(): frozenset((kind, other_kind))
        for one, kind in shown
        for other, other_kind in shown
    }


@pytest.mark.parametrize("pairs, share, groups", [(20, 0.3, 3), (20, 0.5, 5), (48, 1.0, 24)])
def test_two_classes_laid_over_each_other_are_a_further_class(
    pictures, overlays, pairs, share, groups
):
    """Of 24 groups each of 12 classes is laid over two others: pairs of classes come twice."""
    root, known = pictures
    config = grouped(root, pairs, overlaid_classes=share)
    twice, alone = 0, set()
    for step in range(10):
        batch = data.make_batch(config, "train", step)
        images, of_number = np.concatenate(batch[:2]), {}
        numbers = batch.local_classes.T.ravel()
        assert (numbers >= CLASSES).sum() == 4 * groups
        for image, number in zip(images, numbers, strict=True):
            if number < CLASSES:
                assert known[image.tobytes()] == number
            else:
                both = overlays[image.tobytes()]
                assert of_number.setdefault(number, both) == both
        assert len({*of_number.values()}) == len(of_number)
        np.testing.assert_array_equal(batch.label, np.equal(*batch.local_classes.T))
        counts = np.unique(numbers[numbers >= CLASSES], return_counts=True)[1]
        assert (counts % 4 == 0).all()
        twice += (counts > 4).sum()
        alone |= {*of_number.values()}
    assert len(alone) > 20 and (twice > 0 or groups < 24)


def test_turned_classes_are_laid_over_each_other(pictures, monkeypatch):
    """Each image of an overlaid class is made of the two turned classes that are drawn for it."""
    root, known = pictures
    config, sources = grouped(root, turned_classes=4, overlaid_classes=0.5), []

    def overlay(images, others):
        sources.append([[recognise(known, x) for x in shown] for shown in (images, others)])
        return np.full_like(images, len(sources))  # the side of the pair, as a mark

    monkeypatch.setattr(data, "overlay", overlay)
    for step in range(10):
        sources.clear()
        batch, of_number = data.make_batch(config, "train", step), {}
        for side in (0, 1):
            numbers = batch.local_classes[:, side]
            marked = (batch[side] == side + 1).all(axis=(1, 2, 3))
            np.testing.assert_array_equal(marked, numbers >= 4 * CLASSES)
            for number, *both in zip(numbers[marked], *sources[side], strict=True):
                assert of_number.setdefault(number, frozenset(both)) == frozenset(both)
        assert len({*of_number.values()}) == len(of_number) == 3
        assert any(turns for both in of_number.values() for _, turns in both)


@pytest.mark.parametrize("k", [2, 4, 6])
@pytest.mark.parametrize("turned", [1, 4, 8])
def test_a_batch_has_so_many_classes_and_so_many_images_of_each(pictures, k, turned):
    root, known = pictures
    config = grouped(root, images_per_class=k, turned_classes=turned)
    seen = set()
    for step in range(20):
        batch = data.make_batch(config, "train", step)
        both = [recognise(known, image) for image in (*batch.image1, *batch.image2)]
        numbers = [turned * kind + turns for kind, turns in both]
        np.testing.assert_array_equal(batch.local_classes.T.ravel(), numbers)
        assert sorted(np.unique(numbers, return_counts=True)[1]) == [k] * (24 // k)
        same = batch.local_classes[:, 0] == batch.local_classes[:, 1]
        np.testing.assert_array_equal(batch.label, same)
        assert same.sum() == 6
        assert not (batch.image1 == batch.image2).all(axis=(1, 2, 3)).any()
        seen |= set(numbers)
    expected = turned * CLASSES * (1 - np.exp(-20 * 24 / (k * turned * CLASSES)))
    assert len(seen) > 0.8 * expected


def test_with_fewer_classes_than_a_batch_takes_each_comes_equally_often(pictures):
    batch = data.make_batch(grouped(pictures[0], 48), "train", 3)  # 24 groups, 12 classes
    assert np.unique(batch.local_classes, return_counts=True)[1].tolist() == [8] * CLASSES


def test_every_image_of_a_class_is_drawn_equally_often(pictures):
    root, _ = pictures
    counts = {}
    for step in range(300):
        for image in np.concatenate(data.make_batch(grouped(root), "train", step)[:2]):
            counts[image.tobytes()] = counts.get(image.tobytes(), 0) + 1
    expected = 300 * 24 / (CLASSES * IMAGES)
    assert len(counts) == CLASSES * IMAGES
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 110  # chi square of 59


def test_the_hosts_parts_are_the_batch_and_a_step_has_its_own(pictures):
    overlaid = grouped(pictures[0], turned_classes=4, overlaid_classes=0.5)
    for config in (grouped(pictures[0], turned_classes=8), overlaid, drawn_blobs()):
        whole = data.make_batch(config, "train", 5)
        parts = [data.make_batch(config, "train", 5, host, 2) for host in range(2)]
        for one, *both in zip(whole, *parts, strict=True):
            np.testing.assert_array_equal(one, np.concatenate(both))
        other = data.make_batch(config, "train", 6)
        assert (other.local_classes != whole.local_classes).any()


def drawn_blobs():
    config = identity.get_config()
    config.batch_size = 12
    config.data.update({"images_per_class": 4, "num_identities": 40})
    return settings.frozen(config)


def test_drawn_images_come_in_groups_too(monkeypatch):
    config, known = drawn_blobs(), {}

    def render(options, latents):
        shown = shapes.render(options, latents)
        known.update(zip(map(bytes, shown), latents.identity.tolist(), strict=True))
        return shown

    monkeypatch.setattr(spaces, "render", render)
    batch = data.make_batch(config, "train", 0)
    assert sorted(np.unique(batch.local_classes, return_counts=True)[1]) == [4] * 6
    assert batch.label.sum() == 6
    blobs = spaces.split_class_ids(config.data, "train") - len(config.data.shapes)
    for shown, classes in zip(batch[:2], batch.local_classes.T, strict=True):
        assert [known[image.tobytes()] for image in shown] == blobs[classes].tolist()


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"images_per_class": 3}, "data.images_per_class=3: must be 0, or an even divisor of the"),
        ({"images_per_class": 10}, "even divisor of the 24 images of a batch"),
        ({"images_per_class": 24}, "at most a quarter"),
        ({"images_per_class": 8}, "at most a quarter"),
        ({"images_per_class": 0, "turned_classes": 4}, "data.turned_classes=4: must be 1 without"),
        ({"images_per_class": 0, "overlaid_classes": 0.5}, "classes=0.5: must be 0 without"),
        ({"overlaid_classes": 1.5}, "data.overlaid_classes=1.5: must be from 0 to 1"),
        ({"turned_classes": 2}, r"data.turned_classes=2: must be one of \(1, 4, 8\)"),
        ({"source": "pairs", "images_per_class": 4}, "must be 0 with data.source=pairs"),
    ],
)
def test_batches_that_cannot_be_are_refused(changes, text):
    config = grouped("photos", **changes)
    with pytest.raises(data.UserError, match=text):
        settings.check(config)
