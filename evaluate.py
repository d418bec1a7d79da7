"""Says how well a run tells same from different: over every pair there is, or a sample of them.

    python evaluate.py                                       # the newest run under runs/
    python evaluate.py --workdir=runs/default --step=last --split=validation
    python evaluate.py --workdir=runs/light,runs/stack       # several runs in one table

train.py calls the same functions at each validation. "Same" is the positive class.
"""

if __name__ == "__main__":  # first: a mistake is answered before JAX and TensorFlow load
    import settings

    COMMAND = settings.evaluate_command()

import contextlib
import importlib
import json
import os
from functools import partial
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import checkpoint
import data
import settings
from model import create_model, pair_losses, variable_shapes
from settings import stop

MAX_PAIRS = 10**6  # a split with at most this many ordered pairs is evaluated whole
IMAGES_AT_ONCE = 256
PAIRS_AT_ONCE = 4096
METRICS = ("loss", "accuracy", "precision", "recall", "f1", "roc_auc")


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
    evaluation = evaluate(config, make_scorer(model), variables, split)
    write_report(config, workdir, step, {split: evaluation})


def load_variables(config, workdir, model, which):
    """(step, variables) of a checkpoint."""
    target = variable_shapes(model, config)
    with checkpoint.open_checkpoints(workdir) as checkpoints:
        return checkpoint.restore_model(checkpoints, which, target)


class Evaluation(NamedTuple):
    """The metrics of a split, and what they were computed from."""

    metrics: dict  # of compute_metrics, and pairs, wrong, exact, confusion
    pairs: "Pairs"
    probability: np.ndarray  # float64 [pairs], of "same"


def evaluate(config, score, variables, split):
    """Scores the pairs of a split with `score` of `make_scorer`."""
    pairs = evaluation_pairs(config, split)
    logits = score(variables, pairs)
    if not np.isfinite(logits).all():
        stop(f"{split}: the answers are not finite; training diverged, lower the learning rate")
    probability = (1 + np.tanh(logits / 2)) / 2  # the logistic function, without its overflow
    predicted = probability >= config.eval.threshold
    losses = np.float64(pair_losses(config, *np.float32([logits, pairs.label])))
    metrics = compute_metrics(logits, losses, predicted, pairs.label, pairs.weight)
    confusion = [
        [int(((pairs.label == t) & (predicted == p)).sum()) for p in (0, 1)] for t in (0, 1)
    ]
    metrics |= {
        "pairs": len(logits),
        "wrong": confusion[0][1] + confusion[1][0],
        "exact": pairs.exact,
        "confusion": confusion,  # pairs, [truth][answer], different before same
    }
    return Evaluation(metrics, pairs, probability)


class Pairs(NamedTuple):
    """Pairs to evaluate, as indices into the images, so that each image is encoded once."""

    images: np.ndarray  # uint8 [n, height, width, channels]
    first: np.ndarray  # int [pairs]
    second: np.ndarray  # int [pairs]
    label: np.ndarray  # float64 [pairs]
    weight: np.ndarray  # float64 [pairs], sum 1: the probability of each pair
    exact: bool  # whether these are all pairs that can occur


def evaluation_pairs(config, split):
    """Every ordered pair with its probability; where those are too many, a sample of them."""
    listed = data.enumerate_pairs(config.data, split, MAX_PAIRS)
    return Pairs(*(listed or data.sample_pairs(config, split, config.eval.num_pairs)), bool(listed))


def make_scorer(model):
    """Returns score(variables, pairs) -> logits float64 [pairs], compiled once per shape."""

    @jax.jit
    def encode(variables, images):
        return model.apply(variables, images, method="encode")

    @jax.jit
    def compare(variables, features, first, second):
        return model.apply(variables, features[first], features[second], method="compare")

    def score(variables, pairs):
        variables = jax.device_put(variables)
        features = in_blocks(partial(encode, variables), IMAGES_AT_ONCE, pairs.images)
        compare_features = partial(compare, variables, features)
        size = PAIRS_AT_ONCE if features.ndim == 2 else IMAGES_AT_ONCE  # images: a whole network
        logits = in_blocks(compare_features, size, pairs.first, pairs.second)
        return np.asarray(logits, np.float64)

    return score


def in_blocks(function, size, *arrays):
    """function(*arrays) in blocks of rows, all of one size so that it compiles once."""
    n = len(arrays[0])
    size = min(size, n)
    results = []
    for start in range(0, n, size):
        rows = np.arange(start, start + size) % n  # the last block is filled up with first rows
        results.append(function(*(array[rows] for array in arrays))[: n - start])
    return jnp.concatenate(results)


def compute_metrics(logits, losses, predicted, label, weight):
    """The METRICS of a set of weighted pairs, as floats: of the whole set, not a mean over batches.

    Precision, recall and F1 without a single case are 0; roc_auc with one class only is None.
    """
    from sklearn.metrics import roc_auc_score  # not at the top: its import takes a second

    def share(chosen):
        return float(weight[chosen].sum())

    def ratio(part, whole):
        return part / whole if whole else 0.0

    same = label == 1
    hits, false_alarms, misses = (
        share(same & predicted),
        share(~same & predicted),
        share(same & ~predicted),
    )
    return {
        "loss": float(losses @ weight / weight.sum()),
        "accuracy": ratio(share(same == predicted), float(weight.sum())),
        "precision": ratio(hits, hits + false_alarms),
        "recall": ratio(hits, hits + misses),
        "f1": ratio(2 * hits, 2 * hits + false_alarms + misses),
        "roc_auc": float(roc_auc_score(label, logits, sample_weight=weight))
        if len(set(label)) == 2
        else None,
    }


def write_report(config, workdir, step, evaluations):
    """Prints the table; writes metrics.json, pairs.png and TensorBoard's copy of both.

    They go to workdir/evaluation, for the last of the splits given.
    """
    print(format_table(step, evaluations))
    split, evaluation = list(evaluations.items())[-1]
    folder = workdir / "evaluation"
    folder.mkdir(exist_ok=True)
    values = evaluation.metrics | {"step": step, "split": split, "threshold": config.eval.threshold}
    (folder / "metrics.json").write_text(json.dumps(values, indent=2) + "\n")
    figure = draw_pairs(evaluation, config.eval.threshold)
    figure.savefig(folder / "pairs.png")
    pixels = np.asarray(figure.canvas.buffer_rgba())[None, ..., :3]
    with open_writer(folder) as writer:
        for name, one in evaluations.items():
            writer.write_scalars(step, scalars(name, one))
        writer.write_images(step, {f"{split}/pairs": pixels})
    print(f"wrote {folder / 'metrics.json'} and pairs.png beside it")


def scalars(split, evaluation):
    """What TensorBoard shows of an evaluation."""
    named = {name: evaluation.metrics[name] for name in (*METRICS, "wrong")}
    return {f"{split}/{name}": value for name, value in named.items() if value is not None}


def describe(step, split, evaluation):
    """One line for the console."""
    m = evaluation.metrics
    return (
        f"step {step}: {split} loss {m['loss']:.4f}, accuracy {m['accuracy']:.4f}, "
        f"{m['wrong']:,} wrong of {m['pairs']:,} pairs"
    )


def open_writer(folder):
    """A context with a CLU writer for TensorBoard; synchronous: failures show where they happen."""
    metric_writers = import_metric_writers()
    writer = metric_writers.create_default_writer(folder, asynchronous=False)
    return contextlib.closing(writer)


def import_metric_writers():
    """Imports CLU's writers: not at the top, because the TensorFlow they load takes seconds."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # without these two
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # TensorFlow fills the screen
    from clu import metric_writers

    return metric_writers


def format_table(step, evaluations):
    """Metrics down, splits across, then how many pairs and which were wrong."""
    lines = [f"{f'step {step}':<12}" + "".join(f"{split:>14}" for split in evaluations)]
    for name in METRICS:
        values = [one.metrics[name] for one in evaluations.values()]
        texts = ("one class" if value is None else f"{value:.6f}" for value in values)
        lines.append(f"{name:<12}" + "".join(f"{text:>14}" for text in texts))
    for split, one in evaluations.items():
        m = one.metrics
        kind = "every ordered pair, by its probability" if m["exact"] else "a sample"
        (right0, wrong0), (wrong1, right1) = m["confusion"]
        lines += [
            f"{split}: {m['wrong']:,} wrong of {m['pairs']:,} pairs ({kind})",
            f"  different: {right0:,} right, {wrong0:,} called same; "
            f"same: {right1:,} right, {wrong1:,} called different",
        ]
    return "\n".join(lines)


def compare_runs(runs, which, split):
    """Prints one table of several runs and writes it: comparison.md, in the folder they share.

    Runs that differ in their seeds alone are one row: the mean, and the range where they differ.
    """
    rows = {}
    for config, workdir in runs:
        same = settings.flatten(config.to_dict())
        key = json.dumps({k: v for k, v in same.items() if k not in ("seed", *settings.NEUTRAL)})
        rows.setdefault(key, []).append((config, workdir))
    texts = []
    for row in rows.values():
        score = make_scorer(create_model(row[0][0]))
        measured = [measure_run(*run, score, which, split) for run in tqdm(row, leave=False)]
        names = [workdir.name for _, workdir in row]
        name = names[0].rstrip("-_0123456789") if len(row) > 1 else names[0]
        columns = {k: [one[k] for one in measured if one[k] is not None] for k in measured[0]}
        columns = {k: spread(values) for k, values in columns.items()}
        texts.append({"run": name, "seeds": str(len(row))} | columns)
    lines = [list(texts[0]), ["---"] * len(texts[0]), *(list(text.values()) for text in texts)]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    path = Path(os.path.commonpath([workdir.parent for _, workdir in runs])) / "comparison.md"
    path.write_text(table)
    print(f"{table}wrote {path}")


COMPARED = ("default", "everywhere", "heldout", "unseen")  # the data on which runs are compared


def measure_run(config, workdir, score, which, split):
    """{column: number} of a run; None where there is none, as on data of another size."""
    model = create_model(config)
    _, variables = load_variables(config, workdir, model, which)
    size, channels = config.data.image_size, config.data.channels
    image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.uint8)
    cost = jax.jit(model.apply).lower(variables, image, image).cost_analysis()
    right = (step for step, wrong in curve(workdir, "validation/wrong") if wrong == 0)
    rates = [rate for _, rate in curve(workdir, "train/pairs_per_second")]
    columns = {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        "multiply-adds": cost["flops"] / 2,
        "training pairs/s": float(np.median(rates)) if rates else None,
        "steps to 0 wrong": next(right, None),
        "its own data": evaluate(config, score, variables, split).metrics["accuracy"],
    }
    for name in COMPARED:
        asked = config.copy_and_resolve_references()
        asked.data = importlib.import_module(f"configs.{name}").get_config().data
        fits = (asked.data.image_size, asked.data.channels) == (size, channels)
        found = evaluate(asked, score, variables, split).metrics["accuracy"] if fits else None
        columns[f"`{name}`"] = found
    return columns


def curve(workdir, tag):
    """[(step, value)] of one of the run's curves for TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    events = EventAccumulator(str(workdir), size_guidance={"tensors": 0})
    events.Reload()
    found = events.Tensors(tag) if tag in events.Tags()["tensors"] else []
    return [(event.step, float(tensor_util.make_ndarray(event.tensor_proto))) for event in found]


def spread(values):
    """Numbers as one text: their mean, and from the lowest to the highest where these differ."""
    if not values:
        return ""
    form = "{:.4f}" if all(0 <= value <= 1 for value in values) else "{:,.0f}"
    mean, low, high = (form.format(f(values)) for f in (np.mean, min, max))
    return mean if low == high else f"{mean} ({low} to {high})"


def draw_pairs(evaluation, threshold, rows=6, columns=4):
    """A grid of pairs: the first half the most wrong and least certain ones, in this order.

    The second half goes on evenly spaced to the most certain one, so that it shows all there is.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # not pyplot: no display needed
    from matplotlib.figure import Figure

    _, pairs, probability = evaluation
    order = hardest_first(pairs, probability)
    half = rows * columns // 2
    rest = np.linspace(half, len(order) - 1, half).astype(int)
    shown = order if len(order) <= 2 * half else order[np.r_[:half, rest]]
    figure = Figure(figsize=(2.2 * columns, 1.7 * rows), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    title = f"The hardest {half} of {len(order):,} unordered pairs, then evenly to the easiest"
    figure.suptitle(title if len(shown) < len(order) else "All unordered pairs, hardest first")
    answers = ("different", "same")
    for place, index in enumerate(shown, start=1):
        axes = figure.add_subplot(rows, columns, place)
        image1, image2 = pairs.images[[pairs.first[index], pairs.second[index]]]
        gap = np.full((len(image1), max(1, len(image1) // 16), image1.shape[-1]), 128, np.uint8)
        picture = np.concatenate([image1, gap, image2], axis=1).squeeze()
        axes.imshow(picture, "gray", vmin=0, vmax=255)
        axes.set_axis_off()
        truth, said = int(pairs.label[index]), int(probability[index] >= threshold)
        title = f"{answers[truth]}, said {answers[said]}\np(same) = {probability[index]:.3f}"
        axes.set_title(title, fontsize=11, color="black" if truth == said else "crimson")
    return figure


def hardest_first(pairs, probability):
    """Indices of pairs by the probability given to the truth; (b, a) is left out beside (a, b)."""
    for_truth = np.where(pairs.label == 1, probability, 1 - probability)
    order = np.argsort(for_truth, kind="stable")
    unordered = np.sort([pairs.first[order], pairs.second[order]], axis=0)
    _, once = np.unique(unordered, axis=1, return_index=True)
    return order[np.sort(once)]


if __name__ == "__main__":
    main(*COMMAND)
