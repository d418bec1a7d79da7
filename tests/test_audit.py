import importlib

import numpy as np
import pytest
from conftest import run, run_fork
from PIL import Image

import audit
import data
from configs import default
from spaces import Pairs


def small(**changes):
    """A space of 24 images, so that pairs can be counted by hand."""
    config = default.get_config()
    config.data.update({"image_size": 14, "max_size": 6} | changes)
    return config


def test_the_default_shows_its_flaw(tmp_path):
    finished = run("audit.py", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    lines = dict(
        line.strip().split("  ", 1) for line in finished.stdout.splitlines() if "  " in line
    )
    lines = {name: text.strip() for name, text in lines.items()}
    assert lines["test"] == "96 images of 2 classes, 9,216 ordered pairs"
    assert lines["lit area of both"] == lines["parity of the area"] == "100.0 %"
    assert lines["test images seen"] == "100.00 % after 6,400 training pairs (exact)"
    assert lines["always the same answer"].startswith("50.")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["default.png"]
    assert np.asarray(Image.open(tmp_path / "runs" / "default.png")).std() > 20


def test_tiles_are_in_rows_and_a_short_row_ends_white():
    rows = [np.arange(12, dtype=np.uint8).reshape(3, 2, 2, 1), np.zeros((1, 2, 2, 1), np.uint8)]
    sheet = audit.tile(rows)
    assert sheet.shape == (4, 6, 1)
    np.testing.assert_array_equal(sheet[:2, 2:4], rows[0][1])
    assert (sheet[2:, :2] == 0).all() and (sheet[2:, 2:] == 255).all()


def test_no_rule_blind_to_shape_answers_heldout():
    config = importlib.import_module("configs.heldout").get_config()
    rules = audit.blind_rules(config)
    nearest = rules.pop("nearest training image")
    assert len(rules) == 6 and max(rules.values()) < 0.6 < nearest


@pytest.mark.parametrize("p_same", [0.0, 0.5])
def test_what_was_seen_is_counted_exactly(p_same):
    """Against the share found by drawing the training many times."""
    config = small(p_same=p_same)
    config.batch_size, config.num_steps = 8, 5
    pairs = data.enumerate_pairs(config.data, "train", 10**6)
    by_image, by_pair = audit.seen_exactly(pairs, pairs, 40)
    config.batch_size, found = 40, []
    index = {image.tobytes(): i for i, image in enumerate(pairs[0])}
    _, first, second, _, weight = pairs[:5]
    for step in range(300):
        batch = data.make_batch(config, "train", step)
        a, b = (np.array([index[x.tobytes()] for x in both]) for both in batch[:2])
        images = np.isin([first, second], np.concatenate([a, b])).mean(axis=0)
        either = np.isin(np.minimum(first, second) * 24 + np.maximum(first, second),
                         np.minimum(a, b) * 24 + np.maximum(a, b))  # fmt: skip
        found.append(((images * weight).sum(), (either * weight).sum()))
    assert (by_image, by_pair) == pytest.approx(np.mean(found, axis=0), abs=0.01)
    assert 0.01 < by_pair < by_image < 0.99


def test_an_image_that_is_paired_with_itself_is_in_the_pair_once():
    """Two images, four ordered pairs of the same probability, worked out by hand."""
    images = np.arange(2, dtype=np.uint8).reshape(2, 1, 1, 1)
    first, second = np.indices((2, 2)).reshape(2, -1)
    label, weight = (first == second).astype(float), np.full(4, 1 / 4)
    pairs = Pairs(images, first, second, label, weight, True, True, None, None)
    assert audit.seen_exactly(pairs, pairs, 1) == pytest.approx((3 / 4, 3 / 8))
    assert audit.seen_exactly(pairs, pairs, 2) == pytest.approx((15 / 16, 19 / 32))


def test_the_best_single_pixel_is_found_and_asked_the_right_way():
    images = np.zeros((2, 2, 2, 1), np.uint8)
    images[0, 0, 0], images[1, 1, 1] = 255, 255  # lit in one of them each
    first, second = np.indices((2, 2)).reshape(2, -1)
    pairs = images, first, second, (first == second).astype(float)
    assert audit.single_pixel(pairs, pairs) == 1


def test_disjoint_splits_have_seen_nothing_and_shared_ones_are_simulated():
    everywhere = importlib.import_module("configs.everywhere").get_config()
    assert all(text.startswith("0.00 % after any number") for _, text in audit.seen(everywhere))
    everywhere.data.split = "shared"
    (_, images), (_, pairs) = audit.seen(everywhere)
    assert float(images.split()[0]) > 90 and images.endswith("(drawn)") and "(drawn)" in pairs
    rotation = importlib.import_module("configs.rotation").get_config()
    rotation.num_steps = 25
    (_, images), (_, pairs) = audit.seen(rotation)
    assert float(images.split()[0]) > float(pairs.split()[0]) > 0 and "3,200" in images


@pytest.mark.parametrize(
    "option",
    [
        "--output=image.txt",
        "--output=",
        "--output=/dev/null/x.png",
        "--config.data.split=some",
        "--config.data.image_size=100000",
    ],
)
def test_a_mistake_is_one_line(option, tmp_path):
    finished = run_fork("audit.py", option, cwd=tmp_path)
    assert finished.returncode == 1 and finished.stderr.count("\n") == 1
    assert option.split("=")[0] in finished.stderr and not list(tmp_path.iterdir())
