"""Says what data are and what gives their answers away, without training anything.

    python audit.py --config=configs/everywhere.py

How many images and pairs there are, how many of the test's training has seen, a sheet of samples,
and how often rules that know nothing of shape are right on test pairs, fitted on training pairs.
"""

from errors import UserError  # first: from here on a missing package is one line

# isort: split
from pathlib import Path

import numpy as np
from absl import flags

import command_line
import data
from figures import new_figure
from images import hash_pixels
from listings import SPLITS
from settings import check_writable
from shapes import is_continuous
from spaces import DrawnImages, GivenPairs, ListedImages, open_split

TRAIN_PAIRS, TEST_PAIRS = 10_000, 5000  # drawn for rules
MOST_PAIRS = 10**6  # at most this many are counted one by one
SIMULATED_PAIRS = 100_000  # of training, at most


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
    facts, rules = [*count(config), *seen(config)], blind_rules(config)
    lines = [f"{name:<28}{text}" for name, text in facts]
    how = f"{TEST_PAIRS:,} drawn, rules fitted on {TRAIN_PAIRS:,}, each pair once"
    lines += ["", f"{'right on test pairs':<28}{how}"]
    lines += [f"  {name:<26}{100 * accuracy:.1f} %" for name, accuracy in rules.items()]
    print("\n".join(lines))
    path.parent.mkdir(parents=True, exist_ok=True)
    plot_audit(config, facts, rules).savefig(path)
    print(f"wrote {path}")


def count(config):
    """How many images and ordered pairs each split has: yields (what, text)."""
    for split in SPLITS:
        space = open_split(config.data, split)
        if isinstance(space, GivenPairs):
            images = len(np.unique(space.pairs[:, :2]))
            text = f"{images:,} images in {len(space.pairs):,} given pairs"
        elif isinstance(space, DrawnImages):
            kind = "continuous" if is_continuous(config.data) else "too many to list"
            text = f"images of {len(space.class_ids):,} classes, {kind}"
        else:
            n, different = len(space.rows), len(np.unique(hash_rows(space.images, space.rows)))
            pairs = f"{n * (n if space.repeats else n - 1):,} ordered pairs"
            text = f"{different:,} images of {len(space.class_ids):,} classes, {pairs}"
        yield split, text


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


def blind_rules(config):
    """How often each rule is right on test pairs: {name: accuracy}, the constant answer first."""
    train, test = (
        data.sample_pairs(config, split, count)
        for split, count in (("train", TRAIN_PAIRS), ("test", TEST_PAIRS))
    )
    # Each pair once: of a small set the same would come often, and be learnt by heart.
    _, once = np.unique(np.stack(train[1:3]), axis=1, return_index=True)
    train = train.images, *(field[once] for field in train[1:4])
    share = test.label.mean()
    rules = {"always the same answer": max(share, 1 - share)}
    asked = measures(test)
    for name, numbers in measures(train).items():
        rules[name] = forest(numbers, train[3], asked[name], test.label)
    rules["best single pixel"] = single_pixel(train, test)
    if knows_classes(config):
        rules["nearest training image"] = nearest_image(config)
    return rules


def knows_classes(config):
    """Whether an image has a class: not in a list of pairs, nor where pixels are compared."""
    return config.data.source != "pairs" and config.data.same_as != "pixels"


def measures(pairs):
    """What forests are asked about each pair, and knows nothing of shape: {name: [pairs, k]}."""
    images, *places = pairs[:3]
    light = grey(images)
    area, shown = light.sum(axis=(1, 2)), lit(light)
    box = shown.any(axis=1).sum(axis=1) * shown.any(axis=2).sum(axis=1)
    numbers = {
        "lit area of both": area,
        "parity of the area": np.rint(area) % 2,
        "area of the bounding box": box,
    }
    result = {}
    for name, number in numbers.items():
        low, high = np.sort([number[place] for place in places], axis=0)
        result[name] = np.stack([low, high, high - low], axis=1)
    blocks = np.split(np.stack(places), range(1000, len(places[0]), 1000), axis=1)
    apart = [np.abs(light[one] - light[other]).mean(axis=(1, 2)) for one, other in blocks]
    return result | {"|image 1 - image 2|": np.concatenate(apart)[:, None]}


def grey(images):
    """Brightness of each pixel, float32 [n, height, width], 0 ... 1."""
    return images.mean(axis=-1, dtype=np.float32) / 255


def lit(light):
    """Pixels nearer to the brightest than to the darkest of their image: bool, as `grey`."""
    low, high = light.min(axis=(1, 2)), light.max(axis=(1, 2))
    return light > ((low + high) / 2)[:, None, None]


def forest(train, train_label, test, test_label):
    """Accuracy of a random forest: it finds any dependence on a few numbers."""
    from sklearn.ensemble import RandomForestClassifier

    model = RandomForestClassifier(50, min_samples_leaf=3, n_jobs=-1, random_state=0)
    return float((model.fit(train, train_label).predict(test) == test_label).mean())


def single_pixel(train, test):
    """Accuracy of the best answer to whether one pixel is lit in neither, one or both images."""

    def lit_in(pairs):
        shown = lit(grey(pairs[0])).reshape(len(pairs[0]), -1)
        return shown[pairs[1]].astype(np.int8) + shown[pairs[2]]

    seen, label = lit_in(train), train[3]
    same = np.stack([((seen == k) * label[:, None]).sum(axis=0) for k in range(3)])
    every = np.stack([(seen == k).sum(axis=0) for k in range(3)])
    best = np.maximum(same, every - same).sum(axis=0).argmax()
    answer = 2 * same[:, best] >= every[:, best]
    return float((answer[lit_in(test)[:, best]] == test[3]).mean())


def nearest_image(config):
    """Accuracy of giving each test image the class of the training image nearest in pixels."""
    known, classes = images_of_classes(config, "train", TRAIN_PAIRS)
    asked, truth = images_of_classes(config, "test", TEST_PAIRS // 2)
    known, asked = (grey(x).reshape(len(x), -1) for x in (known, asked))
    lengths = (known**2).sum(axis=1)
    blocks = np.array_split(asked, 10)
    nearest = [(lengths - 2 * block @ known.T).argmin(axis=1) for block in blocks]
    said, is_same = (np.equal(*np.split(c, 2)) for c in (classes[np.concatenate(nearest)], truth))
    return float((said == is_same).mean())


def images_of_classes(config, split, pairs):
    """The images of the first pairs that a split draws and their classes, int [2 * pairs]."""
    sample = data.sample_pairs(config, split, pairs)
    rows = np.concatenate([sample.first, sample.second])
    return sample.images[rows], sample.class_ids[rows]


def plot_audit(config, facts, rules):
    """A sheet, from top to bottom: the facts, samples, pairs, and how often each rule is right."""
    sheets = {"samples of training": tile_samples(config), "pairs of the test": tile_pairs(config)}
    heights = [6.2 * sheet.shape[0] / sheet.shape[1] for _, sheet in sheets.values()]
    figure = new_figure(7, sum(heights) + 4.8)
    figure.suptitle("\n".join(map(": ".join, facts)), x=0.01, ha="left", fontsize=11)
    *above, axes = figure.subplots(3, 1, height_ratios=[*heights, 2.6])
    for part, (title, (names, sheet)) in zip(above, sheets.items(), strict=True):
        plot_sheet(part, title, names, sheet)
    names = list(rules)[::-1]
    axes.barh(names, [100 * rules[name] for name in names], color="lightsteelblue")
    axes.axvline(100 * rules[names[-1]], color="black", linewidth=1)
    for place, name in enumerate(names):
        axes.text(1, place, f"{name}: {100 * rules[name]:.1f} %", va="center", fontsize=11)
    axes.set(xlim=(0, 100), yticks=[], title="right on test pairs, %")
    return figure


def tile_samples(config, columns=14, most=8):
    """Samples of training, a row for each of the first classes: (names of rows, one image)."""
    if not knows_classes(config):
        images = data.sample_pairs(config, "train", 200)[0]
        return [""] * 4, tile([framed(images[columns * i :][:columns]) for i in range(4)])
    images, classes = images_of_classes(config, "train", 4000)
    found, counts = np.unique(classes, return_counts=True)
    shown = found[np.sort(np.argsort(-counts, kind="stable")[:most])]
    names = [name[-16:] for name in data.class_names(config.data, shown)]
    return names, tile([framed(images[classes == c][:columns]) for c in shown])


def tile_pairs(config, columns=5, most=2):
    """Pairs of the test, at most so many rows of each kind: (names of rows, one image)."""
    images, first, second, label, *_ = data.sample_pairs(config, "test", 500)
    names, rows = [], []
    for kind, name in ((1, "same"), (0, "different")):
        chosen = np.flatnonzero(label == kind)[: columns * most]
        both = np.concatenate([framed(images[i[chosen]]) for i in (first, second)], axis=2)
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
