import itertools

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

import data
import metrics
from configs import default
from errors import UserError
from scoring import Scores
from spaces import Pairs


def scored(seed=0, n=500, ties=True):
    """(logits, losses, predicted, label, weight) of so many pairs that are answered badly."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, n).astype(float)
    logits = rng.normal(label, 1.5)
    logits = np.round(2 * logits) / 2 if ties else logits
    losses = np.logaddexp(0, np.where(label == 1, -logits, logits))
    return logits, losses, logits >= 0.5, label, rng.uniform(0.1, 1, n)


def test_metrics_are_those_of_scikit_learn_on_weighted_pairs_with_ties():
    logits, _, predicted, label, weight = given = scored()
    found = metrics.compute_metrics(*given)
    assert tuple(found) == metrics.NAMES
    probability, options = 1 / (1 + np.exp(-logits)), {"sample_weight": weight}
    expected = {
        "loss": reference.log_loss(label, probability, **options),
        "accuracy": reference.accuracy_score(label, predicted, **options),
        "precision": reference.precision_score(label, predicted, **options),
        "recall": reference.recall_score(label, predicted, **options),
        "f1": reference.f1_score(label, predicted, **options),
        "far": 1 - reference.recall_score(label, predicted, pos_label=0, **options),
        "roc_auc": reference.roc_auc_score(label, logits, **options),
        "brier": reference.brier_score_loss(label, probability, **options),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_rates_are_those_of_trying_every_threshold():
    logits, _, _, label, weight = given = scored()
    found = metrics.compute_metrics(*given)
    points = []
    for threshold in [np.inf, *np.unique(logits)[::-1]]:
        said = logits >= threshold
        far, tar = (weight[said & (label == k)].sum() / weight[label == k].sum() for k in (0, 1))
        points.append((far, tar))
    for rate in metrics.FALSE_ACCEPT_RATES:
        best = max(tar for far, tar in points if far <= rate)
        assert found[f"tar_at_far_{rate}"] == pytest.approx(best)
    for (far1, tar1), (far2, tar2) in itertools.pairwise(points):
        if far1 <= 1 - tar1 and far2 >= 1 - tar2:  # the two lines cross on the way
            t = (1 - tar1 - far1) / (far2 - far1 + tar2 - tar1)
            assert found["eer"] == pytest.approx(far1 + t * (far2 - far1))
            return
    raise AssertionError("no threshold where both errors are alike")


def test_metrics_of_a_case_worked_by_hand():
    logits, label = np.array([2.0, 1.0, -1.0, -2.0]), np.array([1.0, 0.0, 1.0, 0.0])
    weight = np.array([0.4, 0.3, 0.2, 0.1])
    found = metrics.compute_metrics(logits, np.ones(4), logits >= 0, label, weight)
    assert found["accuracy"] == pytest.approx(0.5)
    assert found["precision"] == pytest.approx(4 / 7)
    assert found["recall"] == pytest.approx(4 / 6)
    assert found["f1"] == pytest.approx(8 / 13)
    assert found["far"] == pytest.approx(3 / 4)
    assert found["roc_auc"] == pytest.approx(1 - 0.2 * 0.3 / (0.6 * 0.4))
    assert found["tar_at_far_0.1"] == pytest.approx(2 / 3)
    assert found["eer"] == pytest.approx(1 / 3)  # between (0, 2/3) and (3/4, 2/3)
    p = 1 / (1 + np.exp(-logits))
    assert found["ece"] == pytest.approx(np.abs(p - label) @ weight)  # each in a bin of its own


def test_a_bin_of_the_reliability_diagram_is_its_mean():
    probability, label = np.array([0.61, 0.65, 0.1, 1.0]), np.array([1.0, 0.0, 0.0, 1.0])
    expected, observed, total = metrics.calibration(probability, label, np.array([1, 3, 2, 2]))
    np.testing.assert_allclose(expected, [0.1, 0.64, 1.0])
    np.testing.assert_allclose(observed, [0, 0.25, 1])
    np.testing.assert_allclose(total, [2, 4, 2])


def test_metrics_of_one_class_of_no_positive_answer_and_of_equal_scores():
    one = np.ones(1)
    found = metrics.compute_metrics(np.array([-1.0]), one, np.array([False]), one, one)
    assert found["roc_auc"] is found["eer"] is found["tar_at_far_0.1"] is None
    assert (found["precision"], found["recall"], found["f1"], found["accuracy"]) == (0, 0, 0, 0)
    assert found["far"] == 0
    assert "roc_auc" not in metrics.intervals(-one, one, one == 0, one)
    few = np.array([1.0, 1, 1, 1, 1, 0]), np.ones(6), np.ones(6, bool), np.array([1.0] * 5 + [0])
    found_few = metrics.intervals(*few)  # of many resamples all pairs are the same
    assert "roc_auc" not in found_few and np.isfinite(list(found_few.values())).all()
    equal, label = np.zeros(4), np.array([1.0, 0, 1, 0])
    found = metrics.compute_metrics(equal, np.ones(4), equal >= 0, label, np.ones(4))
    assert found["roc_auc"] == found["eer"] == 0.5 and found["tar_at_far_0.1"] == 0


def test_perfect_answers_are_exactly_one_and_no_interval_is_given_where_nothing_varies():
    pairs = data.enumerate_pairs(default.get_config().data, "test", 10**6)
    logits = (2 * pairs.label - 1) * np.linspace(1, 2, len(pairs.label))
    given = logits, np.ones(len(logits)), logits >= 0, pairs.label, pairs.weight
    found = metrics.compute_metrics(*given)
    for name in metrics.NAMES:
        if name not in ("loss", "brier", "ece"):
            assert found[name] == (name not in ("eer", "far")), name
    assert set(metrics.intervals(*given[:4])) == {"accuracy", "brier", "ece"}


@pytest.mark.slow
def test_intervals_cover_the_truth_as_often_as_they_say():
    """Of samples of a population whose metrics are known; 95 % of 60 is 57, below 50 a miracle."""
    truth = metrics.compute_metrics(*scored(1, 200_000, ties=False))
    covered = dict.fromkeys(metrics.NAMES, 0)
    for seed in range(60):
        *given, _ = scored(100 + seed, 400, ties=False)
        for name, (low, high) in metrics.intervals(*given).items():
            covered[name] += low <= truth[name] <= high
    # Few pairs have so few false accepts, and an error of calibration is never below 0.
    biased = {"ece", "tar_at_far_0.001", "tar_at_far_0.01"}
    assert {name for name, count in covered.items() if count < 50} <= biased


@pytest.mark.parametrize("wrong", [0, 10])
def test_the_interval_of_the_accuracy_is_wilsons(wrong):
    label, logits = np.arange(100) % 2 == 1, np.where(np.arange(100) % 2, 1.0, -1.0)
    predicted = label ^ (np.arange(100) < wrong)
    low, high = metrics.intervals(logits, np.ones(100), predicted, label.astype(float))["accuracy"]
    z, p, n = stats.norm.ppf(0.975), 1 - wrong / 100, 100
    centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert (low, high) == pytest.approx(
        ((centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n))
    )


@pytest.mark.parametrize("far", [None, 0.2, 0.0])
def test_a_fitted_threshold_is_the_best_there_is(far):
    logits, losses, _, label, weight = scored()
    logits = 20 * logits  # no probability tells these apart
    threshold = metrics.fit_threshold(logits, label, weight, far)

    def at(threshold):
        found = metrics.compute_metrics(logits, losses, logits >= threshold, label, weight)
        false = weight[(logits >= threshold) & (label == 0)].sum() / weight[label == 0].sum()
        return found, false

    levels = np.unique(logits)
    edges = [-1e3, *(levels[1:] + levels[:-1]) / 2, 1e3]
    if far is None:
        assert at(threshold)[0]["accuracy"] == max(at(edge)[0]["accuracy"] for edge in edges)
    else:
        allowed = [at(edge)[0]["recall"] for edge in edges if at(edge)[1] <= far + 1e-9]
        assert at(threshold)[1] <= far + 1e-9 and at(threshold)[0]["recall"] == max(allowed)
    assert np.abs(levels - threshold).min() > 1e-3  # not on a score


def listed_pairs(first, second, label, weight, ordered=True):
    every = map(np.array, ([None] * 9, first, second, label, weight))
    return Pairs(*every, True, ordered, None)


def test_pairs_are_counted_once_and_only_where_two_images_can_occur():
    given = [0, 1, 2, 2, 4, 5, 8], [1, 0, 2, 3, 4, 6, 7], [0, 0, 0, 1, 1, 0, 0]
    pairs = listed_pairs(*given, [1, 1, 1, 1, 1, 0, 1])
    assert metrics.count_pairs(pairs) == (2, 1)  # different: 0 and 1, 8 and 7; same: 2 and 3
    random = np.random.default_rng(0)
    first, second = random.integers(0, 9, (2, 60))
    label, weight = random.integers(0, 2, 60), random.integers(0, 2, 60)
    sets = [set(), set()]
    for a, b, same, can in zip(first, second, label, weight, strict=True):
        if can and a != b:
            sets[same].add(frozenset((a, b)))
    pairs = listed_pairs(first, second, label, weight)
    assert metrics.count_pairs(pairs) == tuple(map(len, sets))
    shown = data.enumerate_pairs(default.get_config().data, "test", 10**6)
    assert metrics.count_pairs(shown) == (44 * 52, (44 * 43 + 52 * 51) // 2)


def test_a_rate_needs_so_many_pairs_that_one_of_them_is_no_more():
    assert metrics.unmeasured(1000) == []
    assert metrics.unmeasured(999) == metrics.unmeasured(100) == ["tar_at_far_0.001"]
    assert metrics.unmeasured(99) == ["tar_at_far_0.01", "tar_at_far_0.001"]
    assert len(metrics.unmeasured(10)) == 2 and len(metrics.unmeasured(9)) == 3


def test_a_threshold_is_not_fitted_to_a_rate_that_the_pairs_cannot_show():
    first = np.arange(1, 600)
    pairs = listed_pairs(0 * first, first, first > 499, first)
    for far, count in ((0.00001, "100,000"), (0.002, "500")):
        with pytest.raises(UserError) as caught:
            metrics.fitting_pairs(pairs, far)
        text = f"--threshold=far:{far:g} needs {count} different pairs, validation has 499"
        assert str(caught.value) == f"{text}; wanted: 1/499 or more"
    for far in (None, 0.1, 0.00200401):
        text = "fitted on 100 same and 499 different pairs of validation"
        assert metrics.fitting_pairs(pairs, far) == text


def few_classes(n=24, k=4):
    """(Scores, Pairs) of every two images of k classes, whose answers depend on both classes."""
    rng = np.random.default_rng(0)
    classes, (first, second) = np.sort(rng.integers(0, k, n)), np.triu_indices(n, 1)
    label = np.float64(classes[first] == classes[second])
    effect = rng.normal(size=(k, k))[classes[first], classes[second]]
    logits = np.round(rng.normal(2 * label + effect), 1)
    kinds = classes[first] * k + classes[second]
    weight = np.where(label == 1, 0.3 / label.sum(), 0.7 / (1 - label).sum())
    weight *= 1 + kinds / 10
    weight /= weight.sum()
    shown = np.zeros((n, 1)), first, second, label, weight, True, False, 7 + classes
    return Scores(logits, -logits, logits >= 0.5, label), Pairs(*shown)


def test_intervals_over_classes_are_those_of_sets_with_copies_of_classes():
    scores, pairs = few_classes()
    classes, share = pairs.class_ids - 7, pairs.weight @ pairs.label
    resamples = []
    draws = np.random.default_rng(0).multinomial(4, [0.25] * 4, metrics.RESAMPLES)
    for draw in draws:
        rows, kinds = [], np.repeat(np.arange(4), draw)  # a class as often as it is drawn
        for i, j in itertools.combinations_with_replacement(range(4), 2):
            wanted = [[kinds[i], kinds[j]], [kinds[j], kinds[i]]]
            both = np.stack([classes[pairs.first], classes[pairs.second]], axis=1)
            if i == j or kinds[i] != kinds[j]:  # no copy is compared with another
                found = (both[:, None] == wanted).all(axis=2).any(axis=1)
                rows += np.flatnonzero(found).tolist()
        label, weight = scores.label[rows], pairs.weight[rows]
        if label.all():
            continue
        weight *= np.where(label, share / weight[label == 1].sum(),
                           (1 - share) / weight[label == 0].sum())  # fmt: skip
        given = scores.logits[rows], np.ones(len(rows)), scores.predicted[rows], label, weight
        resamples.append(metrics.compute_metrics(*given))
    assert len(resamples) < metrics.RESAMPLES  # in some there is one class
    found = metrics.class_intervals(scores, pairs)
    assert {"accuracy", "recall", "far", "eer", "roc_auc", "tar_at_far_0.1"} <= set(found)
    for name, bounds in found.items():
        expected = np.quantile([one[name] for one in resamples], (0.025, 0.975))
        assert bounds == pytest.approx(expected), name


def test_of_many_pairs_some_are_drawn_by_their_weight(monkeypatch):
    scores, pairs = few_classes(150)
    whole = metrics.class_intervals(scores, pairs)
    monkeypatch.setattr(metrics, "MOST_RESAMPLED", 10_000)
    part = metrics.class_intervals(scores, pairs)
    assert part != whole
    for name in ("accuracy", "eer", "roc_auc"):
        assert part[name] == pytest.approx(whole[name], abs=0.05)
    weight = np.array([0.0, 0.5, 0.1, 0.4, 0])
    rows, weights = metrics.draw_rows(np.repeat(weight, 4000) / 4000, 10_000)
    assert np.bincount(rows // 4000) / 10_000 == pytest.approx(weight[:4], abs=0.02)
    assert (weights == 1 / 10_000).all()
    rows, weights = metrics.draw_rows(weight, 5)
    assert rows.tolist() == [0, 1, 2, 3, 4] and weights is weight
