import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

import pictures
import sets

from decoding import Form
from shortcuts import pixel_scores

ALPHABETS = [f"{a}/c{c}/{i}.png" for a in ("Greek", "Latin") for c in range(6) for i in range(3)]
CLASSES = [f"{c}/{i}.png" for c in "abcdefg" for i in range(4)]


def test_a_group_is_a_fold_and_without_groups_each_class_is_in_one_fold_whole():
    found = pictures.folds(ALPHABETS, 5)
    assert found == {"Greek": ALPHABETS[:18], "Latin": ALPHABETS[18:]}
    found = pictures.folds(CLASSES, 3)
    assert sorted(name for test in found.values() for name in test) == CLASSES
    kinds = [{name[0] for name in test} for test in found.values()]
    assert sorted(map(len, kinds)) == [2, 2, 3] and len(set().union(*kinds)) == 7


def test_scores_of_the_truth_have_no_error_and_may_come_in_another_order():
    embeddings = np.repeat(np.eye(7), 4, axis=0)
    order = np.random.default_rng(0).permutation(28)
    scores = pictures.closeness(embeddings[order])
    np.testing.assert_allclose(
        scores[0, 1], -((embeddings[order[0]] - embeddings[order[1]]) ** 2).sum()
    )
    scores = pictures.in_order(scores, [CLASSES[i] for i in order], CLASSES)
    assert pictures.measure(scores, CLASSES) == {"way": 5, "one_shot": 0, "eer": 0, "roc_auc": 1}


def test_pixels_are_compared_by_distance_and_by_correlation(tmp_path):
    ramp = np.linspace(0, 200, 32 * 32).reshape(32, 32)
    for i, pixels in enumerate((ramp, ramp + 50, ramp[::-1, ::-1])):
        Image.fromarray(np.uint8(pixels)).save(tmp_path / f"{i}.png")
    names = ["0.png", "1.png", "2.png"]
    distance, correlation = (
        pictures.compare(
            tmp_path, names, Form(32, 3), lambda pairs, name=name: pixel_scores(pairs)[name]
        )
        for name in pictures.PIXELS
    )
    assert distance[0, 1] == pytest.approx(-50 * (3 * 32 * 32) ** 0.5)
    assert correlation[0, 1] > 0.999 and correlation[0, 2] == pytest.approx(-1, abs=0.01)


def test_the_best_recipe_is_that_of_the_lowest_mean_error_at_the_middle():
    rows = [
        {"set": "a", "program": program, "budget": budget, "one_shot": error}
        for program, budget, error in [
            ("ours", 60, 0.9), ("PyTorch, triplet", 60, 0.1), ("PyTorch, triplet", 180, 0.4),
            ("PyTorch, triplet", 180, 0.2), ("PyTorch, prototypical", 60, 0.8),
            ("PyTorch, prototypical", 180, 0.25),
        ]
    ]  # fmt: skip
    assert pictures.best_recipes(rows, middle=180) == [rows[0], *rows[4:]]


def test_drawn_sets_depend_on_the_seed_alone(tmp_path):
    def make(seed, kind, classes):
        return list(getattr(sets, kind)(np.random.default_rng(seed), classes, 3))

    for kind, shape in (("faces", (64, 64)), ("objects", (48, 48, 3))):
        first, again, other = (make(seed, kind, 4) for seed in (0, 0, 1))
        assert len({name for name, _ in first}) == 12
        for (name, pixels), (same_name, same), (_, another) in zip(
            first, again, other, strict=True
        ):
            assert pixels.shape == shape and pixels.dtype == np.uint8 and name == same_name
            assert (pixels == same).all() and (pixels != another).any()
    assert sets.write(tmp_path / "set", first) == 12
    assert (np.asarray(Image.open(tmp_path / "set" / f"{first[0][0]}.png")) == first[0][1]).all()
