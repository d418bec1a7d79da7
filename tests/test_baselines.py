import numpy as np
import pytest
from conftest import tiny_config, write_photos
from sklearn.metrics import roc_auc_score

import baselines
import scoring
import shortcuts
from model import create_model, init_variables
from spaces import Pairs


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """(config, score, evaluation) of the untrained network on four classes of six photos each."""
    root = write_photos(tmp_path_factory.mktemp("photos"), 4, 6)
    config = tiny_config()
    config.data.update({"source": "folder", "path": str(root), "p_same": 0.5, "image_size": 16})
    model = create_model(config)
    score, variables = scoring.make_scorer(model), init_variables(model, config)
    return config, score, scoring.evaluate(config, score, variables, "test")


def test_the_same_pairs_are_judged_without_learning(scored):
    config, score, found = scored
    lines, pairs = baselines.measure(config, score, found), found.pairs
    assert all(set(line) == set(baselines.COLUMNS) for line in lines.values())
    assert lines[baselines.UNTRAINED]["eer"] == found.metrics["eer"]  # it is this network
    pixels, classes = np.float64(pairs.images.reshape(24, -1)), pairs.class_ids
    scores = -np.linalg.norm(pixels[:, None] - pixels, axis=-1)
    alike = dict(zip(lines, (scores, np.corrcoef(pixels)), strict=False))
    for name, scores in alike.items():
        given = pairs.label, scores[pairs.first, pairs.second]
        area = roc_auc_score(*given, sample_weight=pairs.weight)
        assert lines[name]["roc_auc"] == pytest.approx(area)
        nearest = np.where(np.eye(24), -np.inf, scores).argmax(axis=1)
        right = classes[nearest] == classes
        assert lines[name]["recall_at_1"] == pytest.approx(right.mean())
    assert baselines.measure(tiny_config(), None, None) == {}  # of drawn shapes


def test_of_too_many_pairs_some_are_drawn_by_their_weight_and_counted(scored, monkeypatch):
    config, score, found = scored
    monkeypatch.setattr(baselines, "MOST_IMAGES", 23)
    monkeypatch.setattr(baselines, "FEW_PAIRS", 120)
    lines = baselines.measure(config, score, found)
    assert [line["pairs"] for line in lines.values()] == [120, 120, 120]
    assert all("recall_at_1" not in line and 0 < line["eer"] < 1 for line in lines.values())
    *rows, last = baselines.table(found.metrics, lines)
    assert last == "  without learning of 120 drawn pairs"
    assert len(rows) == 5 and all(len(row) == 62 for row in rows)  # what the page has room for
    pairs, shown = found.pairs, {image.tobytes(): i for i, image in enumerate(found.pairs.images)}
    some = baselines.take(pairs, 200)
    assert not some.exact and some.class_ids is None and len(some.label) == 200
    both = ([shown[some.images[i].tobytes()] for i in one] for one in (some.first, some.second))
    class1, class2 = (pairs.class_ids[one] for one in both)
    assert (some.label == (class1 == class2)).all()
    assert (
        0.35 < some.label.mean() < 0.65 and pairs.label.mean() < 0.25
    )  # they have half the weight
    assert baselines.take(pairs, len(pairs.label)) is pairs


def test_all_images_at_once_and_pair_by_pair_are_the_same_bits():
    random = np.random.default_rng(0)
    shown = random.integers(0, 256, (30, 40, 40, 3), np.uint8)  # more pixels than one block
    shown[7] = shown[3]
    first, second = np.indices((30, 30)).reshape(2, -1)
    few = random.permutation(900)[:200]
    pairs = Pairs(shown, first, second, *[None] * 6)
    every = shortcuts.pixel_scores(pairs)
    for name, scores in shortcuts.pixel_scores(
        pairs._replace(first=first[few], second=second[few])
    ).items():
        np.testing.assert_array_equal(scores, every[name][few])
    assert every["L2 distance of pixels"].reshape(30, 30)[3, 7] == 0


@pytest.mark.parametrize(
    "own, interval, words",
    [
        (0.272, (0.2, 0.3), "(EER 27.2 %, 95 % interval to 30.0 %)"),
        (0.12, (0.1, 0.16), "(EER 12.0 %, 95 % interval to 16.0 %)"),
        (0.155, None, "(EER 15.5 %)"),
        (0.12, (0.1, 0.15), None),
        (0.12, None, None),
    ],
)
def test_a_network_that_is_not_clearly_better_than_pixels_is_told_so(own, interval, words):
    names = "distance", "correlation", baselines.UNTRAINED
    lines = {name: {"eer": eer} for name, eer in zip(names, (0.2, 0.155, 0.01), strict=True)}
    text = baselines.verdict("test", {"eer": own}, interval, lines)
    ending = "is not clearly better than comparing pixels (EER 15.5 %)"
    assert text == (words and f"warning: on the test the network {words} {ending}")
    assert baselines.verdict("test", {"eer": own}, interval, {}) is None
    assert baselines.verdict("test", {"eer": None}, None, lines) is None
