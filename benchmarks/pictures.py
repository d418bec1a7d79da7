"""This project beside a PyTorch program on pictures of classes that neither has seen in training.

    pip install -r benchmarks/requirements-pictures.txt
    python benchmarks/sets.py --folder=/tmp/sets --omniglot=../shared/data/omniglot_small1.zip
    python benchmarks/pictures.py --sets=/tmp/sets/omniglot,/tmp/sets/faces --out=/tmp/pictures

A set is a folder ROOT/[GROUP/]CLASS/IMAGE. With groups (alphabets) each group is one fold's test;
without them the classes are dealt into --folds. Both programs are whole commands that get the same
folder, without the test's classes, and work in turns on the same cores: train.py, and
torch_pictures.py (under --torch_python, if PyTorch is elsewhere). Their clocks start with the
command, with all imports, decoding and compiling.

- train.py gets as many steps as fit into --seconds by two short runs before, or --ours_steps. Its
  time is that of the whole command, evaluation and report included.
- torch_pictures.py is one command for all --seconds. --recipe=best runs each of its recipes, and
  shows the one of the lowest mean error over the folds at the middle of --seconds.

One evaluator scores the answers to the same pairs and episodes: one-shot error, within a group, 20
classes at a time (5 or 2 where there are fewer); equal error rate and AUC of all pairs. Pixels are
compared, too, at 32x32: by their L2 distance, and by their correlation.

OUT gets table.md, errors.png and results.jsonl; what is in there is not run again.
"""

import json
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
from absl import flags

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import command_line
import figures
import images
import retrieval
import scoring
import settings
from decoding import Form, form_of
from errors import UserError
from metrics import ranking_metrics
from model import create_model
from shortcuts import pixel_scores
from spaces import Pairs

OPTIONS = flags.FLAGS
OURS = ["--config=configs/folder.py"]  # what train.py is called with for every set
OURS_FOR = {}  # and more for sets of these names
THEIRS_FOR = {"omniglot": ["--turns"], "faces": ["--photos"], "objects": ["--photos"]}
RECIPES = "multi-similarity", "triplet", "prototypical"
MEASURES = {"one_shot": "one-shot error, %", "eer": "EER, %", "roc_auc": "AUC"}
PIXELS = "L2 distance of pixels", "correlation of pixels"


def define_flags():
    flags.DEFINE_list("sets", None, "Folders ROOT/[GROUP/]CLASS/IMAGE.", required=True)
    flags.DEFINE_string("out", None, "Folder of the results.", required=True)
    flags.DEFINE_list("seconds", ["60", "180", "300"], "Budgets, from the command.")
    flags.DEFINE_integer("folds", 5, "Of sets without groups.")
    flags.DEFINE_list("only", [], "Names of folds; by default all.")
    flags.DEFINE_list("ours_steps", [], "As 60:800,180:2600; the others are measured.")
    flags.DEFINE_string("recipe", "best", "Of torch_pictures.py.")
    flags.DEFINE_string("torch_python", sys.executable, "The Python that has PyTorch.")
    flags.DEFINE_string("ours", "", "More options of train.py, separated by spaces.")


def main(_):
    out = Path(OPTIONS.out).absolute()
    out.mkdir(parents=True, exist_ok=True)
    for root in map(Path, OPTIONS.sets):
        for fold, test in folds(list_images(root), OPTIONS.folds).items():
            if not OPTIONS.only or fold in OPTIONS.only:
                run_fold(out, root, fold, test)
    middle = int(OPTIONS.seconds[len(OPTIONS.seconds) // 2])
    write_results(out, best_recipes(read_rows(out), middle))


def list_images(root):
    """The paths of all images from root, sorted."""
    return images.find_images(root)[0]


def split_name(names):
    """(class, group) of each image, str [n] each; all of one group where there are none."""
    parts = [name.split("/") for name in names]
    classes = np.array(["/".join(part[:-1]) for part in parts])
    return classes, np.array([part[0] if len(part) > 2 else "" for part in parts])


def folds(names, count):
    """{name of a fold: names of its test images}: the groups, or the classes dealt by chance."""
    classes, groups = split_name(names)
    if not groups.all():
        kinds, kind = np.unique(classes, return_inverse=True)
        groups = np.char.add(
            "fold ", (np.random.default_rng(0).permutation(len(kinds)) % count)[kind].astype(str)
        )
    return {
        str(fold): [names[i] for i in np.flatnonzero(groups == fold)] for fold in np.unique(groups)
    }


def run_fold(out, root, fold, test):
    """Runs what results.jsonl lacks of a fold, and appends it there."""
    folder, names = out / root.name / fold.replace(" ", "-"), set(list_images(root))
    for part, chosen in (("train", names - set(test)), ("test", test)):
        link(root, chosen, folder / part)
    done = {(row["program"], row["budget"]) for row in read_rows(out, root.name, fold)}

    def save(program, budget, wall, steps, scores):
        row = {"set": root.name, "fold": fold, "program": program, "budget": budget, "wall": wall}
        row |= {"steps": steps} | measure(scores, test)
        print(json.dumps(row), flush=True)
        with open(out / "results.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")

    if (PIXELS[0], 0) not in done:
        for program in PIXELS:
            answer = partial(pixel_answers, program)
            save(program, 0, 0, 0, compare(folder / "test", test, Form(32, 3), answer))
    for recipe in RECIPES if OPTIONS.recipe == "best" else [OPTIONS.recipe]:
        missing = [s for s in OPTIONS.seconds if (f"PyTorch, {recipe}", int(s)) not in done]
        for seconds, *found in run_theirs(folder, root.name, recipe, missing, test):
            save(f"PyTorch, {recipe}", seconds, *found)
    missing = [int(s) for s in OPTIONS.seconds if ("ours", int(s)) not in done]
    steps = choose_steps(folder, root.name, missing)
    for seconds in missing:
        wall, workdir = run_ours(folder, root.name, steps[seconds])
        save("ours", seconds, wall, steps[seconds], compare_ours(workdir, folder / "test", test))


def link(root, names, target):
    """Makes a folder of links to these images; one that is there is made anew."""
    shutil.rmtree(target, ignore_errors=True)
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).symlink_to((root / name).absolute())


def choose_steps(folder, name, budgets):
    """{seconds: steps of train.py}: as given, or as two short runs let expect."""
    given = dict(map(int, pair.split(":")) for pair in OPTIONS.ours_steps)
    if not set(budgets) - set(given):
        return given
    few, many = 100, 300
    walls = [run_ours(folder, name, steps)[0] for steps in (few, many)]
    each = (walls[1] - walls[0]) / (many - few)
    start = walls[0] - few * each
    print(f"train.py: {1000 * each:.1f} ms a step, {start:.1f} s for all else", flush=True)
    fitting = {s: max(1, int((s - start) / each / 100)) * 100 for s in budgets}
    return fitting | given


def run_ours(folder, name, steps):
    """(seconds of the command, folder of the run) of train.py."""
    workdir = folder / f"ours-{steps}"
    shutil.rmtree(workdir, ignore_errors=True)
    command = [sys.executable, "train.py", *OURS, *OURS_FOR.get(name, []), *OPTIONS.ours.split()]
    command += [f"--config.data.path={folder / 'train'}", f"--workdir={workdir}"]
    command += [f"--config.num_steps={steps}", f"--config.eval_every_steps={steps // 5}"]
    return run(command, workdir.with_suffix(".log")), workdir


def run(command, log):
    """Seconds of a command in the project's folder; raises UserError if it fails."""
    began = time.perf_counter()
    with open(log, "w") as file:
        code = subprocess.call(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    if code:
        raise UserError(f"{' '.join(map(str, command))}\n{log.read_text()[-2000:]}")
    return time.perf_counter() - began


def compare_ours(workdir, folder, names):
    """The network's answers to every two images: float [n, n]."""
    config = settings.load_config(workdir)
    model = create_model(config)
    _, variables = scoring.load_variables(config, workdir, model, "best")
    score = scoring.make_scorer(model)
    return compare(folder, names, form_of(config.data), partial(score, variables))


def pixel_answers(name, pairs):
    """One of PIXELS: float [m]."""
    return pixel_scores(pairs)[name]


def compare(folder, names, form, score):
    """score(pairs), float [m], of every two images of a folder in a Form: float [n, n]."""
    paths, pixels = images.open_images([str(folder)], form)
    first, second = np.triu_indices(len(paths), 1)
    label = np.zeros(len(first))
    pairs = Pairs(pixels, first, second, label, label + 1 / len(label), True, False, None)
    scores = np.zeros((len(paths), len(paths)))
    scores[first, second] = scores[second, first] = score(pairs)
    return in_order(scores, [Path(path).relative_to(folder).as_posix() for path in paths], names)


def run_theirs(folder, name, recipe, budgets, names):
    """Yields (seconds, exact seconds, steps, scores [n, n]) of torch_pictures.py."""
    if not budgets:
        return
    out = folder / recipe
    out.mkdir(exist_ok=True)
    command = [OPTIONS.torch_python, ROOT / "benchmarks" / "torch_pictures.py", f"--out={out}"]
    command += [f"--train={folder / 'train'}", f"--test={folder / 'test'}", f"--recipe={recipe}"]
    command += [f"--seconds={','.join(budgets)}", *THEIRS_FOR.get(name, [])]
    run(command, out.with_suffix(".log"))
    for seconds in map(int, budgets):
        found = np.load(out / f"{seconds}.npz")
        scores = in_order(closeness(found["embeddings"]), found["names"], names)
        yield seconds, float(found["wall"]), int(found["steps"]), scores


def closeness(embeddings):
    """The negative squared Euclidean distance of every two of n rows: float64 [n, n]."""
    rows = np.float64(embeddings)
    squares = (rows**2).sum(axis=1)
    return 2 * rows @ rows.T - squares - squares[:, None]


def in_order(scores, found, names):
    """Scores [n, n] of images `found` in the order of `names`, which must be the same ones."""
    place = {name: i for i, name in enumerate(found)}
    assert place.keys() == set(names), "images are missing"
    order = [place[name] for name in names]
    return scores[np.ix_(order, order)]


def measure(scores, names):
    """{name: float} for MEASURES and "way", of scores [n, n]."""
    classes, groups = split_name(names)
    _, first, kinds = np.unique(classes, return_index=True, return_inverse=True)
    group_sizes = np.unique(groups[first], return_counts=True)[1]
    way = next(n for n in (20, 5, 2) if n <= group_sizes.min())
    queries, supports, _ = retrieval.draw_episodes(kinds, groups[first], way, 1, seed=0)
    error, _ = retrieval.few_shot(lambda one, other: scores[one, other], queries, supports)
    pair = np.triu_indices(len(names), 1)
    same = np.float64(kinds[pair[0]] == kinds[pair[1]])
    ranking = ranking_metrics(scores[pair], same, np.ones(len(same)))
    return {"way": way, "one_shot": error, "eer": ranking["eer"], "roc_auc": ranking["roc_auc"]}


def read_rows(out, name=None, fold=None):
    path = out / "results.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [row for row in rows if name in (None, row["set"]) and fold in (None, row["fold"])]


def best_recipes(rows, middle):
    """The rows without those of PyTorch's recipes that are not the best of their set."""
    kept = []
    for name in dict.fromkeys(row["set"] for row in rows):
        own = [row for row in rows if row["set"] == name]
        errors = {}
        for row in own:
            if row["program"].startswith("PyTorch") and row["budget"] == middle:
                errors.setdefault(row["program"], []).append(row["one_shot"])
        best = min(errors, key=lambda program: np.mean(errors[program]), default=None)
        others = errors.keys() - {best}
        kept += [row for row in own if row["program"] not in others]
    return kept


def write_results(out, rows):
    """Writes table.md and errors.png of the rows."""
    lines = ["| set | program | wall, s | steps | " + " | ".join(MEASURES.values()) + " |"]
    lines += ["| --- " * (4 + len(MEASURES)) + "|"]
    curves = {}
    for key in dict.fromkeys((row["set"], row["program"], row["budget"]) for row in rows):
        own = [row for row in rows if (row["set"], row["program"], row["budget"]) == key]
        means = {name: np.mean([row[name] for row in own]) for name in (*MEASURES, "wall", "steps")}
        spread = " / ".join(f"{100 * row['one_shot']:.1f}" for row in own)
        cells = [f"{key[0]}, {own[0]['way']}-way", key[1], f"{means['wall']:.0f}"]
        cells += [f"{means['steps']:,.0f}", f"{100 * means['one_shot']:.1f} ({spread})"]
        cells += [f"{100 * means['eer']:.1f}", f"{means['roc_auc']:.3f}"]
        lines.append("| " + " | ".join(cells) + " |")
        curves.setdefault(key[:2], []).append(own)
    (out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    (out / "errors.png").write_bytes(figures.render(plot(curves)))


def plot(curves):
    """The one-shot error against the time; bold the mean, thin each fold.

    curves: {(set, program): [rows of the folds for each budget]}.
    """
    names = list(dict.fromkeys(name for name, _ in curves))
    figure = figures.new_figure(4.5 * len(names), 4)
    panels = dict(zip(names, figure.subplots(1, len(names), squeeze=False)[0], strict=True))
    for (name, program), budgets in curves.items():
        axes, color = panels[name], f"C{program_color(program)}"
        if program in PIXELS:
            error = 100 * np.mean([row["one_shot"] for row in budgets[0]])
            axes.axhline(error, color=color, linestyle="--", label=program)
            continue
        budgets = sorted(budgets, key=lambda rows: rows[0]["budget"])
        points = [[(row["wall"], 100 * row["one_shot"]) for row in rows] for rows in budgets]
        for fold in zip(*points, strict=False):
            axes.plot(*np.transpose(fold), color=color, linewidth=0.5)
        axes.plot(
            *np.transpose([np.mean(p, axis=0) for p in points]), "o-", color=color, label=program
        )
    for name, axes in panels.items():
        axes.set(title=name, xlabel="seconds from the command", ylabel=MEASURES["one_shot"])
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=8)
    return figure


def program_color(program):
    return ("ours", *RECIPES, *PIXELS).index(program.removeprefix("PyTorch, "))


if __name__ == "__main__":
    command_line.run(define_flags, main)
