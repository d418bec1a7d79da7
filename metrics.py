"""What scored pairs say in numbers. "Same" is the positive class, a false accept a wrong "same".

As the verification literature has it, FAR is the share of the different pairs that is called the
same, and TAR (recall) the share of the same pairs that is.
"""

import numpy as np
from scipy.special import expit

FALSE_ACCEPT_RATES = (0.1, 0.01, 0.001)
CALIBRATION_BINS = 15
RESAMPLES = 200
RANKING = ("roc_auc", "eer", *(f"tar_at_far_{rate}" for rate in FALSE_ACCEPT_RATES))
NAMES = ("loss", "accuracy", "precision", "recall", "f1", *RANKING, "brier", "ece")


def compute_metrics(logits, losses, predicted, label, weight):
    """Metrics of a set of weighted pairs, floats: of the whole set, not a mean over batches.

    Precision, recall and F1 without a single case are 0. What needs both classes is None where
    there is one only.
    """
    same, total = label == 1, weight.sum()

    def share(chosen):
        return float(weight[chosen].sum() / total)

    def ratio(part, whole):
        return part / whole if whole else 0.0

    hits, false_accepts, misses = (
        share(same & predicted),
        share(~same & predicted),
        share(same & ~predicted),
    )
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
    """ROC AUC, equal error rate, and TAR at FALSE_ACCEPT_RATES: of the order of the logits alone.

    The equal error rate is read off the ROC between its two nearest points; TAR at a FAR is the
    largest that a threshold reaches with no more false accepts.
    """
    from sklearn.metrics import auc, roc_curve  # not at the top: its import takes a second

    if len(np.unique(label[weight > 0])) < 2:
        return dict.fromkeys(RANKING)
    far, tar, _ = roc_curve(label, logits, sample_weight=weight, drop_intermediate=False)
    eer = np.interp(0, far - (1 - tar), far)
    tars = (tar[far <= rate + 1e-12].max() for rate in FALSE_ACCEPT_RATES)
    return dict(zip(RANKING, map(float, (auc(far, tar), eer, *tars)), strict=True))


def calibration(probability, label, weight):
    """A reliability diagram: (mean probability, frequency of "same", weight) of each bin with any.

    Bins of equal width over the probability of "same".
    """
    bins = np.minimum((probability * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    total = np.bincount(bins, weight)
    used = total > 0
    sums = (np.bincount(bins, weight * values)[used] for values in (probability, label))
    return *(values / total[used] for values in sums), total[used]


def calibration_error(probability, label, weight):
    """Expected calibration error: mean distance of the reliability diagram from the diagonal."""
    expected, observed, total = calibration(probability, label, weight)
    return float(np.abs(expected - observed) @ total / total.sum())


def intervals(logits, losses, predicted, label):
    """95 % intervals of the metrics of n pairs drawn independently: {name: (low, high)}.

    Wilson's for accuracy, precision and recall, which are proportions; percentiles of the bootstrap
    (Efron 1979) for the others. A metric that is the same in each resample has no interval.
    """
    random, n = np.random.default_rng(0), len(label)
    draws = [
        compute_metrics(logits, losses, predicted, label, random.multinomial(n, np.ones(n) / n))
        for _ in range(RESAMPLES)
    ]
    found = {}
    for name in NAMES:
        values = [draw[name] for draw in draws if draw[name] is not None]
        if len(values) > 0.95 * RESAMPLES:  # else too few pairs are of one kind
            low, high = np.quantile(values, (0.025, 0.975))
            found |= {name: (low, high)} if high - low > 1e-9 else {}
    same, right = label == 1, predicted == (label == 1)
    for name, among in (("accuracy", same | ~same), ("precision", predicted), ("recall", same)):
        if among.any():
            found[name] = wilson(int(right[among].sum()), int(among.sum()))
    return {name: (float(low), float(high)) for name, (low, high) in found.items()}


def wilson(successes, trials):
    """Wilson's 95 % interval of a proportion."""
    from scipy.stats import binomtest  # not at the top: its import takes a second

    return binomtest(successes, trials).proportion_ci(method="wilson")


def most_wrong(pairs):
    """The share of wrong answers that none among so many drawn excludes with 95 % confidence.

    Hanley & Lippman-Hand 1983: about 3 / pairs, the rule of three.
    """
    return 1 - 0.05 ** (1 / pairs)


def fit_threshold(logits, label, weight, far=None):
    """The logit from which on to say "same": of best accuracy, or of best TAR at a FAR.

    Half way to the next score, so that scores a little off fall on the same side.
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
    """McNemar's exact test of two answers to the same pairs, from which are right: bool [n] each.

    Returns (pairs that only the first has right, only the second, p-value): how probable so uneven
    a split is if both are as good.
    """
    from scipy.stats import binomtest

    only1, only2 = int((right1 & ~right2).sum()), int((right2 & ~right1).sum())
    p = binomtest(only1, only1 + only2).pvalue if only1 + only2 else 1.0
    return only1, only2, float(p)
