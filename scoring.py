"""Scores pairs with a network: all pairs of a split, or a sample of them."""

import math
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from absl import flags
from scipy.special import expit, logit
from tqdm import tqdm

import calibration
import checkpoint
import data
import hosts
import settings
from calibration import CALIBRATION, NONE
from errors import UserError
from metrics import compute_metrics, count_pairs, unmeasured
from model import AXIS, create_model, variable_shapes
from spaces import Pairs

MOST_PAIRS = 4 * 10**7  # of a split that is evaluated whole, in about 8 GB of memory
MOST_WHILE_TRAINING = 10**6  # the same in validation during training, which waits for it
IMAGES_AT_ONCE = 256
PAIRS_AT_ONCE = 8192  # like IMAGES_AT_ONCE: on one device
THRESHOLD = "threshold.json"  # in a run's folder: a threshold fitted for one step


class Evaluation(NamedTuple):
    """The metrics of a split, and what they were computed from."""

    metrics: dict  # compute_metrics, None where `unmeasured`, and what `evaluate_pairs` adds
    pairs: Pairs
    scores: "Scores"


class Scores(NamedTuple):
    """The answers to m pairs, float64 or bool [m] each."""

    logits: np.ndarray
    losses: np.ndarray
    predicted: np.ndarray  # whether the answer is "same"
    label: np.ndarray


def evaluate(config, score, variables, split, most=MOST_WHILE_TRAINING, threshold=None):
    """As `evaluate_pairs`, for the pairs of a split: all, or a sample if more than `most`.

    Of all pairs it scores (a, b) or (b, a): the network is symmetric.
    """
    pairs = data.enumerate_pairs(config.data, split, most)
    pairs = pairs or data.sample_pairs(config, split, config.eval.num_pairs)
    return evaluate_pairs(config, score, variables, pairs, threshold)


def evaluate_pairs(config, score, variables, pairs, threshold=None):
    """Scores pairs with `score` (`make_scorer`): "same" if the logit is at least `threshold`.

    By default that is the logit of config.eval.threshold. Raises UserError if a logit or loss
    is not finite.
    """
    threshold = float(logit(config.eval.threshold)) if threshold is None else threshold
    logits = score(variables, pairs)
    losses = np.float64(create_model(config).losses(*np.float32([logits, pairs.label])))
    if not np.isfinite([logits, losses]).all():
        raise UserError("diverged: answers to the pairs, or their losses, are not finite")
    scores = Scores(logits, losses, logits >= threshold, pairs.label)
    orders = np.ones(len(logits)) if pairs.ordered else 1 + (pairs.first != pairs.second)
    kinds = 2 * (pairs.label == 1) + scores.predicted
    counts = right0, wrong0, wrong1, right1 = np.bincount(kinds, orders, 4).astype(int).tolist()
    different, _ = count_pairs(pairs)
    values = compute_metrics(*scores, pairs.weight) | dict.fromkeys(unmeasured(different))
    values |= {
        "pairs": sum(counts),
        "wrong": wrong0 + wrong1,
        "threshold": float(expit(threshold)),
        "exact": pairs.exact,
        "confusion": [[right0, wrong0], [wrong1, right1]],  # [truth][answer] in ordered pairs
        "different_pairs": different,  # without their order, unlike those of the confusion
    }
    return Evaluation(values, pairs, scores)


def make_scorer(model):
    """Returns score(variables, pairs) -> logits, float64 [pairs].

    Each image is encoded once. Each device of all processes computes an equal part of each block;
    each process gets the whole result.
    """
    mesh = jax.sharding.Mesh(np.array(jax.devices()), (AXIS,))
    whole, rows = jax.P(), jax.P(AXIS)
    everywhere = jax.NamedSharding(mesh, whole)
    place = partial(jax.make_array_from_process_local_data, everywhere)
    blocks = partial(in_blocks, parts=jax.device_count())

    def over_devices(function, *specs):
        parts = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=rows)
        return jax.jit(parts, out_shardings=everywhere)

    def compare(variables, embeddings, first, second):
        return model.apply(variables, embeddings[first], embeddings[second], method="compare")

    encode = over_devices(partial(model.apply, method="encode"), whole, rows)
    compare = over_devices(compare, whole, whole, rows, rows)

    def score(variables, pairs):
        variables = place(variables)
        encoded = place(blocks(partial(encode, variables), IMAGES_AT_ONCE, pairs.images))
        compare_encoded = partial(compare, variables, encoded)
        return np.float64(blocks(compare_encoded, PAIRS_AT_ONCE, pairs.first, pairs.second))

    return score


def in_blocks(function, most, *arrays, parts=1):
    """function(*arrays) in blocks of `parts` times at most `most` rows; all have one size."""
    n, results = len(arrays[0]), []
    size = parts * min(most, math.ceil(n / parts))
    for start in tqdm(range(0, n, size), delay=2, leave=False, disable=None):  # on terminals
        rows = slice(start, start + size)
        if start + size > n:
            rows = np.arange(start, start + size) % n  # fills the last block with first rows
        results.append(function(*(array[rows] for array in arrays)))
        jax.block_until_ready(results[-3:-2])  # the host is at most two blocks ahead
    return np.concatenate(jax.device_get(results))[:n]


def define_run_flags():
    """Defines the flags that choose a trained network."""
    flags.DEFINE_string("workdir", None, "The run's folder; by default the newest under runs/.")
    flags.DEFINE_string("step", "best", "Which checkpoint: best, last or a step's number.")


def find_run(options):
    """(config, workdir) of the run that --workdir names; raises UserError."""
    workdir = settings.chosen_run(options.workdir)
    config = settings.load_config(workdir)
    settings.check_writable(workdir, f"--workdir={workdir}")
    return config, workdir


def load_variables(config, workdir, model, which):
    """(step, variables) of a checkpoint: "best", "last" or the number of a step as a text.

    Calibrated where the run was; the same host arrays on every process. Raises UserError if the
    checkpoint is missing or damaged.
    """
    target = variable_shapes(model, config)

    def restore():
        step, variables = checkpoint.restore_model(workdir, which, target)
        found = calibration.kept(workdir / CALIBRATION, int(step), "scale", "shift") or NONE
        return step, calibration.apply(variables, *found)

    step, variables = hosts.from_first(restore, (np.int64(0), target))
    return int(step), variables


def kept_threshold(config, workdir, step):
    """The threshold as a logit: fitted for this step, else of config.eval.threshold."""
    kept = calibration.kept(workdir / THRESHOLD, step, "logit")
    return kept[0] if kept else float(logit(config.eval.threshold))
