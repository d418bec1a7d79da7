"""Honest probabilities: a scale and a shift of the logits, fitted on validation after training.

    logit = scale * logit + shift    # J. Platt, "Probabilistic Outputs for SVMs", 1999

They become part of the head's own parameters, so whatever uses the network uses them. Left as they
are: networks of drawn shapes (most are never wrong), and the euclidean head, which has no scale.
"""

import json
import sys

import numpy as np
from scipy.special import expit

from errors import UserError
from splits import WHOLE

CALIBRATION = "calibration.json"  # in a run's folder
NONE = (1.0, 0.0)
FEW_CLASSES = 20  # of validation; with fewer a fit may not suit other classes


def fit(scores, weight):
    """(scale, shift) of the lowest mean loss; NONE where "same" pairs do not have higher logits.

    scores: scoring.Scores of n pairs; weight: [n]. The labels are a little less sure than 1 and 0,
    as Platt has it: so the scale is finite where no pair is wrong.
    """
    from scipy.optimize import minimize

    same = scores.label == 1
    target = np.where(same, (same.sum() + 1) / (same.sum() + 2), 1 / ((~same).sum() + 2))

    def loss(numbers):
        logits = numbers[0] * scores.logits + numbers[1]
        error = weight * (expit(logits) - target)
        losses = np.logaddexp(0, logits) - target * logits
        return weight @ losses, np.array([error @ scores.logits, error.sum()])

    scale, shift = minimize(loss, NONE, jac=True, method="BFGS").x.tolist()
    return (scale, shift) if same.any() and not same.all() and scale > 0 else NONE


def caution(data, pairs):
    """What to add to a line about a fit on Pairs of few classes that is used on others; else ""."""
    apart = data.source != "shapes" and data.split in WHOLE and pairs.class_ids is not None
    count = len(np.unique(pairs.class_ids)) if apart else FEW_CLASSES
    text = f"; validation has {count} classes: too few to say how well this suits others"
    return text * (count < FEW_CLASSES)


def apply(variables, scale, shift):
    """The variables of the network whose logits are scale * logit + shift."""
    if (scale, shift) == NONE:  # also of a head that has neither
        return variables
    head = dict(variables["params"]["head"])
    if "log_scale" in head:  # logit = exp(log_scale) * (cosine - threshold)
        head["log_scale"] = np.float32(head["log_scale"] + np.log(scale))
        head["threshold"] = np.float32(head["threshold"] - shift / np.exp(head["log_scale"]))
    else:
        kernel, bias = (head["logit"][name] for name in ("kernel", "bias"))
        kernel, bias = np.float32(scale * kernel), np.float32(scale * bias + shift)
        head["logit"] = {"kernel": kernel, "bias": bias}
    return variables | {"params": variables["params"] | {"head": head}}


def kept(path, step, *names):
    """The numbers of these names that were fitted for a step: list of float, or None.

    Warns if there are some of another step; raises UserError if the file is damaged.
    """
    try:
        found = json.loads(path.read_text())
        if found["step"] == step:
            return [float(found[name]) for name in names]
        print(f"warning: {path} is of step {found['step']}, not of {step}", file=sys.stderr)
        return None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{path} is damaged: delete it, and fit it again") from None
