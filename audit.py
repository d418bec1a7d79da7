"""Says what data are and what gives their answers away, without training anything.

    python audit.py --config=configs/everywhere.py

How many images and pairs there are, how many of the test's training has seen, what contradicts
itself, a sheet of samples, and how often rules that know nothing of shape are right on test pairs.
"""

from errors import UserError  # first: from here on a missing package is one line

# isort: split
from functools import partial
from pathlib import Path

import numpy as np
from absl import flags

import command_line
import data
import duplicates
import runtime
import shortcuts
from figures import new_figure, short
from images import hash_pixels, load
from listings import SPLITS
from settings import check_writable, frozen
from spaces import DrawnImages, GivenPairs, open_split

SEEN_PAIRS = 100_000  # of training, at most


def define_flags():
    command_line.define_config("Whose data.")
    flags.DEFINE_string("output", None, "The figure; by default runs/<config's name>.png.")
    runtime.define_flags()


def main(options):
    runtime.prepare(options.cache)
    config, name = command_line.read_config(options)
    path = Path("runs", f"{name}.png") if options.output is None else Path(options.output)
    if path.suffix != ".png" or path.is_dir():
        raise UserError(f"--output={options.output}: must be the path of a .png file")
    check_writable(path.absolute().parent, f"--output={path}")
    data.check_splits(config)
    train, test = (shortcuts.take_pairs(config, s) for s in ("train", "test"))
    facts = [f"{what:<28}{text}" for what, text in (*count(config), *seen(config, test))]
    found = duplicates.find_all(config.data)
    rules = shortcuts.blind_rules(config, train, test)
    table = format_rules(train, test, rules)
    print("\n".join([*data.describe(config), *facts, *found, "", *table]))
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = [*(" ".join(line.split()) for line in facts), *(line.split(": ")[0] for line in found)]
    plot_audit(config, shown, train, test, rules).savefig(path, bbox_inches="tight")
    print(f"wrote {path}")


def format_rules(train, test, rules):
    """How often each rule is right, a line each, and advice where one is: list of str."""
    sizes = [f"{'all' * p.exact or 'a sample of'} {len(p.label):,} pairs" for p in (test, train)]
    how = "of {}; the rules are fitted on {} of training".format(*sizes)
    lines = [f"{'right on test pairs':<28}{how}"]
    lines += [f"  {name:<26}{100 * rules[name]:.1f} %" for name in rules]
    if rules[best := max(rules, key=rules.get)] > rules[shortcuts.CONSTANT] + 0.05:
        text = f"the rule {best!r} is right on {100 * rules[best]:.1f} % of test pairs"
        lines += [f"advice: {text}: a network must beat it, or has learnt no more"]
    return lines


def count(config):
    """How many images and ordered pairs each split has: yields (what, text)."""
    files = config.data.source != "shapes"
    for split in SPLITS:
        space = open_split(config.data, split)
        if isinstance(space, DrawnImages):
            yield split, f"images of {len(space.class_ids):,} classes, too many to list"
            continue
        rows = duplicates.used_rows(space)
        hashes = load(config.data).split_hash if files else hash_pixels(space.images)
        n, different = len(rows), len(np.unique(hashes[rows]))
        text = f"{n:,} images" + f" ({different:,} different)" * (different < n)
        if isinstance(space, GivenPairs):
            yield split, f"{text} in {len(space.pairs):,} given pairs"
        else:
            pairs = n * (n - files)  # no file is paired with itself
            yield split, f"{text} of {len(space.class_ids):,} classes, {pairs:,} ordered pairs"


def seen(config, test):
    """The shares of test images and test pairs that training draws at first: yields (what, text).

    `test` are Pairs. A pair is the same whichever image comes first.
    """
    steps = min(config.num_steps, -(-SEEN_PAIRS // config.batch_size))
    batches = (data.make_batch(config, "train", step)[:2] for step in range(steps))
    known = np.concatenate([np.stack([*map(hash_pixels, both)], axis=1) for both in batches])
    asked = hash_pixels(test.images)[np.stack([test.first, test.second], axis=1)]
    known_pairs, pairs = (np.sort(both, axis=1) @ [1, 1j] for both in (known, asked))
    shares = {"images": np.isin(asked, known).mean(axis=1), "pairs": np.isin(pairs, known_pairs)}
    first = "the first " if steps < config.num_steps else ""
    for what, share in shares.items():
        text = f"{100 * share @ test.weight:.2f} % after {first}{len(known):,} training pairs"
        yield f"test {what} seen", text


def plot_audit(config, facts, train, test, rules):
    """A sheet, from top to bottom: the facts, samples, pairs, and how often each rule is right."""
    sheets = {"samples of training": tile_samples(config, train)}
    if any(config.augment.values()):
        title = "training images, and what the network sees of them in ten steps"
        sheets[title] = tile_changes(config, train)
    sheets["pairs of the test"] = tile_pairs(test)
    heights = [6.2 * sheet.shape[0] / sheet.shape[1] for _, sheet in sheets.values()]
    figure = new_figure(7, sum(heights) + 4.8)
    figure.suptitle("\n".join(facts), x=0.01, ha="left", fontsize=11)
    *above, axes = figure.subplots(len(sheets) + 1, 1, height_ratios=[*heights, 2.6])
    for part, (title, (names, sheet)) in zip(above, sheets.items(), strict=True):
        part.imshow(sheet.squeeze(), "gray", vmin=0, vmax=255)
        height = len(sheet) / len(names)
        part.set_yticks((np.arange(len(names)) + 0.5) * height - 0.5, names, fontsize=11)
        part.set(xticks=[], title=title)
        part.tick_params(length=0)
        part.spines[:].set_visible(False)
    names = list(rules)[::-1]
    axes.barh(names, [100 * rules[name] for name in names], color="lightsteelblue")
    axes.axvline(100 * rules[shortcuts.CONSTANT], color="black", linewidth=1)
    for place, name in enumerate(names):
        axes.text(1, place, f"{name}: {100 * rules[name]:.1f} %", va="center", fontsize=11)
    axes.set(xlim=(0, 100), yticks=[], title="right on test pairs, %")
    return figure


def tile_samples(config, train, columns=14, most=8):
    """Samples of training, a row for each of the first classes: (names of rows, one image)."""
    order = np.random.default_rng(0).permutation(len(train.images))
    known = train.class_ids is not None
    classes = train.class_ids[order] if known else np.arange(len(order)) // columns
    found, counts = np.unique(classes, return_counts=True)
    shown = found[np.sort(np.argsort(-counts, kind="stable")[:most])]
    names = data.class_names(config.data, shown) if known else [""] * len(shown)
    rows = [framed(train.images[order[classes == c][:columns]]) for c in shown]
    return [short(str(name), 16) for name in names], tile(rows)


def tile_changes(config, train, steps=10, most=5):
    """Some images of training, a row for each, and what becomes of it in the first steps."""
    from jax import jit

    import augment  # slow: it imports the model

    images = train.images[np.random.default_rng(0).permutation(len(train.images))[:most]]
    change = jit(partial(augment.augment, frozen(config.augment), config.seed))
    changed = [images, *(change(step, np.arange(len(images)), images) for step in range(steps))]
    return [""] * len(images), tile([framed(np.asarray(row)) for row in zip(*changed, strict=True)])


def tile_pairs(test, columns=5, most=2):
    """Pairs of the test, at most so many rows of each kind: (names of rows, one image)."""
    order = np.random.default_rng(0).permutation(len(test.label))
    names, rows = [], []
    for kind, name in ((1, "same"), (0, "different")):
        chosen = order[test.label[order] == kind][: columns * most]
        both = [framed(test.images[place[chosen]]) for place in (test.first, test.second)]
        both = np.concatenate([*both, np.full_like(both[0][:, :, :6], 255)], axis=2)  # and a gap
        both = np.pad(both, ((0, 0), (3, 3), (0, 0), (0, 0)), constant_values=255)
        rows += [both[start:][:columns] for start in range(0, len(both), columns)]
        names += [name] * (len(rows) - len(names))
    return names, tile(rows)


def tile(rows):
    """Rows of images [n, height, width, channels] as one image, white where a row is short."""
    sheet = np.full((len(rows), max(map(len, rows)), *rows[0].shape[1:]), 255, np.uint8)
    for row, shown in zip(sheet, rows, strict=True):
        row[: len(shown)] = shown
    return np.concatenate(np.concatenate(sheet, axis=1), axis=1)


def framed(images):
    """Images [n, height, width, channels] with a grey line around each."""
    return np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=128)


if __name__ == "__main__":
    command_line.run(define_flags, main)
