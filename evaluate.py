"""Measures how well a run tells "same" from "different": over every pair, or a sample of pairs.

    python evaluate.py                                       # the newest run under runs/
    python evaluate.py --workdir=runs/default --step=last --split=validation
    python evaluate.py --images=a.png,b.png                  # the same or not?
    python evaluate.py --gallery=db --query=a.png            # the nearest in a folder: gallery.py
    python evaluate.py --threshold=far:0.01                  # fitted on validation, and kept
    python evaluate.py --way=20 --shot=1 --within            # one-shot, within an alphabet
    python evaluate.py --workdir=runs/folder --data=new/photos   # the files have moved

"Same" is the positive class.
"""

from errors import UserError  # first: from here on a missing package is one line

# isort: split
import csv
import os
import signal
import sys
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
from absl import flags
from scipy.special import expit, logit

import calibration
import command_line
import data
import fingerprint
import gallery
import hosts
import images
import retrieval
import runtime
import scoring
import settings
from decoding import form_of
from metrics import fit_threshold, fitting_pairs
from model import create_model
from report import write_report
from scoring import MOST_PAIRS, THRESHOLD, evaluate, make_scorer
from spaces import Pairs
from splits import read_fingerprint


def define_flags():
    scoring.define_run_flags()
    flags.DEFINE_enum("split", "test", data.SPLITS, "Whose pairs.")
    flags.DEFINE_string("threshold", None, "Probability from which on to say same; accuracy or "
                        "far:RATE: fitted on validation and kept.")  # fmt: skip
    flags.DEFINE_string("data", None, "Where the run's files are now, if they have moved.")
    flags.DEFINE_list("images", None, "Two files to compare, or a folder: all with each other.")
    gallery.define_flags()
    flags.DEFINE_integer("way", None, "Few-shot: how many classes to choose from.", 2)
    flags.DEFINE_integer("shot", 1, "Few-shot: how many images of each class are known.", 1)
    flags.DEFINE_bool("within", False, "Few-shot: all classes of one folder, as Greek/alpha.")
    runtime.define_flags()
    hosts.define_flags()


def main(options):
    """Checks the options and runs the evaluation, together with the other hosts."""
    runtime.prepare(options.cache)
    cluster = hosts.read_cluster(options)
    config, workdir, asked = read_command(options)
    values = {f"--{k}": str(v) for k, v in vars(asked).items() if k not in ("images", "facts")}
    values |= settings.flatten({workdir.name: config.to_dict()})
    if cluster is not None and reads_data(asked):
        values |= fingerprint.seal(config.data)
    with hosts.joined(cluster, values):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # else JAX only notes the signal
        if jax.process_index() == 0 and asked.facts:
            print(*asked.facts, sep="\n", flush=True)
        evaluate_run(config, workdir, asked)


def read_command(options):
    """Returns (config, workdir, asked), checked; raises UserError.

    asked: most options as a SimpleNamespace; its images are (names, uint8 [n, height, width,
    channels]) or None. Its facts about the data are to be said.
    """
    config, workdir = scoring.find_run(options)
    for wrong, text in (*mistakes(options, config.data), *gallery.mistakes(options)):
        if wrong:
            raise UserError(text)
    names = "step split threshold way shot within gallery query nearest enroll".split()
    asked = {name: options[name].value for name in names}
    asked["images"] = options.images and images.open_images(options.images, form_of(config.data))
    asked["facts"] = find_data(config, workdir, options.data) if reads_data(options) else []
    return config, workdir, SimpleNamespace(**asked)


def reads_data(asked):
    """Whether the run's data are needed: of --images and --gallery only to fit a threshold."""
    return not (asked.images or asked.gallery) or is_fitted(asked.threshold)


def mistakes(options, data):
    """Yields (whether the options are wrong in a way, text that says what is); data: config.data"""
    rule, way = options.threshold, options.way
    text = "a number between 0 and 1, accuracy, or far:RATE as in far:0.01"
    fits = rule in (None, "accuracy") or is_share(rule.removeprefix("far:"))
    yield not fits, f"--threshold={rule}: {text}"
    text = "--data: --images and --gallery read no data: leave it out"
    yield options.data is not None and not reads_data(options), text
    folders = [name for name in options.images or () if os.path.isdir(name)]
    text = f"--images={','.join(options.images or ())}: name files, or one folder alone; to look"
    text += " one image up in a folder: --gallery=FOLDER --query=FILE"
    yield folders and len(options.images) > 1, text
    text = "--shot and --within are about few-shot answers: name --way, too"
    yield way is None and (options.shot != 1 or options.within), text
    text = "--way is about the data of the run: leave out --images"
    yield way is not None and options.images, text
    text = "for runs on images in classes (data.source folder or tfds), not"
    fits = way is None or data.source in ("folder", "tfds")
    yield not fits, f"--way={way}: {text} {data.source}"


def is_share(text):
    """Whether a text is a number between 0 and 1."""
    try:
        return 0 < float(text) < 1
    except ValueError:
        return False


def is_fitted(rule):
    """Whether a rule of the threshold is fitted on validation."""
    return rule == "accuracy" or (rule or "").startswith("far:")


def find_data(config, workdir, moved):
    """Sets in config.data where the files of a run are now, and that they keep their splits.

    moved: the option --data, or None. Returns what is to be said about the data, a list of str;
    raises UserError where they cannot be evaluated.
    """
    facts, found = [], config.data
    if found.source == "shapes" and moved is not None:
        raise UserError(f"--data={moved}: {workdir} draws its images, it reads no files")
    if moved is not None:
        found.path = moved if found.source == "tfds" else os.path.abspath(moved)
    if os.path.isabs(found.path) and not os.path.exists(found.path):
        text = f"--workdir={workdir}: its images are not at {found.path}"
        raise UserError(f"{text}: name where they are now with --data=PATH")
    if read_fingerprint(workdir) is not None:
        found.splits_of = str(workdir)
    elif found.source != "shapes":
        facts = [f"{workdir} has no fingerprint of its data: changes of them are not noticed"]
    data.check_splits(config)
    return data.describe(config) + facts


def evaluate_run(config, workdir, asked):
    """Writes a report, or compares images; asked: of `read_command`."""
    model = create_model(config)
    score = make_scorer(model)
    step, variables = scoring.load_variables(config, workdir, model, asked.step)
    threshold = choose_threshold(config, workdir, step, score, variables, asked.threshold)
    if asked.gallery is not None:
        gallery.search(config, workdir, step, model, variables, threshold, asked)
    elif asked.images:
        compare_images(score, variables, threshold, *asked.images)
    else:
        found = evaluate(config, score, variables, asked.split, MOST_PAIRS, threshold)
        if asked.way is not None:
            found.metrics["few_shot"] = few_shot(config, score, variables, asked)
        write_report(config, workdir, step, {asked.split: found}, score)


def few_shot(config, score, variables, asked):
    """N-way K-shot of the images of a split, see `retrieval.few_shot`; raises UserError."""
    shown, classes, _ = data.enumerate_images(config.data, asked.split)
    names = data.class_names(config.data, data.open_split(config.data, asked.split).class_ids)
    groups = np.array([name.rpartition("/")[0] * asked.within for name in names.tolist()])
    chosen = asked.way, asked.shot, config.seed
    queries, supports, facts = retrieval.draw_episodes(classes, groups, *chosen)
    compare = partial(compare_all, score, variables, shown)
    error, interval = retrieval.few_shot(compare, queries, supports)
    asked = {name: getattr(asked, name) for name in ("way", "shot", "within")}
    found = {"error": error, "interval": interval, "episodes": retrieval.EPISODES, "facts": facts}
    return asked | found


def compare_all(score, variables, images, first, second):
    """The logits of images at these indices, two int arrays, which are broadcast."""
    first, second = np.broadcast_arrays(first, second)
    unknown = [None] * (len(Pairs._fields) - 3)  # labels, weights, ...
    pairs = Pairs(images, first.ravel(), second.ravel(), *unknown)
    return score(variables, pairs).reshape(first.shape)


def choose_threshold(config, workdir, step, score, variables, rule):
    """The threshold as a logit, by a rule of --threshold; None: `kept_threshold`.

    What is fitted is kept in the run's folder, as a logit: as probabilities all above 37 are equal.
    """
    if rule is None:
        return scoring.kept_threshold(config, workdir, step)
    if not is_fitted(rule):
        return float(logit(float(rule)))
    found = evaluate(config, score, variables, "validation", MOST_PAIRS)
    far = None if rule == "accuracy" else float(rule.removeprefix("far:"))
    fitted = fitting_pairs(found.pairs, far) + calibration.caution(config.data, found.pairs)
    threshold = fit_threshold(found.scores.logits, found.pairs.label, found.pairs.weight, far)
    if jax.process_index() == 0:
        kept = {"step": step, "logit": threshold, "probability": expit(threshold), "rule": rule}
        settings.write_json(kept, workdir / THRESHOLD)
        print(f"threshold {expit(threshold):.6f} ({rule}), kept in {THRESHOLD}, {fitted}")
    return threshold


def compare_images(score, variables, threshold, names, images):
    """Prints the answer for two images, or for more the matrix of probabilities as CSV."""
    every = np.arange(len(names))
    logits = compare_all(score, variables, images, every[:, None], every)
    if len(names) == 2:
        answer = "same" if logits[0, 1] >= threshold else "different"
        texts = (f"{expit(number):.6f}" for number in (logits[0, 1], threshold))
        print("{}: probability of same {}, threshold {}".format(answer, *texts))
        return
    print(f"probabilities of same; same from {expit(threshold):.6f} on", file=sys.stderr)
    sys.stdout.reconfigure(errors="surrogateescape")  # names of files are any bytes
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["", *names])
    for name, row in zip(names, expit(logits), strict=True):
        table.writerow([name, *(f"{p:.6f}" for p in row)])


if __name__ == "__main__":
    command_line.run(define_flags, main)
