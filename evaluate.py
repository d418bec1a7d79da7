"""Says how well a run tells same from different: over every pair there is, or a sample of them.

    python evaluate.py                                       # the newest run under runs/
    python evaluate.py --workdir=runs/default --step=last --split=validation
    python evaluate.py --workdir=runs/light,runs/two_channel       # several runs in one table
    python evaluate.py --images=a.png,b.png                  # the same or not?
    python evaluate.py --threshold=far:0.01                  # fitted on validation, and kept
    python evaluate.py --robustness                              # which nuisance breaks it

train.py calls the same functions at each validation. "Same" is the positive class.
"""

if __name__ == "__main__":  # first: a mistake is answered before JAX and TensorFlow load
    import settings

    COMMAND, CLUSTER = settings.evaluate_command(), settings.cluster()

import csv
import importlib
import json
import re
import signal
import sys
from functools import partial
from threading import Thread
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit, logit
from tqdm import tqdm

import checkpoint
import data
import hosts
import robustness
import settings
from figures import curve
from metrics import compute_metrics, fit_threshold, mcnemar, wilson
from model import AXIS, create_model, pair_losses, variable_shapes
from report import import_slow, write_report, write_table
from settings import stop

MOST_PAIRS = 4 * 10**7  # a split with at most so many pairs is evaluated whole, in about 8 GB
MOST_WHILE_TRAINING = 10**6  # the same where it takes part in training's time
IMAGES_AT_ONCE = 256
THRESHOLD = "threshold.json"
PAIRS_AT_ONCE = 8192
BAR = {"leave": False, "disable": not sys.stderr.isatty()}


def main(runs, options):
    """Evaluates a checkpoint of a run and writes the report, or does what else is asked.

    options: step ("best", "last" or a number), split, threshold, pictures, ladder.
    """
    if jax.process_index() == 0:
        Thread(target=import_slow, daemon=True).start()  # meanwhile: it takes seconds
    if len(runs) > 1:
        compare_runs(runs, options.step, options.split)
        return
    ((config, workdir),) = runs
    model = create_model(config)
    score = make_scorer(model)
    step, variables = load_variables(config, workdir, model, options.step)
    threshold = choose_threshold(config, workdir, step, score, variables, options.threshold)
    if options.pictures:
        compare_pictures(score, variables, threshold, *options.pictures)
    elif options.robustness:
        print_robustness(config, score, variables, threshold)
    else:
        found = evaluate(config, score, variables, options.split, MOST_PAIRS, threshold)
        if jax.process_index() == 0:
            write_report(config, workdir, step, {options.split: found})


def load_variables(config, workdir, model, which):
    """(step, variables) of a checkpoint."""
    target = variable_shapes(model, config)

    def restore():
        with checkpoint.open_checkpoints(workdir) as checkpoints:
            return checkpoint.restore_model(checkpoints, which, target)

    step, variables = hosts.from_first(restore, (np.int64(0), target))
    return int(step), variables


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


def evaluate(config, score, variables, split, most=MOST_WHILE_TRAINING, threshold=None):
    """Scores the pairs of a split with a scorer: all, or a sample where these are over `most`."""
    pairs = evaluation_pairs(config, split, most)
    return evaluate_pairs(config, score, variables, pairs, threshold)


def evaluate_pairs(config, score, variables, pairs, threshold=None):
    """Scores pairs; the answer is "same" from a logit on, by default that of eval.threshold.

    Raises FloatingPointError if an answer or its loss is not finite.
    """
    threshold = float(logit(config.eval.threshold)) if threshold is None else threshold
    features, logits = score(variables, pairs)
    losses = np.float64(pair_losses(config, *np.float32([logits, pairs.label])))
    if not np.isfinite([logits, losses]).all():
        raise FloatingPointError("diverged: answers to the pairs, or their losses, are not finite")
    scores = Scores(logits, losses, logits >= threshold, pairs.label)
    values, (*_, predicted, label) = compute_metrics(*scores, pairs.weight), scores
    orders = np.ones(len(logits)) if pairs.ordered else 1 + (pairs.first != pairs.second)
    (right0, wrong0), (wrong1, right1) = confusion = [
        [int(orders[(label == truth) & (predicted == answer)].sum()) for answer in (0, 1)]
        for truth in (0, 1)
    ]
    values |= {
        "pairs": right0 + wrong0 + wrong1 + right1,
        "wrong": wrong0 + wrong1,
        "threshold": float(expit(threshold)),
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
    """Returns score(variables, pairs) -> (features [n, ...], logits float64 [pairs]).

    Every device of every process takes an equal part of each block; every process gets it all.
    """
    mesh = jax.sharding.Mesh(np.array(jax.devices()), (AXIS,))
    whole, rows = jax.P(), jax.P(AXIS)
    everywhere = jax.NamedSharding(mesh, whole)
    place = partial(jax.make_array_from_process_local_data, everywhere)
    blocks = partial(in_blocks, parts=jax.device_count())

    def over_devices(function, *specs):
        parts = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=rows)
        return jax.jit(parts, out_shardings=everywhere)

    def encode(variables, images):
        return model.apply(variables, images, method="encode")

    def compare(variables, features, first, second):
        return model.apply(variables, features[first], features[second], method="compare")

    encode = over_devices(encode, whole, rows)
    compare = over_devices(compare, whole, whole, rows, rows)

    def score(variables, pairs):
        variables = place(variables)
        features = blocks(partial(encode, variables), IMAGES_AT_ONCE, pairs.images)
        compare_features = partial(compare, variables, place(features))
        size = PAIRS_AT_ONCE if features.ndim == 2 else IMAGES_AT_ONCE  # images: a whole network
        logits = blocks(compare_features, size, pairs.first, pairs.second)
        return features, np.float64(logits)

    return score


def in_blocks(function, size, *arrays, parts=1):
    """function(*arrays) in blocks of rows, all of one size so that it compiles once.

    A block has so many parts of at most `size` rows, a multiple of eight: as few blocks as there
    can be, shared out evenly but for steps of size / 8, so that few sizes need a program.
    """
    n = len(arrays[0])
    blocks = -(-n // (size * parts))
    rows = -(-n // (blocks * parts))
    size = parts * (rows if blocks == 1 else -(-rows // (size // 8)) * (size // 8))
    results = []
    for start in tqdm(range(0, n, size), delay=2, **BAR):
        rows = slice(start, start + size)
        if start + size > n:
            rows = np.arange(start, start + size) % n  # the last is filled up with the first rows
        results.append(function(*(array[rows] for array in arrays)))
        jax.block_until_ready(results[-3:-2])  # two ahead of the device, no further
    return np.concatenate(jax.device_get(results))[:n]


def choose_threshold(config, workdir, step, score, variables, rule):
    """The logit from which on to say "same".

    Of a probability given, or fitted on validation by a rule, and kept in the run for this step; a
    probability could not tell logits above 37 apart.
    """
    if rule is None:
        return kept_threshold(config, workdir, step)
    if rule != "accuracy" and not rule.startswith("far:"):
        return float(logit(float(rule)))
    found = evaluate(config, score, variables, "validation", MOST_PAIRS)
    far = None if rule == "accuracy" else float(rule.removeprefix("far:"))
    if len(np.unique(found.pairs.label)) < 2:
        raise UserError(f"--threshold={rule}: validation has pairs of one kind only")
    threshold = fit_threshold(found.scores.logits, found.pairs.label, found.pairs.weight, far)
    kept = {"logit": threshold, "probability": expit(threshold), "rule": rule, "step": step}
    if jax.process_index() == 0:
        (workdir / THRESHOLD).write_text(json.dumps(kept, indent=2) + "\n")
    print(f"threshold {expit(threshold):.6f}, fitted on validation ({rule}), kept in {THRESHOLD}")
    return threshold


def kept_threshold(config, workdir, step):
    """The logit that was fitted for this step, or else that of the config's threshold."""
    path = workdir / THRESHOLD
    try:
        kept = json.loads(path.read_text()) if path.exists() else {"step": None}
        return float(kept["logit"] if kept["step"] == step else logit(config.eval.threshold))
    except (ValueError, TypeError, KeyError):
        raise UserError(
            f"{path} is no saved threshold; fit it again with --threshold, or delete it"
        ) from None


def compare_pictures(score, variables, threshold, names, images):
    """Prints whether two images are the same; of more the matrix of probabilities as CSV."""
    n = len(names)
    first, second = np.indices((n, n)).reshape(2, -1)
    unknown = [None] * (len(data.Pairs._fields) - 3)
    _, logits = score(variables, data.Pairs(images, first, second, *unknown))
    logits = logits.reshape(n, n)
    if n == 2:
        answer = "same" if logits[0, 1] >= threshold else "different"
        texts = (f"{expit(number):.6f}" for number in (logits[0, 1], threshold))
        print("{}: probability of same {}, threshold {}".format(answer, *texts))
        return
    print(f"probabilities of same; same from {expit(threshold):.6f} on", file=sys.stderr)
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["", *names])
    for name, row in zip(names, expit(logits), strict=True):
        table.writerow([name, *(f"{p:.6f}" for p in row)])


def print_robustness(config, score, variables, threshold):
    """Prints the accuracy on pairs with one nuisance more in each line."""
    print(f"{'one more each':<16}accuracy of {config.eval.num_pairs:,} pairs")
    for name, pairs in robustness.sweep(config):
        found = evaluate_pairs(config, score, variables, pairs, threshold)
        right = found.scores.predicted == (pairs.label == 1)
        low, high = wilson(int(right.sum()), len(right))
        text = f"  (95 %: {low:.4f} to {high:.4f})" if name != "identical" else ""
        print(f"{name:<16}{right.mean():.4f}{text}", flush=True)


def compare_runs(runs, which, split):
    """Prints one table of several runs and writes it: comparison.md, beside the first of them.

    Runs that differ in their seeds alone are one row: the mean, and the range where they differ.
    """
    rows = {}
    for config, workdir in runs:
        load_variables(config, workdir, create_model(config), which)  # first, what cannot be read
        same = settings.flatten(config.to_dict())
        key = json.dumps({k: v for k, v in same.items() if k not in ("seed", *settings.NEUTRAL)})
        rows.setdefault(key, []).append((config, workdir))
    table = []
    for row in rows.values():
        score = make_scorer(create_model(row[0][0]))
        measured = [measure_run(*run, score, which, split) for run in tqdm(row, **BAR)]
        names = [workdir.name for _, workdir in row]
        name = re.sub(r"[-_]?\d+$", "", names[0]) if len(row) > 1 else names[0]
        columns = {k: [one[k] for one in measured] for k in measured[0]}
        table.append({"run": name, "seeds": str(len(row))} | columns)
    if jax.process_index() == 0:
        write_table(runs[0][1].parent / "comparison.md", table)
    firsts = [row[0] for row in rows.values()]
    for run in firsts[1:]:
        print(difference(firsts[0], run, which, split))


def difference(one, other, which, split):
    """Whether two runs differ on the same pairs, drawn from their data: one line."""
    if one[0].data.to_dict() != other[0].data.to_dict():
        return f"{one[1].name} and {other[1].name} have different data: no test of their difference"
    pairs, right = data.sample_pairs(one[0], split, one[0].eval.num_pairs), []
    for config, workdir in (one, other):
        model = create_model(config)
        step, variables = load_variables(config, workdir, model, which)
        threshold = kept_threshold(config, workdir, step)
        found = evaluate_pairs(config, make_scorer(model), variables, pairs, threshold)
        right.append(found.scores.predicted == (pairs.label == 1))
    only1, only2, p = mcnemar(*right)
    return (
        f"of {len(pairs.label):,} drawn {split} pairs {one[1].name} alone is right on {only1:,}, "
        f"{other[1].name} alone on {only2:,}: McNemar's p = {p:.2g}"
    )


COMPARED = ("default", "everywhere", "heldout", "unseen")  # the data on which runs are compared


def measure_run(config, workdir, score, which, split):
    """{column: number} of a run; None where there is none, as on data of another size."""
    model = create_model(config)
    step, variables = load_variables(config, workdir, model, which)
    threshold = kept_threshold(config, workdir, step)
    size, channels = config.data.image_size, config.data.channels
    image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.uint8)
    cost = jax.jit(model.apply).lower(variables, image, image).cost_analysis()
    wrong, rates = curve(workdir, "validation/wrong", "train/pairs_per_second")
    columns = {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        "multiply-adds": cost["flops"] / 2,
        "training pairs/s": float(np.median([rate for _, rate in rates])) if rates else None,
        "steps to 0 wrong": next((step for step, count in wrong if count == 0), None),
    }
    asked = {f"`{c}`": importlib.import_module(f"configs.{c}").get_config().data for c in COMPARED}
    known = {}  # a run's own data may be among those asked
    for name, options in ({"its own data": config.data} | asked).items():
        config, key = config.copy_and_resolve_references(), options.to_json()
        config.data, config.seed = options, 0  # the same sample for every seed
        if (options.image_size, options.channels) != (size, channels):
            known[key] = None
        elif key not in known:
            found = evaluate(config, score, variables, split, threshold=threshold)
            known[key] = found.metrics["accuracy"]
        columns[name] = known[key]
    return columns


if __name__ == "__main__":
    runs, options = COMMAND
    values = {f"--{key}": str(value) for key, value in vars(options).items() if key != "pictures"}
    values |= settings.flatten({workdir.name: config.to_dict() for config, workdir in runs})
    with hosts.joined(CLUSTER, values):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # JAX would only note it
        try:
            main(runs, options)
        except FloatingPointError as error:
            raise UserError(error) from None
    hosts.finish()
