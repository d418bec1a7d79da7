"""Rules that know nothing of shape: how often each is right on test pairs (NumPy, scikit-learn).

A network that is right no more often than one of them need not have learnt what it was meant to.
"""

import numpy as np

import data
from metrics import fit_threshold, ranking_metrics

TRAIN_PAIRS, TEST_PAIRS = 10_000, 5000  # that rules are fitted on and asked about, at most
MOST_PIXELS = 2**27  # of the images of these pairs, in all
CONSTANT = "always the same answer"


def blind_rules(config, train, test):
    """How often each rule is right on test pairs, and what else there is to say of it.

    train, test: Pairs of `each_pair_once`; rules are fitted on train. Returns ({name: accuracy},
    the constant answer first; {name: text}).
    """
    share = test.label @ test.weight
    rules, notes = {CONSTANT: float(max(share, 1 - share))}, {}
    measures = shape_measures if config.data.source == "shapes" else picture_measures
    asked = forest_questions(test, measures)
    for name, numbers in forest_questions(train, measures).items():
        rules[name] = forest(numbers, train, asked[name], test)
    both = all(len(np.unique(pairs.label)) == 2 for pairs in (train, test))
    asked = pixel_scores(test)
    for name, scores in pixel_scores(train).items() if both else ():
        threshold = fit_threshold(scores, train.label, train.weight)
        rules[name] = accuracy(asked[name] >= threshold, test)
        found = ranking_metrics(asked[name], test.label, test.weight)
        notes[name] = f" (EER {100 * found['eer']:.1f} %, AUC {found['roc_auc']:.3f})"
    rules["best single pixel"] = single_pixel(train, test)
    if knows_classes(config):
        rules["nearest training image"] = nearest_image(train, test)
    return rules, notes


def each_pair_once(config, split):
    """All Pairs of a split, or a sample of more; (a, b) and (b, a) are one of the weight of both.

    Pairs of a small set would be drawn often, and a forest would learn them by heart.
    """
    most = MOST_PIXELS // (2 * config.data.image_size**2)
    most = max(100, min(most, TRAIN_PAIRS if split == "train" else TEST_PAIRS))
    pairs = data.enumerate_pairs(config.data, split, most, ordered=False)
    if pairs is not None:
        return pairs
    pairs = data.sample_pairs(config, split, most)
    low, high = np.sort([pairs.first, pairs.second], axis=0)
    numbers = low * len(pairs.images) + high
    _, once, times = np.unique(numbers, return_index=True, return_counts=True)
    label = pairs.label[once]
    return pairs._replace(first=low[once], second=high[once], label=label, weight=times / most)


def knows_classes(config):
    """Whether an image has a class: not in a list of pairs, nor where pixels are compared."""
    return config.data.source != "pairs" and config.data.same_as != "pixels"


def accuracy(answers, pairs):
    """The share of Pairs that the answers [m] are right on."""
    return float((answers == pairs.label) @ pairs.weight)


def forest_questions(pairs, measures):
    """What forests are asked about each pair, and knows nothing of shape: {name: [m, k]}."""
    result, places = {}, (pairs.first, pairs.second)
    for name, numbers in measures(pairs.images).items():
        low, high = np.sort([numbers[place] for place in places], axis=0)
        result[name] = np.concatenate([low, high, high - low], axis=1)
    light = grey(pairs.images)
    blocks = np.split(np.stack(places), range(1000, len(places[0]), 1000), axis=1)
    apart = [np.abs(light[one] - light[other]).mean(axis=(1, 2)) for one, other in blocks]
    return result | {"|image 1 - image 2|": np.concatenate(apart)[:, None]}


def shape_measures(shown):
    """Numbers of each image of a shape: {name: [n, 1]}."""
    light = grey(shown)
    area, shape = light.sum(axis=(1, 2)), lit(light)
    box = shape.any(axis=1).sum(axis=1) * shape.any(axis=2).sum(axis=1)
    return {
        "lit area of both": area[:, None],
        "parity of the area": np.rint(area)[:, None] % 2,
        "area of the bounding box": box[:, None],
    }


def picture_measures(shown):
    """Numbers of each image that is a picture: {name: [n, k]}."""
    name = "mean colour of both" if shown.shape[-1] > 1 else "brightness of both"
    return {
        name: shown.mean(axis=(1, 2), dtype=np.float32),
        "contrast of both": grey(shown).std(axis=(1, 2))[:, None],
    }


def grey(shown):
    """Brightness of each pixel, float32 [n, height, width], 0 ... 1."""
    return shown.mean(axis=-1, dtype=np.float32) / 255


def lit(light):
    """Pixels nearer to the brightest than to the darkest of their image: bool, as `grey`."""
    low, high = light.min(axis=(1, 2)), light.max(axis=(1, 2))
    return light > ((low + high) / 2)[:, None, None]


def forest(numbers, train, asked, test):
    """Accuracy of a random forest: it finds any dependence on a few numbers."""
    from sklearn.ensemble import RandomForestClassifier

    model = RandomForestClassifier(50, min_samples_leaf=3, n_jobs=-1, random_state=0)
    model.fit(numbers, train.label, train.weight)
    return accuracy(model.predict(asked), test)


def pixel_scores(pairs):
    """How alike the pixels of both images of each pair are: {name: float [m]}, higher is more."""
    found = []
    for start in range(0, len(pairs.label), 1000):
        rows = (place[start : start + 1000] for place in (pairs.first, pairs.second))
        one, other = (pairs.images[i].reshape(len(i), -1).astype(np.float32) for i in rows)
        distance = np.linalg.norm(one - other, axis=1)
        one, other = (x - x.mean(axis=1, keepdims=True) for x in (one, other))
        lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        found.append((-distance, (one * other).sum(axis=1) / np.maximum(lengths, 1)))
    distance, correlation = np.concatenate(found, axis=1)
    return {"L2 distance of pixels": distance, "correlation of pixels": correlation}


def single_pixel(train, test):
    """Accuracy of the best answer to whether one pixel is lit in neither, one or both images."""

    def lit_in(pairs):
        shown = lit(grey(pairs.images)).reshape(len(pairs.images), -1)
        return shown[pairs.first].astype(np.int8) + shown[pairs.second]

    seen = lit_in(train)
    weights = np.stack([train.weight * train.label, train.weight]).astype(np.float32)
    same, every = np.stack([weights @ (seen == k) for k in range(3)], axis=1)
    best = np.maximum(same, every - same).sum(axis=0).argmax()
    answer = 2 * same[:, best] >= every[:, best]
    return accuracy(answer[lit_in(test)[:, best]], test)


def nearest_image(train, test):
    """Accuracy of giving each test image the class of the training image nearest in pixels."""
    known, asked = (grey(pairs.images).reshape(len(pairs.images), -1) for pairs in (train, test))
    lengths = (known**2).sum(axis=1)
    blocks = np.array_split(asked, 10)
    nearest = [(lengths - 2 * block @ known.T).argmin(axis=1) for block in blocks]
    said = train.class_ids[np.concatenate(nearest)]
    return accuracy(said[test.first] == said[test.second], test)
