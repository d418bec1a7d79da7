"""Rules that know nothing of shape: how often each is right on test pairs (NumPy, scikit-learn).

A network that is right no more often than one of them need not have learnt what it was meant to.
"""

import numpy as np

import data
from metrics import fit_threshold

TRAIN_PAIRS, TEST_PAIRS = 10_000, 5000  # that rules are fitted on and asked about, at most
MOST_PIXELS = 2**27  # of the images of these pairs, in all
CONSTANT = "always the same answer"


def blind_rules(config, train, test):
    """How often each rule, fitted on Pairs of training, is right on test pairs: {name: share}."""
    from sklearn.ensemble import RandomForestClassifier  # it finds any dependence on a few numbers
    from sklearn.neighbors import KNeighborsClassifier

    share = test.label @ test.weight
    rules = {CONSTANT: float(max(share, 1 - share))}
    asked, known = (questions(pairs, config.data.source == "shapes") for pairs in (test, train))
    for name, numbers in known.items():
        model = RandomForestClassifier(50, min_samples_leaf=3, n_jobs=-1, random_state=0)
        model.fit(numbers, train.label, train.weight)
        rules[name] = accuracy(model.predict(asked[name]), test)
    asked, known = pixel_scores(test), pixel_scores(train)
    for name, scores in known.items() if len(np.unique(train.label)) == 2 else ():
        threshold = fit_threshold(scores, train.label, train.weight)
        rules[name] = accuracy(asked[name] >= threshold, test)
    if train.class_ids is not None:  # of the training image that is nearest in pixels
        known, asked = (grey(p.images).reshape(len(p.images), -1) for p in (train, test))
        said = KNeighborsClassifier(1).fit(known, train.class_ids).predict(asked)
        rules["nearest training image"] = accuracy(said[test.first] == said[test.second], test)
    return rules


def take_pairs(config, split):
    """All Pairs of a split, each two images once, or a sample where they are many."""
    most = MOST_PIXELS // (2 * config.data.image_size**2)
    most = max(100, min(most, TRAIN_PAIRS if split == "train" else TEST_PAIRS))
    return data.enumerate_pairs(config.data, split, most) or data.sample_pairs(config, split, most)


def accuracy(answers, pairs):
    """The share of Pairs that the answers [m] are right on."""
    return float((answers == pairs.label) @ pairs.weight)


def questions(pairs, drawn):
    """What forests are asked about each pair, of drawn shapes or of pictures: {name: [m, 3 k]}."""
    light = grey(pairs.images)
    if drawn:
        area, lit = light.sum(axis=(1, 2)), light > 0.5
        box = lit.any(axis=1).sum(axis=1) * lit.any(axis=2).sum(axis=1)
        found = {"lit area of both": area, "parity of the area": np.rint(area) % 2}
        found["area of the bounding box"] = box
    else:
        name = "mean colour of both" if pairs.images.shape[-1] > 1 else "brightness of both"
        found = {name: pairs.images.mean(axis=(1, 2), dtype=np.float32)}
        found["contrast of both"] = light.std(axis=(1, 2))
    for name, numbers in found.items():
        two = numbers.reshape(len(light), -1)[np.stack([pairs.first, pairs.second])]
        low, high = np.sort(two, axis=0)
        found[name] = np.concatenate([low, high, high - low], axis=1)
    return found


def grey(shown):
    """Brightness of each pixel, float32 [n, height, width], 0 ... 1."""
    return shown.mean(axis=-1, dtype=np.float32) / 255


def pixel_scores(pairs):
    """How alike the pixels of both images of each pair are: {name: float [m]}, higher is more.

    The sums are of whole numbers, so they are exact and equal images tie.
    """
    first, second, products = pairs.first, pairs.second, np.zeros(len(pairs.first))
    flat = pairs.images.reshape(len(pairs.images), -1)
    order = np.argsort(first, kind="stable")
    starts = np.unique(first[order], return_index=True)[1]  # of the pairs of each image 1
    for some in np.split(order, starts[64::64]):
        both = [np.unique(one[some], return_inverse=True) for one in (first, second)]
        one, other = (flat[rows].astype(float) for rows, _ in both)
        products[some] = (one @ other.T)[both[0][1], both[1][1]]
    total = flat.sum(axis=1, dtype=float)
    square = np.array([np.square(row, dtype=float).sum() for row in flat])
    distance = np.sqrt(square[first] + square[second] - 2 * products)
    spread = np.sqrt(np.maximum(square - total**2 / flat.shape[1], 0))
    correlation = products - total[first] * total[second] / flat.shape[1]
    correlation /= np.maximum(spread[first] * spread[second], 1)
    return {"L2 distance of pixels": -distance, "correlation of pixels": correlation}
