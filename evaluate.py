"""Says how well a run tells same from different: over every pair there is, or a sample of them.

    python evaluate.py                                       # the newest run under runs/
    python evaluate.py --workdir=runs/default --step=last --split=validation
    python evaluate.py --workdir=runs/light,runs/stack       # several runs in one table

train.py calls the same functions at each validation. "Same" is the positive class.
"""

if __name__ == "__main__":  # first: a mistake is answered before JAX and TensorFlow load
    import settings

    COMMAND = settings.evaluate_command()

import importlib
import json
import os
import sys
from functools import partial
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit
from tqdm import tqdm

import checkpoint
import data
import settings
from metrics import compute_metrics
from model import create_model, pair_losses, variable_shapes
from report import curve, import_metric_writers, write_report, write_table
from settings import stop

MOST_PAIRS = 4 * 10**7  # a split with at most so many pairs is evaluated whole, in about 4 GB
MOST_WHILE_TRAINING = 10**6  # the same where it takes part in training's time
IMAGES_AT_ONCE = 256
PAIRS_AT_ONCE = 4096


def main(runs, which, split):
    """Evaluates a checkpoint ("best", "last" or a step) of a run and writes the report.

    Several runs are compared instead.
    """
    Thread(target=import_metric_writers, daemon=True).start()  # meanwhile: it takes seconds
    if len(runs) > 1:
        compare_runs(runs, which, split)
        return
    ((config, workdir),) = runs
    model = create_model(config)
    step, variables = load_variables(config, workdir, model, which)
    evaluation = evaluate(config, make_scorer(model), variables, split, MOST_PAIRS)
    write_report(config, workdir, step, {split: evaluation})


def load_variables(config, workdir, model, which):
    """(step, variables) of a checkpoint."""
    target = variable_shapes(model, config)
    with checkpoint.open_checkpoints(workdir) as checkpoints:
        return checkpoint.restore_model(checkpoints, which, target)


class Evaluation(NamedTuple):
    """The metrics of a split, and what they were computed from."""

    metrics: dict  # of compute_metrics, and pairs, wrong, exact, confusion
    pairs: data.Pairs
    scores: "Scores"
    features: np.ndarray  # float32 [images, features], or the images where they are seen together


class Scores(NamedTuple):
    """The answers to m pairs, float64 or bool [m] each."""

    logits: np.ndarray
    losses: np.ndarray
    predicted: np.ndarray  # whether the answer is "same"
    label: np.ndarray


def evaluate(config, score, variables, split, most=MOST_WHILE_TRAINING):
    """Scores the pairs of a split with a scorer: all, or a sample where these are over `most`."""
    pairs = evaluation_pairs(config, split, most)
    features, logits = score(variables, pairs)
    if not np.isfinite(logits).all():
        stop(f"{split}: the answers are not finite; training diverged, lower the learning rate")
    losses = np.float64(pair_losses(config, *np.float32([logits, pairs.label])))
    scores = Scores(logits, losses, expit(logits) >= config.eval.threshold, pairs.label)
    values, (*_, predicted, label) = compute_metrics(*scores, pairs.weight), scores
    orders = np.ones(len(logits)) if pairs.ordered else 1 + (pairs.first != pairs.second)
    (right0, wrong0), (wrong1, right1) = confusion = [
        [int(orders[(label == truth) & (predicted == answer)].sum()) for answer in (0, 1)]
        for truth in (0, 1)
    ]
    values |= {
        "pairs": right0 + wrong0 + wrong1 + right1,
        "wrong": wrong0 + wrong1,
        "exact": pairs.exact,
        "confusion": confusion,  # pairs, [truth][answer], different before same
    }
    return Evaluation(values, pairs, scores, features)


def evaluation_pairs(config, split, most):
    """Every pair with its probability; where these are more than `most`, a sample of them.

    Where the order of two images makes no difference each two are compared once.
    """
    symmetric = config.model.fusion == "siamese"
    most = most if symmetric else min(most, MOST_WHILE_TRAINING)
    listed = data.enumerate_pairs(config.data, split, most, ordered=not symmetric)
    return listed or data.sample_pairs(config, split, config.eval.num_pairs)


def make_scorer(model):
    """Returns score(variables, pairs) -> (features [n, ...], logits float64 [pairs])."""

    @jax.jit
    def encode(variables, images):
        return model.apply(variables, images, method="encode")

    @jax.jit
    def compare(variables, features, first, second):
        return model.apply(variables, features[first], features[second], method="compare")

    def score(variables, pairs):
        variables = jax.device_put(variables)
        features = in_blocks(partial(encode, variables), IMAGES_AT_ONCE, pairs.images)
        compare_features = partial(compare, variables, jax.device_put(features))
        size = PAIRS_AT_ONCE if features.ndim == 2 else IMAGES_AT_ONCE  # images: a whole network
        logits = in_blocks(compare_features, size, pairs.first, pairs.second)
        return features, np.float64(logits)

    return score


def in_blocks(function, size, *arrays):
    """function(*arrays) in blocks of rows, all of one size so that it compiles once."""
    n = len(arrays[0])
    size = min(size, n)
    results = []
    for start in tqdm(range(0, n, size), leave=False, delay=2, disable=not sys.stderr.isatty()):
        rows = slice(start, start + size)
        if start + size > n:
            rows = np.arange(start, start + size) % n  # the last is filled up with the first rows
        results.append(function(*(array[rows] for array in arrays)))
        jax.block_until_ready(results[-3:-2])  # two ahead of the device, no further
    return np.concatenate(jax.device_get(results))[:n]


def compare_runs(runs, which, split):
    """Prints one table of several runs and writes it: comparison.md, in the folder they share.

    Runs that differ in their seeds alone are one row: the mean, and the range where they differ.
    """
    rows = {}
    for config, workdir in runs:
        same = settings.flatten(config.to_dict())
        key = json.dumps({k: v for k, v in same.items() if k not in ("seed", *settings.NEUTRAL)})
        rows.setdefault(key, []).append((config, workdir))
    table = []
    for row in rows.values():
        score = make_scorer(create_model(row[0][0]))
        measured = [measure_run(*run, score, which, split) for run in tqdm(row, leave=False)]
        names = [workdir.name for _, workdir in row]
        name = names[0].rstrip("-_0123456789") if len(row) > 1 else names[0]
        columns = {k: [one[k] for one in measured] for k in measured[0]}
        table.append({"run": name, "seeds": str(len(row))} | columns)
    folder = Path(os.path.commonpath([workdir.parent for _, workdir in runs]))
    write_table(folder / "comparison.md", table)


COMPARED = ("default", "everywhere", "heldout", "unseen")  # the data on which runs are compared


def measure_run(config, workdir, score, which, split):
    """{column: number} of a run; None where there is none, as on data of another size."""
    model = create_model(config)
    _, variables = load_variables(config, workdir, model, which)
    size, channels = config.data.image_size, config.data.channels
    image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.uint8)
    cost = jax.jit(model.apply).lower(variables, image, image).cost_analysis()
    wrong, rates = curve(workdir, "validation/wrong", "train/pairs_per_second")
    columns = {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        "multiply-adds": cost["flops"] / 2,
        "training pairs/s": float(np.median([rate for _, rate in rates])) if rates else None,
        "steps to 0 wrong": next((step for step, count in wrong if count == 0), None),
        "its own data": evaluate(config, score, variables, split).metrics["accuracy"],
    }
    for name in COMPARED:
        asked = config.copy_and_resolve_references()
        asked.data = importlib.import_module(f"configs.{name}").get_config().data
        fits = (asked.data.image_size, asked.data.channels) == (size, channels)
        found = evaluate(asked, score, variables, split).metrics["accuracy"] if fits else None
        columns[f"`{name}`"] = found
    return columns


if __name__ == "__main__":
    main(*COMMAND)
