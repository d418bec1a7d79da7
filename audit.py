"""Says what data are and what gives their answers away, without training anything.

    python audit.py --config=configs/everywhere.py

How many images and pairs there are, how many of the test's training has seen, what contradicts
itself, a sheet of samples, and how often rules that know nothing of shape are right on test pairs.
"""

from errors import UserError  # first: from here on a missing package is one line

# isort: split
from pathlib import Path

import numpy as np
from absl import flags

import command_line
import data
import duplicates
import shortcuts
from figures import new_figure
from images import hash_pixels
from listings import SPLITS
from settings import check_writable
from shapes import is_continuous
from spaces import DrawnImages, GivenPairs, ListedImages, open_split

TEST_PAIRS = 5000  # drawn to see how many of them training has seen
MOST_PAIRS = 10**6  # at most this many are counted one by one
SIMULATED_PAIRS = 100_000  # of training, at most
FEW_IMAGES = 5  # of a class in training: fewer are too few


def define_flags():
    command_line.define_config("Whose data.")
    flags.DEFINE_string("output", None, "The figure; by default runs/<config's name>.png.")


def main(options):
    config, name = command_line.read_config(options)
    path = Path("runs", f"{name}.png") if options.output is None else Path(options.output)
    if path.suffix != ".png" or path.is_dir():
        raise UserError(f"--output={options.output}: must be the path of a .png file")
    check_writable(path.absolute().parent, f"--output={path}")
    data.check_splits(config)
    facts, found = [*count(config), *seen(config)], duplicates.find_all(config.data)
    train, test = (shortcuts.each_pair_once(config, s) for s in ("train", "test"))
    rules, notes = shortcuts.blind_rules(config, train, test)
    lines = [*data.describe(config), *(f"{name:<28}{text}" for name, text in facts), *found]
    how = f"of {size(test)}; the rules are fitted on {size(train)} of training"
    lines += ["", f"{'right on test pairs':<28}{how}"]
    lines += [f"  {name:<26}{100 * rules[name]:.1f} %{notes.get(name, '')}" for name in rules]
    print("\n".join([*lines, *advice(config, rules)]))
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = [*map(": ".join, facts), *(line.split(": ")[0] for line in found)]
    plot_audit(config, shown, train, test, rules, notes).savefig(path)
    print(f"wrote {path}")


def size(pairs):
    """How many Pairs these are, as text."""
    return f"{'all' if pairs.exact else 'a sample of'} {len(pairs.label):,} pairs"


def count(config):
    """How many images and ordered pairs each split has: yields (what, text)."""
    for split in SPLITS:
        space = open_split(config.data, split)
        if isinstance(space, DrawnImages):
            kind = "continuous" if is_continuous(config.data) else "too many to list"
            yield split, f"images of {len(space.class_ids):,} classes, {kind}"
            continue
        rows = duplicates.used_rows(space)
        n, different = len(rows), len(np.unique(hash_rows(space.images, rows)))
        text = f"{n:,} images" + (f" ({different:,} different)" if different < n else "")
        if isinstance(space, GivenPairs):
            yield split, f"{text} in {len(space.pairs):,} given pairs"
        else:
            pairs = n * (n if space.repeats else n - 1)
            yield split, f"{text} of {len(space.class_ids):,} classes, {pairs:,} ordered pairs"


def hash_rows(images, rows):
    """The hash of each of these images, by blocks: of some sets the images are not in memory."""
    blocks = (rows[start : start + 4096] for start in range(0, len(rows), 4096))
    return np.concatenate([hash_pixels(images[block]) for block in blocks])


def seen(config):
    """The share of test images and test pairs that training has seen: yields (what, text).

    Exact where training's pairs can be counted, or no test image is among its images; elsewhere
    training is drawn, or its beginning. Pairs are the same whichever image comes first.
    """
    steps, names = config.num_steps * config.batch_size, ("test images seen", "test pairs seen")
    train, test = (data.enumerate_pairs(config.data, s, MOST_PAIRS) for s in ("train", "test"))
    if train and test:
        shares = seen_exactly(train, test, steps)
        how = f"after {steps:,} training pairs (exact)"
    elif apart(config):
        shares, how = (0.0, 0.0), "after any number of training pairs (no image is in both)"
    else:
        drawn = min(steps, SIMULATED_PAIRS)
        shares = seen_by_drawing(config, drawn)
        first = "the first " if drawn < steps else ""
        how = f"after {first}{drawn:,} training pairs (drawn)"
    for name, share in zip(names, shares, strict=True):
        yield name, f"{100 * share:.2f} % {how}"


def seen_exactly(train, test, draws):
    """The expected shares of test images and of test pairs that `draws` random pairs hold.

    `train` and `test` are all Pairs of the two splits. What a random pair holds with probability p
    is in one of `draws` pairs with probability 1 - (1 - p) ** draws.
    """
    images, pairs = number_alike(hashes(train), hashes(test))
    n = len(train.weight)
    weight = np.append(train.weight, np.zeros(len(test.weight)))  # only training is drawn
    first, second = images.T
    once = np.where(first == second, 0, weight)  # an image in both places is in the pair once
    p_image = np.bincount(first, weight, 1 + images.max())
    p_image += np.bincount(second, once, 1 + images.max())
    p_pair = np.bincount(pairs, weight)
    image_seen, pair_seen = (1 - (1 - p.clip(max=1)) ** draws for p in (p_image, p_pair))
    share_of_images = (image_seen[images[n:]].mean(axis=1) * test.weight).sum()
    return share_of_images, (pair_seen[pairs[n:]] * test.weight).sum()


def seen_by_drawing(config, count):
    """The shares of test images and of test pairs in the batches of training, of `count` pairs."""
    batches = (data.make_batch(config, "train", i) for i in range(-(-count // config.batch_size)))
    train = [np.stack([hash_pixels(images) for images in batch[:2]], axis=1) for batch in batches]
    test = hashes(data.sample_pairs(config, "test", TEST_PAIRS))
    numbers = number_alike(np.concatenate(train)[:count], test)
    return [np.isin(one[count:], one[:count]).mean() for one in numbers]


def hashes(pairs):
    """The hashes of both images of each pair: float64 [m, 2]."""
    of_image = hash_rows(pairs.images, np.arange(len(pairs.images)))
    return of_image[np.stack([pairs.first, pairs.second], axis=1)]


def number_alike(*splits):
    """Numbers images and pairs, equal ones alike, by the hashes, float64 [m, 2], of each split.

    Returns (int [pairs, 2] of images, int [pairs] of pairs), of all splits in a row. Whichever
    image comes first, it is the same pair.
    """
    both = np.concatenate(splits)
    found, images = np.unique(both, return_inverse=True)
    low, high = np.sort(images.reshape(both.shape), axis=1).T
    _, pairs = np.unique(low * len(found) + high, return_inverse=True)
    return images.reshape(both.shape), pairs


def apart(config):
    """Whether both splits are listed and no image is in both."""
    train, test = (open_split(config.data, split) for split in ("train", "test"))
    if not (isinstance(train, ListedImages) and isinstance(test, ListedImages)):
        return False
    known, asked = (hash_rows(space.images, space.rows) for space in (train, test))
    return not np.isin(asked, known).any()


def advice(config, rules):
    """Yields a line for each weakness of the data that is to be kept in mind."""
    best = max(rules, key=rules.get)
    if rules[best] > rules[shortcuts.CONSTANT] + 0.05:
        share = f"{100 * rules[best]:.1f} %"
        text = f"the rule {best!r} is right on {share} of test pairs"
        yield f"advice: {text}: a network must beat it, or has learnt no more"
    train = open_split(config.data, "train")
    if isinstance(train, ListedImages) and config.data.source != "shapes":
        few = int((np.diff(train.starts) < FEW_IMAGES).sum())
        text = f"{few} of {len(train.class_ids)} classes have fewer than {FEW_IMAGES} images"
        if few:
            yield f"advice: {text} in training: add images, or more classes"


def plot_audit(config, facts, train, test, rules, notes):
    """A sheet, from top to bottom: the facts, samples, pairs, and how often each rule is right."""
    names, sheet = tile_samples(config, train)
    sheets = {"samples of training": (names, sheet), "pairs of the test": tile_pairs(test)}
    heights = [6.2 * sheet.shape[0] / sheet.shape[1] for _, sheet in sheets.values()]
    figure = new_figure(7, sum(heights) + 4.8)
    figure.suptitle("\n".join(facts), x=0.01, ha="left", fontsize=11)
    *above, axes = figure.subplots(3, 1, height_ratios=[*heights, 2.6])
    for part, (title, (names, sheet)) in zip(above, sheets.items(), strict=True):
        plot_sheet(part, title, names, sheet)
    names = list(rules)[::-1]
    axes.barh(names, [100 * rules[name] for name in names], color="lightsteelblue")
    axes.axvline(100 * rules[shortcuts.CONSTANT], color="black", linewidth=1)
    for place, name in enumerate(names):
        text = f"{name}: {100 * rules[name]:.1f} %{notes.get(name, '')}"
        axes.text(1, place, text, va="center", fontsize=11)
    axes.set(xlim=(0, 100), yticks=[], title="right on test pairs, %")
    return figure


def tile_samples(config, train, columns=14, most=8):
    """Samples of training, a row for each of the first classes: (names of rows, one image)."""
    order = np.random.default_rng(0).permutation(len(train.images))
    if not shortcuts.knows_classes(config):
        rows = np.split(order, range(columns, len(order), columns))[:4]
        return [""] * len(rows), tile([framed(train.images[row]) for row in rows])
    classes = train.class_ids[order]
    found, counts = np.unique(classes, return_counts=True)
    shown = found[np.sort(np.argsort(-counts, kind="stable")[:most])]
    names = [name[-16:] for name in data.class_names(config.data, shown)]
    return names, tile([framed(train.images[order[classes == c][:columns]]) for c in shown])


def tile_pairs(test, columns=5, most=2):
    """Pairs of the test, at most so many rows of each kind: (names of rows, one image)."""
    order = np.random.default_rng(0).permutation(len(test.label))
    names, rows = [], []
    for kind, name in ((1, "same"), (0, "different")):
        chosen = order[test.label[order] == kind][: columns * most]
        both = [framed(test.images[place[chosen]]) for place in (test.first, test.second)]
        both = np.concatenate(both, axis=2)
        gap = both.shape[1] // 10
        both = np.pad(both, ((0, 0), (gap, gap), (0, 2 * gap), (0, 0)), constant_values=255)
        rows += [both[start:][:columns] for start in range(0, len(both), columns)]
        names += [name] * (len(rows) - len(names))
    return names, tile(rows)


def tile(rows):
    """Rows of images [n, height, width, channels] as one image, white where a row is short."""
    sheet = np.full((len(rows), max(map(len, rows)), *rows[0].shape[1:]), 255, np.uint8)
    for row, images in zip(sheet, rows, strict=True):
        row[: len(images)] = images
    return np.concatenate(np.concatenate(sheet, axis=1), axis=1)


def framed(images):
    """Images [n, height, width, channels] with a grey line around each."""
    return np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=128)


def plot_sheet(axes, title, names, sheet):
    """A tiled image with the names of its rows."""
    axes.imshow(sheet.squeeze(), "gray", vmin=0, vmax=255)
    height = len(sheet) / len(names)
    axes.set_yticks((np.arange(len(names)) + 0.5) * height - 0.5, names, fontsize=11)
    axes.set(xticks=[], title=title)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


if __name__ == "__main__":
    command_line.run(define_flags, main)
