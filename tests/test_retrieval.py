import numpy as np
import pytest
from sklearn.metrics import average_precision_score

import metrics
import retrieval
from errors import UserError
from spaces import Pairs


def scored(classes, levels=None, seed=0):
    """Scores of images, float32 [n, n]: higher within a class; of so many levels where named."""
    random = np.random.default_rng(seed)
    scores = random.normal(size=(len(classes),) * 2) + (classes[:, None] == classes)
    scores = scores if levels is None else np.digitize(scores, np.linspace(-1, 2, levels - 1))
    return np.where(np.eye(len(classes)), -np.inf, scores).astype(np.float32)


def ranked(scores, classes):
    """Of a query: [names] of the classes in the order of the scores, as a list defines them."""
    right = np.array(classes)[np.argsort(-np.array(scores), kind="stable")]
    places = np.flatnonzero(right) + 1
    hits = [right[:k].any() for k in retrieval.NEAREST]
    return [*hits, np.mean(np.arange(1, len(places) + 1) / places)]


def test_retrieval_is_that_of_a_ranked_list_and_of_scikit_learn():
    classes = np.random.default_rng(1).integers(0, 6, 60)
    classes[7] = 9  # alone in its class
    scores = scored(classes)
    found = retrieval.retrieve(scores, classes)
    assert np.isnan(found[:, 7]).all() and np.isnan(found).sum() == 3
    for query in {*range(60)} - {7}:
        others = np.arange(60) != query
        one, right = scores[query][others], classes[others] == classes[query]
        np.testing.assert_allclose(found[:, query], ranked(one, right))
        assert found[2, query] == pytest.approx(average_precision_score(right, one))


def test_equal_scores_are_in_a_random_order():
    """Of 2,000 queries the mean is that over every order, within five standard errors."""
    classes = np.tile(np.arange(1000), 2)
    levels = np.random.default_rng(0).integers(0, 2, (2000, 2000)).astype(np.float32)
    scores = np.where(classes[:, None] == classes, np.float32(1), levels)
    scores[np.diag_indices(2000)] = -np.inf
    recall1, recall5, _ = retrieval.retrieve(scores, classes)
    ties = (scores == 1).sum(axis=1)
    for k, found in ((1, recall1), (5, recall5)):
        chance = k / ties
        error = np.sqrt((chance * (1 - chance)).sum()) / 2000
        assert abs(found.mean() - chance.mean()) < 5 * error


def test_one_answer_to_everything_is_as_good_as_chance():
    classes = np.repeat(np.arange(4), 500)
    equal = np.where(np.eye(2000), -np.inf, 0).astype(np.float32)
    recall1, _, precision = retrieval.retrieve(equal, classes)
    assert recall1.mean() == pytest.approx(499 / 1999, abs=0.05)  # five standard errors
    assert precision.mean() == pytest.approx(0.25, abs=0.01)
    *episodes, _ = retrieval.draw_episodes(classes, np.array(["a"] * 4), 3, 2, seed=0)
    error, (low, high) = retrieval.few_shot(lambda a, b: equal[a, b], *episodes)
    assert (error, low, high) == pytest.approx((2 / 3, 2 / 3, 2 / 3))


def test_of_pairs_every_image_is_asked_with_every_other():
    classes = np.repeat(np.arange(4), 5)
    scores = scored(classes) + scored(classes).T
    first, second = np.triu_indices(20, 1)
    label = np.float64(classes[first] == classes[second])
    given = np.zeros((20, 1)), first, second, label, label / label.sum(), True, False
    pairs = Pairs(*given, 10 + classes)  # the ids of classes begin anywhere
    means, bounds = retrieval.measure(pairs, scores[first, second])
    found = retrieval.retrieve(scores, classes)
    assert [means[name] for name in retrieval.NAMES] == pytest.approx(found.mean(axis=1))
    assert means["queries"] == 20
    draws = np.random.default_rng(0).multinomial(4, [0.25] * 4, metrics.RESAMPLES)
    repeated = [found[2][np.repeat(np.arange(20), d[classes])].mean() for d in draws]
    assert bounds["map"] == pytest.approx(np.quantile(repeated, (0.025, 0.975)))


def test_few_shot_is_that_of_asking_one_query_after_the_other(monkeypatch):
    monkeypatch.setattr(retrieval, "EPISODES", 100)
    classes = np.random.default_rng(2).permutation(np.repeat(np.arange(14), 4))
    classes = np.append(classes[classes != 13][:-1], 13)  # one image of the last class
    groups = np.array(["a"] * 6 + ["b"] * 5 + ["c"] * 3)
    scores = scored(classes, levels=6)
    *episodes, facts = retrieval.draw_episodes(classes, groups, way=5, shot=2, seed=3)
    assert facts == [
        "2 groups of classes",
        "left out: 1 groups of fewer classes (c)",
        "left out: 1 classes of fewer than 3 images",
    ]
    wrong = np.zeros((retrieval.EPISODES, 5))
    shown = []
    for e, (queries, supports) in enumerate(zip(*episodes, strict=True)):
        shown += classes[queries].tolist()
        assert len({*groups[classes[queries]]}) == 1 and len({*classes[queries]}) == 5
        assert (classes[supports] == classes[queries][:, None]).all()
        assert len({*queries, *supports.ravel()}) == 15
        for i, query in enumerate(queries):
            means = [np.mean([scores[query, s] for s in kind]) for kind in supports]
            best = np.flatnonzero(np.isclose(means, max(means)))
            wrong[e, i] = 1 - (i in best) / len(best)
    assert {*shown} == {*range(11)}
    error, (low, high) = retrieval.few_shot(lambda a, b: scores[a, b], *episodes)
    assert error == pytest.approx(wrong.mean())
    assert high - low == pytest.approx(2 * 1.96 * wrong.mean(axis=1).std(ddof=1) / 10)
    again = retrieval.draw_episodes(classes, groups, 5, 2, 3)
    other = retrieval.draw_episodes(classes, groups, 5, 2, 4)
    assert (again[0] == episodes[0]).all() and (other[0] != episodes[0]).any()
    text = r"^--way=7: the split has at most 6 classes of 3 images or more in one folder$"
    with pytest.raises(UserError, match=text):
        retrieval.draw_episodes(classes, groups, 7, 2, 3)


@pytest.mark.parametrize("classes", [[0, 0, 1, 2], [0, 1, 2, 3]])
def test_of_classes_with_one_image_nothing_is_asked(classes):
    classes = np.array(classes)
    first, second = np.triu_indices(4, 1)
    label = np.float64(classes[first] == classes[second])
    pairs = Pairs(np.zeros((4, 1)), first, second, label, label + 1, True, False, classes, None)
    means, _ = retrieval.measure(pairs, label)
    asked = 2 * (classes[1] == 0)
    assert means == dict.fromkeys(retrieval.NAMES, 1 if asked else None) | {"queries": asked}
