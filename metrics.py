"""Metrics of scored pairs, as README.md defines them. "Same" is the positive class.

scipy.stats and scikit-learn are imported in functions: each takes a second.
"""

import math
from functools import partial

import numpy as np
from scipy.special import expit

from errors import UserError

FALSE_ACCEPT_RATES = (0.1, 0.01, 0.001)
CALIBRATION_BINS = 15  # of equal width, in the probability of "same"
RESAMPLES = 200
FEWEST = 4  # classes, or pairs, that are resampled; of fewer there are no intervals
MOST_RESAMPLED = 100_000  # pairs of intervals over classes; of more so many are drawn
RANKING = ("roc_auc", "eer", *(f"tar_at_far_{rate}" for rate in FALSE_ACCEPT_RATES))
OF_CLASSES = ("accuracy", "recall", "far", *RANKING)  # those with intervals over classes
NAMES = ("loss", "accuracy", "precision", "recall", "f1", "far", *RANKING, "brier", "ece")


def compute_metrics(logits, losses, predicted, label, weight):
    """{name: float} for NAMES, of a whole set of n weighted pairs, not a mean over batches.

    All arrays are [n]; label is 1 (same) or 0, predicted ("same") is bool. Precision, recall, F1
    and FAR are 0 where they would be 0 / 0. RANKING is None where all pairs are of one kind.
    """
    same, total = label == 1, weight.sum()

    def share(chosen, of):
        whole = weight[of].sum()
        return float(weight[chosen].sum() / whole) if whole else 0.0

    hits, probability = same & predicted, expit(logits)
    precision, recall = share(hits, predicted), share(hits, same)
    expected, observed, sizes = calibration(probability, label, weight)
    return {
        "loss": float(losses @ weight / total),
        "accuracy": float(weight[same == predicted].sum() / total),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if precision else 0.0,
        "far": share(predicted & ~same, ~same),
        **ranking_metrics(logits, label, weight),
        "brier": float((probability - label) ** 2 @ weight / total),
        "ece": float(np.abs(expected - observed) @ sizes / total),  # expected calibration error
    }


def ranking_metrics(logits, label, weight):
    """{name: float} for RANKING: the metrics that depend on the order of the logits alone.

    The equal error rate is interpolated between the two nearest points of the ROC.
    """
    from sklearn.metrics import auc, roc_curve

    if len(np.unique(label[weight > 0])) < 2:
        return dict.fromkeys(RANKING)
    far, tar, _ = roc_curve(label, logits, sample_weight=weight, drop_intermediate=False)
    eer = np.interp(0, far - (1 - tar), far)
    tars = (tar[far <= rate + 1e-12].max() for rate in FALSE_ACCEPT_RATES)
    return dict(zip(RANKING, map(float, (auc(far, tar), eer, *tars)), strict=True))


def count_pairs(pairs):
    """(different, same): how many unordered pairs of two images can occur, of spaces.Pairs."""
    can = (pairs.weight > 0) & (pairs.first != pairs.second)
    same = pairs.label[can] == 1
    if pairs.ordered:
        same = np.unique(2 * unordered(pairs)[can] + same) % 2
    return tuple(map(int, np.bincount(same, minlength=2)))


def unordered(pairs):
    """A number for each pair, int64 [m]: (a, b) and (b, a) have the same."""
    low, high = (f(pairs.first, pairs.second) for f in (np.minimum, np.maximum))
    return low * len(pairs.images) + high


def unmeasured(different):
    """Names of the TARs at a FAR that so few different pairs cannot show: the lowest is 1 / n."""
    return [f"tar_at_far_{rate}" for rate in FALSE_ACCEPT_RATES if different * rate < 1]


def calibration(probability, label, weight):
    """Reliability diagram: (mean probability, frequency of "same", weight) of each bin in use."""
    bins = np.minimum((probability * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    total = np.bincount(bins, weight)
    used = total > 0
    sums = (np.bincount(bins, weight * values)[used] for values in (probability, label))
    return *(values / total[used] for values in sums), total[used]


def intervals(logits, losses, predicted, label):
    """`bootstrap` of n independently drawn pairs.

    The accuracy has Wilson's interval, which is right where few answers are wrong, or none.
    """
    from scipy.stats import binomtest

    found = bootstrap(len(label), partial(compute_metrics, logits, losses, predicted, label))
    right = int((predicted == (label == 1)).sum())
    wilson = binomtest(right, len(label)).proportion_ci(method="wilson")
    return found | {"accuracy": (float(wilson.low), float(wilson.high))}


def bootstrap(n, measure):
    """95 % intervals, {name: (low, high)}, of the metrics of n things drawn with replacement.

    measure: how often each is drawn, int [n] -> {name: float, or None where unknown}. Percentiles
    of the bootstrap (Efron 1979); a metric that is the same in each resample has none, nor
    has any of fewer than FEWEST things.
    """
    if n < FEWEST:
        return {}
    random, found = np.random.default_rng(0), {}
    resamples = [measure(random.multinomial(n, np.full(n, 1 / n))) for _ in range(RESAMPLES)]
    for name in resamples[0]:
        values = [one[name] for one in resamples if one[name] is not None]
        if len(values) > 0.95 * RESAMPLES:  # else too few pairs are of one kind
            low, high = map(float, np.quantile(values, (0.025, 0.975)))
            found |= {name: (low, high)} if high - low > 1e-9 else {}
    return found


def draw_rows(weight, most):
    """(rows, their weights) of m weighted pairs: all, or so many drawn by weight [m], sum 1."""
    if len(weight) <= most:
        return np.arange(len(weight)), weight
    rows = np.random.default_rng(0).choice(len(weight), most, p=weight / weight.sum())
    return rows, np.full(most, 1 / most)


def class_intervals(scores, pairs):
    """`bootstrap` of OF_CLASSES over classes, since pairs that share one depend on it.

    A pair of two classes counts as often as both are drawn, multiplied (Snijders & Borgatti 1999),
    and a pair of one class as often as that (Bolle, Ratha & Pankanti 2004). The shares of "same"
    and "different" stay as they are.
    """
    rows, weight = draw_rows(pairs.weight, MOST_RESAMPLED)
    order = np.argsort(scores.logits[rows])  # sorted logits are faster to sort again
    rows, weight = rows[order], weight[order]
    classes = np.unique(pairs.class_ids, return_inverse=True)[1]
    class1, class2 = classes[pairs.first[rows]], classes[pairs.second[rows]]
    logits, predicted, label = scores.logits[rows], scores.predicted[rows], scores.label[rows]
    same, share = label == 1, pairs.weight @ pairs.label
    right, hits, false = predicted == same, predicted & same, predicted & ~same

    def measure(counts):
        drawn = weight * counts[class1] * np.where(same, 1, counts[class2])
        of_same, of_different = drawn[same].sum(), drawn[~same].sum()
        if not (of_same and of_different):
            return dict.fromkeys(OF_CLASSES)
        drawn *= np.where(same, share / of_same, (1 - share) / of_different)
        rates = drawn @ right, drawn @ hits / share, drawn @ false / (1 - share)
        ranking = ranking_metrics(logits, label, drawn)
        return dict(zip(OF_CLASSES, (*rates, *ranking.values()), strict=True))

    return bootstrap(classes.max() + 1, measure)


def fitting_pairs(pairs, far=None):
    """What `fit_threshold` fits to, in words; raises UserError if `far` needs more pairs."""
    different, same = count_pairs(pairs)
    if not (same and different):
        raise UserError("--threshold: validation has pairs of one kind only")
    if far and different < (needed := math.ceil(1 / far)):
        text = f"needs {needed:,} different pairs, validation has {different:,}"
        raise UserError(f"--threshold=far:{far:g} {text}; wanted: 1/{different} or more")
    return f"fitted on {same:,} same and {different:,} different pairs of validation"


def fit_threshold(logits, label, weight, far=None):
    """The threshold as a logit: of best accuracy, or of best TAR with a FAR of at most `far`.

    It is half way to the next logit, so that small numerical differences change no answer.
    """
    from sklearn.metrics import roc_curve

    false, true, edges = roc_curve(label, logits, sample_weight=weight, drop_intermediate=False)
    if far is None:
        positive = weight[label == 1].sum() / weight.sum()
        best = np.argmax(positive * true + (1 - positive) * (1 - false))
    else:
        best = np.flatnonzero(false <= far + 1e-12)[-1]
    lower = edges[best + 1] if best + 1 < len(edges) else edges[best] - 1
    upper = edges[best] if np.isfinite(edges[best]) else lower + 1
    return float((upper + lower) / 2)
