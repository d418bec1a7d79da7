"""Measures how well a run tells "same" from "different": over every pair, or a sample of pairs.

    python evaluate.py                                       # the newest run under runs/
    python evaluate.py --workdir=runs/default --step=last --split=validation
    python evaluate.py --workdir=runs/light,runs/joint       # several runs in one table
    python evaluate.py --images=a.png,b.png                  # the same or not?
    python evaluate.py --threshold=far:0.01                  # fitted on validation, and kept
    python evaluate.py --robustness                          # which nuisance breaks it
    python evaluate.py --way=20 --shot=1 --within            # one-shot, within an alphabet
    python evaluate.py --workdir=runs/folder --data=new/photos   # the files have moved

"Same" is the positive class.
"""

from errors import UserError  # first: from here on a missing package is one line

# isort: split
import csv
import importlib
import json
import os
import re
import signal
import sys
from itertools import chain
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from scipy.special import expit, logit
from tqdm import tqdm

import command_line
import curves
import data
import fingerprint
import hosts
import images
import retrieval
import robustness
import runtime
import scoring
import settings
from decoding import form_of
from metrics import fit_threshold, fitting_pairs, mcnemar, wilson
from model import create_model
from report import write_report, write_table
from scoring import BAR, MOST_PAIRS, THRESHOLD, evaluate, evaluate_pairs, make_scorer
from splits import read_fingerprint

COMPARED = ("default", "everywhere", "heldout", "unseen")  # their data are used for a comparison


def define_flags():
    flags.DEFINE_list("workdir", None, "The run's folder, by default the newest under runs/; "
                      "of several, separated by commas, one table is made.")  # fmt: skip
    flags.DEFINE_string("step", "best", "Which checkpoint: best, last or a step's number.")
    flags.DEFINE_enum("split", "test", data.SPLITS, "Whose pairs.")
    flags.DEFINE_string("threshold", None, "Probability from which on to say same; accuracy or "
                        "far:RATE: fitted on validation and kept.")  # fmt: skip
    flags.DEFINE_string("data", None, "Where the run's files are now, if they have moved.")
    flags.DEFINE_list("images", None, "Two files to compare, or a folder: all with each other.")
    flags.DEFINE_bool("robustness", False, "Which nuisance breaks it: one more at each step.")
    flags.DEFINE_integer("way", None, "Few-shot: how many classes to choose from.", 2)
    flags.DEFINE_integer("shot", 1, "Few-shot: how many images of each class are known.", 1)
    flags.DEFINE_bool("within", False, "Few-shot: all classes of one folder, as Greek/alpha.")
    runtime.define_flags()
    hosts.define_flags()


def main(options):
    """Checks the options and runs the evaluation, together with the other hosts."""
    runtime.prepare(options.cache)
    cluster = hosts.read_cluster(options)
    runs, asked = read_command(options)
    values = {f"--{k}": str(v) for k, v in vars(asked).items() if k not in ("images", "facts")}
    values |= settings.flatten({workdir.name: config.to_dict() for config, workdir in runs})
    with hosts.joined(cluster, values):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # else JAX only notes the signal
        if jax.process_index() == 0:
            for fact in asked.facts:
                print(fact, flush=True)
            Thread(target=curves.import_slow, daemon=True).start()
        try:
            if len(runs) > 1:
                compare_runs(runs, asked.step, asked.split)
            else:
                evaluate_run(*runs[0], asked)
        except FloatingPointError as error:
            raise UserError(error) from None


def read_command(options):
    """Returns ([(config, workdir) of each run], asked), checked; raises UserError.

    asked: most options as a SimpleNamespace; its images are (names, uint8 [n, height, width,
    channels]) or None. Its facts are to be said, once each.
    """
    named = [settings.named_workdir(name) for name in options.workdir or ()]
    workdirs = named or [settings.newest_run(Path("runs"))]
    check_threshold(options.threshold)
    if len(workdirs) > 1 and (options.images or options.robustness or options.threshold):
        text = "--images, --robustness and --threshold are about one run"
        raise UserError(f"{text}: name one --workdir")
    fits = options.threshold == "accuracy" or (options.threshold or "").startswith("far:")
    needs_data = fits or not (options.images or options.robustness)
    if options.data is not None and not needs_data:
        raise UserError("--data: --images and --robustness read no data: leave it out")
    runs = [(settings.load_config(workdir), workdir) for workdir in workdirs]
    for folder in workdirs + ([workdirs[0].parent] if len(workdirs) > 1 else []):
        settings.check_writable(folder, f"--workdir={folder}")
    first = runs[0][0].data
    check_few_shot(options, first, len(workdirs))
    names = ("step", "split", "threshold", "robustness", "way", "shot", "within")
    asked = {name: options[name].value for name in names}
    asked["images"] = options.images and images.open_images(options.images, form_of(first))
    if options.robustness and (first.source != "shapes" or first.same_as == "pixels"):
        raise UserError("--robustness: for runs about classes of drawn shapes, not files or pixels")
    found = [find_data(*run, options.data) for run in runs if needs_data]
    asked["facts"] = list(dict.fromkeys(chain(*found)))
    return runs, SimpleNamespace(**asked)


def find_data(config, workdir, moved):
    """Sets in config.data where the files of a run are now, and that they keep their splits.

    moved: the option --data, or None. Returns what is to be said about the data, a list of str;
    raises UserError where they cannot be evaluated.
    """
    facts, found = [], config.data
    if found.source == "shapes" and moved is not None:
        raise UserError(f"--data={moved}: {workdir} draws its images, it reads no files")
    if moved is not None:
        found.path = os.path.abspath(moved) if os.path.exists(moved) else moved
    if os.path.isabs(found.path) and not os.path.exists(found.path):
        text = f"--workdir={workdir}: its images are not at {found.path}"
        raise UserError(f"{text}: name where they are now with --data=PATH")
    if read_fingerprint(workdir) is not None:
        found.splits_of = str(workdir)
    elif found.source != "shapes":
        facts = [f"{workdir} has no fingerprint of its data: changes of them are not noticed"]
    data.check_splits(config)
    return data.describe(config) + facts


def check_threshold(rule):
    """Raises UserError unless the rule is None, accuracy, far:RATE or a probability."""
    try:
        wrong = rule not in (None, "accuracy") and not 0 < float(rule.removeprefix("far:")) < 1
    except ValueError:
        wrong = True
    if wrong:
        text = "a number between 0 and 1, accuracy, or far:RATE as in far:0.01"
        raise UserError(f"--threshold={rule}: {text}")


def check_few_shot(options, data, runs):
    """Raises UserError where --way, --shot and --within cannot be done; data: config.data."""
    if options.way is None:
        if options.shot != 1 or options.within:
            raise UserError("--shot and --within are about few-shot answers: name --way, too")
        return
    if runs > 1 or options.images or options.robustness:
        raise UserError("--way is about the data of one run, without --images and --robustness")
    if data.source not in ("folder", "tfds"):
        text = "for runs on images in classes (data.source folder or tfds)"
        raise UserError(f"--way={options.way}: {text}, not {data.source}")


def evaluate_run(config, workdir, asked):
    """Writes a report, compares images or prints a robustness sweep; asked: of `read_command`."""
    model = create_model(config)
    score = make_scorer(model)
    step, variables = scoring.load_variables(config, workdir, model, asked.step)
    threshold = choose_threshold(config, workdir, step, score, variables, asked.threshold)
    if asked.images:
        compare_images(score, variables, threshold, *asked.images)
    elif asked.robustness:
        print_robustness(config, score, variables, threshold)
    else:
        found = evaluate(config, score, variables, asked.split, MOST_PAIRS, threshold)
        if asked.way is not None:
            found.metrics["few_shot"] = few_shot(config, score, variables, found, asked)
        write_report(config, workdir, step, {asked.split: found}, score)


def few_shot(config, score, variables, evaluation, asked):
    """N-way K-shot of the images of a split, see `retrieval.few_shot`; raises UserError."""
    shown, classes, _ = data.enumerate_images(config.data, asked.split)
    names = data.class_names(config.data, data.open_split(config.data, asked.split).class_ids)
    groups = np.array([name.rpartition("/")[0] * asked.within for name in names.tolist()])
    episodes = retrieval.draw_episodes(classes, groups, asked.way, asked.shot, config.seed)
    if evaluation.metrics["exact"]:
        matrix = retrieval.score_matrix(evaluation.pairs, evaluation.scores.logits)

    def compare(first, second):
        if evaluation.metrics["exact"]:
            return matrix[first, second]
        first, second = np.broadcast_arrays(first, second)
        unknown = [None] * (len(data.Pairs._fields) - 3)  # labels, weights, ...
        pairs = data.Pairs(shown, first.ravel(), second.ravel(), *unknown)
        return score(variables, pairs)[1].reshape(first.shape)

    error, interval = retrieval.few_shot(compare, episodes)
    found = {name: getattr(asked, name) for name in ("way", "shot", "within")}
    return found | {"error": error, "interval": interval, "episodes": retrieval.EPISODES,
                    "facts": episodes.facts}  # fmt: skip


def choose_threshold(config, workdir, step, score, variables, rule):
    """The threshold as a logit.

    rule: a probability as a text, which is not kept; "accuracy" or "far:RATE", to fit it on
    validation and keep it in the run's folder; or None for `kept_threshold`. The logit is kept:
    as probabilities all logits above 37 are equal.
    """
    if rule is None:
        return scoring.kept_threshold(config, workdir, step)
    if rule != "accuracy" and not rule.startswith("far:"):
        return float(logit(float(rule)))
    found = evaluate(config, score, variables, "validation", MOST_PAIRS)
    far = None if rule == "accuracy" else float(rule.removeprefix("far:"))
    fitted = fitting_pairs(found.pairs, far)
    threshold = fit_threshold(found.scores.logits, found.pairs.label, found.pairs.weight, far)
    kept = {"logit": threshold, "probability": expit(threshold), "rule": rule, "step": step}
    if jax.process_index() == 0:
        (workdir / THRESHOLD).write_text(json.dumps(kept, indent=2) + "\n")
        print(f"threshold {expit(threshold):.6f} ({rule}), kept in {THRESHOLD}, {fitted}")
    return threshold


def compare_images(score, variables, threshold, names, images):
    """Prints the answer for two images, or for more the matrix of probabilities as CSV."""
    n = len(names)
    first, second = np.indices((n, n)).reshape(2, -1)
    unknown = [None] * (len(data.Pairs._fields) - 3)  # labels, weights, ...
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
    """Prints a robustness sweep: the accuracy on drawn pairs, each line with one nuisance more."""
    print(f"{'one more each':<16}accuracy of {config.eval.num_pairs:,} pairs")
    for name, pairs in robustness.sweep(config):
        found = evaluate_pairs(config, score, variables, pairs, threshold)
        right = found.scores.predicted == (pairs.label == 1)
        low, high = wilson(int(right.sum()), len(right))
        text = f"  (95 %: {low:.4f} to {high:.4f})" if name != "identical" else ""
        print(f"{name:<16}{right.mean():.4f}{text}", flush=True)


def compare_runs(runs, which, split):
    """Prints a table of several runs and writes it to comparison.md, beside the first run.

    Runs whose configs differ only in the seed are one row, with mean and range.
    """
    rows = {}
    for config, workdir in runs:
        model = create_model(config)
        scoring.load_variables(config, workdir, model, which)  # fails early if it cannot be read
        values = settings.flatten(config.to_dict() | {"data": which_data(config, workdir)})
        free = {"seed", *settings.NEUTRAL} - {"data.path"}
        key = tuple((k, v) for k, v in values.items() if k not in free)
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


def which_data(config, workdir):
    """config.data as a dict; of files their fingerprint instead of their place, if there is one."""
    kept, values = read_fingerprint(workdir), config.data.to_dict()
    return values | {"path": fingerprint.identity(kept), "splits_of": ""} if kept else values


def difference(run1, run2, which, split):
    """McNemar's test of two runs (config, workdir) on the same drawn pairs, as one line."""
    config1, name1, name2 = run1[0], run1[1].name, run2[1].name
    if which_data(*run1) != which_data(*run2):
        return f"{name1} and {name2} have different data: no test of their difference"
    pairs, right = data.sample_pairs(config1, split, config1.eval.num_pairs), []
    for config, workdir in (run1, run2):
        model, _, variables, threshold = scoring.load_run(config, workdir, which)
        found = evaluate_pairs(config, make_scorer(model), variables, pairs, threshold)
        right.append(found.scores.predicted == (pairs.label == 1))
    only1, only2, p = mcnemar(*right)
    return (
        f"of {len(pairs.label):,} drawn {split} pairs {name1} alone is right on {only1:,}, "
        f"{name2} alone on {only2:,}: McNemar's p = {p:.2g}"
    )


def measure_run(config, workdir, score, which, split):
    """{column: number} of a run; None if unknown, as the accuracy at another image size."""
    model, _, variables, threshold = scoring.load_run(config, workdir, which)
    size, channels = config.data.image_size, config.data.channels
    image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.uint8)
    cost = jax.jit(model.apply).lower(variables, image, image).cost_analysis()
    wrong, rates = curves.read(workdir, "validation/wrong", "train/pairs_per_second")
    columns = {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        "multiply-adds": cost["flops"] / 2,
        "training pairs/s": float(np.median([rate for _, rate in rates])) if rates else None,
        "steps to 0 wrong": next((step for step, count in wrong if count == 0), None),
    }
    configs = {f"`{c}`": importlib.import_module(f"configs.{c}").get_config() for c in COMPARED}
    accuracies = {}  # by data: a run's own may be that of a config
    for name, other in ({"its own data": config} | configs).items():
        key = settings.frozen(other.data)
        if (key.image_size, key.channels) != (size, channels):
            accuracies[key] = None
        elif key not in accuracies:  # seed 0: the same sample for every run
            asked = ConfigDict(config.to_dict() | {"data": other.data.to_dict(), "seed": 0})
            found = evaluate(asked, score, variables, split, threshold=threshold)
            accuracies[key] = found.metrics["accuracy"]
        columns[name] = accuracies[key]
    return columns


if __name__ == "__main__":
    command_line.run(define_flags, main)
