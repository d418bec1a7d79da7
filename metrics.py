"""Metrics of scored pairs. "Same" is the positive class, and a false accept is a wrong "same".

FAR is the share of "different" pairs that are called "same"; TAR (recall) is the share of "same"
pairs that are called "same". SciPy's and scikit-learn's parts are imported in functions: each takes
a second.
"""

import math

import numpy as np
from scipy.special import expit

from errors import UserError

FALSE_ACCEPT_RATES = (0.1, 0.01, 0.001)
CALIBRATION_BINS = 15  # of equal width, in the probability of "same"
RESAMPLES = 200
MOST_RESAMPLED = 100_000  # pairs of intervals over classes; of more so many are drawn
RANKING = ("roc_auc", "eer", *(f"tar_at_far_{rate}" for rate in FALSE_ACCEPT_RATES))
NAMES = ("loss", "accuracy", "precision", "recall", "f1", *RANKING, "brier", "ece")


def compute_metrics(logits, losses, predicted, label, weight):
    """{name: float} for NAMES, of a whole set of n weighted pairs, not a mean over batches.

    All arrays are [n]: logits, losses, label (1: same, 0: different) and weight are numbers,
    predicted ("same") is bool. Precision, recall and F1 are 0 where they would be 0 / 0. RANKING
    is None where all pairs are of one kind.
    """
    same, total = label == 1, weight.sum()

    def share(chosen):
        return float(weight[chosen].sum() / total)

    def ratio(part, whole):
        return part / whole if whole else 0.0

    hits, misses = share(same & predicted), share(same & ~predicted)
    false_accepts = share(~same & predicted)
    probability = expit(logits)
    return {
        "loss": float(losses @ weight / total),
        "accuracy": share(same == predicted),
        "precision": ratio(hits, hits + false_accepts),
        "recall": ratio(hits, hits + misses),
        "f1": ratio(2 * hits, 2 * hits + false_accepts + misses),
        **ranking_metrics(logits, label, weight),
        "brier": float((probability - label) ** 2 @ weight / total),
        "ece": calibration_error(probability, label, weight),
    }


def ranking_metrics(logits, label, weight):
    """{name: float} for RANKING: the metrics that depend on the order of the logits alone.

    The equal error rate is interpolated between the two nearest points of the ROC. TAR at a FAR is
    the highest TAR of all thresholds with at most this FAR.
    """
    from sklearn.metrics import roc_curve

    if len(np.unique(label[weight > 0])) < 2:
        return dict.fromkeys(RANKING)
    return of_curve(*roc_curve(label, logits, sample_weight=weight, drop_intermediate=False)[:2])


def of_curve(far, tar):
    """As `ranking_metrics`, of the points of a ROC from (0, 0) to (1, 1)."""
    from sklearn.metrics import auc

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
    """{name: how many different pairs it needs} of each TAR at a FAR that so few cannot show.

    Of n pairs the lowest FAR above 0 is 1 / n.
    """
    needs = {f"tar_at_far_{rate}": math.ceil(1 / rate) for rate in FALSE_ACCEPT_RATES}
    return {name: count for name, count in needs.items() if different < count}


def calibration(probability, label, weight):
    """Reliability diagram: (mean probability, frequency of "same", weight) of each bin in use."""
    bins = np.minimum((probability * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    total = np.bincount(bins, weight)
    used = total > 0
    sums = (np.bincount(bins, weight * values)[used] for values in (probability, label))
    return *(values / total[used] for values in sums), total[used]


def calibration_error(probability, label, weight):
    """Expected calibration error: mean distance of `calibration` from the diagonal."""
    expected, observed, total = calibration(probability, label, weight)
    return float(np.abs(expected - observed) @ total / total.sum())


def intervals(logits, losses, predicted, label):
    """95 % intervals of the metrics of n independently drawn pairs: {name: (low, high)}.

    Accuracy, precision and recall are proportions: theirs are Wilson's. The others are percentiles
    of the bootstrap (Efron 1979). A metric that is the same in each resample has none.
    """
    random, n = np.random.default_rng(0), len(label)
    resamples = [
        compute_metrics(logits, losses, predicted, label, random.multinomial(n, np.ones(n) / n))
        for _ in range(RESAMPLES)
    ]
    found = percentiles(resamples)
    same, right, every = label == 1, predicted == (label == 1), np.ones(n, bool)
    for name, among in (("accuracy", every), ("precision", predicted), ("recall", same)):
        if among.any():
            found[name] = wilson(int(right[among].sum()), int(among.sum()))
    return {name: (float(low), float(high)) for name, (low, high) in found.items()}


def percentiles(resamples):
    """95 % intervals of RESAMPLES of metrics, where they are known and not all the same."""
    found = {}
    for name in resamples[0]:
        values = [one[name] for one in resamples if one[name] is not None]
        if len(values) > 0.95 * RESAMPLES:  # else too few pairs are of one kind
            low, high = map(float, np.quantile(values, (0.025, 0.975)))
            found |= {name: (low, high)} if high - low > 1e-9 else {}
    return found


def class_draws(count):
    """How often each of so many classes is drawn in each resample: int [RESAMPLES, count]."""
    return np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES)


def draw_rows(weight, most):
    """So many rows drawn by their weight [m], sum 1: int [most]; None where they are no more."""
    if len(weight) <= most:
        return None
    edges, uniform = np.cumsum(weight), np.random.default_rng(0).random(most)
    return np.searchsorted(edges, uniform * edges[-1], "right").clip(0, len(weight) - 1)


def class_intervals(scores, pairs):
    """95 % intervals of accuracy and RANKING over classes: {name: (low, high)}.

    Pairs that share a class depend on one another, so the bootstrap draws classes: a pair of two
    classes counts as often as both are drawn, multiplied (Snijders & Borgatti 1999), and a pair of
    one class as often as that (Bolle, Ratha & Pankanti 2004). A copy of a class is not compared
    with another copy. The shares of "same" and "different" stay as they are.
    """
    classes, weight = np.unique(pairs.class_ids, return_inverse=True)[1], pairs.weight
    rows = draw_rows(weight, MOST_RESAMPLED)
    rows, weight = (np.arange(len(weight)), weight) if rows is None else (rows, np.ones(len(rows)))
    order = np.argsort(-scores.logits[rows], kind="stable")
    rows, weight = rows[order], weight[order]
    ends = np.append(np.flatnonzero(np.diff(scores.logits[rows])), len(rows) - 1)  # of ties
    kinds = []  # of different and same pairs: their classes, weight, answers, places in the curve
    for label in (0, 1):
        one = scores.label[rows] == label
        both = (classes[place[rows[one]]] for place in (pairs.first, pairs.second))
        right = scores.predicted[rows[one]] == label
        kinds.append((*both, weight[one], right, np.append(0, np.cumsum(one)[ends])))
    share = pairs.weight @ pairs.label
    return percentiles(
        [resample_classes(counts, kinds, share) for counts in class_draws(classes.max() + 1)]
    )


def resample_classes(counts, kinds, share):
    """Accuracy and RANKING where classes count so often, [k]; None where no pair is left."""
    curve, right = [], []
    for label, (class1, class2, weight, is_right, places) in enumerate(kinds):
        weight = weight * counts[class1]
        weight *= 1 if label else counts[class2]
        sums = np.append(0, np.cumsum(weight))
        if not sums[-1]:
            return dict.fromkeys(("accuracy", *RANKING))
        curve.append(sums[places] / sums[-1])
        right.append(weight[is_right].sum() / sums[-1])
    return {"accuracy": (1 - share) * right[0] + share * right[1]} | of_curve(*curve)


def wilson(successes, trials):
    """Wilson's 95 % interval of a proportion."""
    from scipy.stats import binomtest

    return binomtest(successes, trials).proportion_ci(method="wilson")


def most_wrong(pairs):
    """Upper 95 % bound of the error rate if no drawn pair is wrong (Hanley & Lippman-Hand 1983)."""
    return 1 - 0.05 ** (1 / pairs)


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


def mcnemar(right1, right2):
    """McNemar's exact test of two networks on the same pairs; right1, right2: bool [n].

    Returns (number of pairs where only the first is right, only the second, p-value). The p-value
    is the probability of numbers at least so unequal if both networks are equally good.
    """
    from scipy.stats import binomtest

    only1, only2 = int((right1 & ~right2).sum()), int((right2 & ~right1).sum())
    p = binomtest(only1, only1 + only2).pvalue if only1 + only2 else 1.0
    return only1, only2, float(p)
