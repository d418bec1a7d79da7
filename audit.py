"""Says what data are and what gives their answers away, without training anything.

    python data.py --config=configs/everywhere.py

How many images and pairs there are, how many of the test's training has seen, a sheet of samples,
and how often rules that know nothing of shape are right on test pairs, fitted on training pairs.
"""

import numpy as np

import data
import settings
from figures import new_figure
from shapes import is_continuous

TRAIN_PAIRS, TEST_PAIRS = 10_000, 5000  # drawn for rules
MOST_PAIRS = 10**6  # at most this many are counted one by one
SIMULATED_PAIRS = 100_000  # of training, at most


def main():
    config, path = settings.audit_command()
    facts, rules = [*count(config), *seen(config)], blind_rules(config)
    lines = [f"{name:<28}{text}" for name, text in facts]
    how = f"{TEST_PAIRS:,} drawn, rules fitted on {TRAIN_PAIRS:,}, each pair once"
    lines += ["", f"{'right on test pairs':<28}{how}"]
    lines += [f"  {name:<26}{100 * accuracy:.1f} %" for name, accuracy in rules.items()]
    print("\n".join(lines))
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(config, facts, rules).savefig(path)
    print(f"wrote {path}")


def count(config):
    """How many images and ordered pairs each split has: yields (what, text)."""
    for split in data.SPLITS:
        space = data.open_space(config.data.to_json(), split)
        if space.pairs is not None:
            images = len(np.unique(space.pairs[:, :2]))
            yield split, f"{images:,} images in {len(space.pairs):,} given pairs"
        elif space.rows is None:
            kind = "continuous" if is_continuous(config.data) else "too many to list"
            yield split, f"images of {len(space.class_ids):,} classes, {kind}"
        else:
            n, different = len(space.rows), len(np.unique(position(space.images, space.rows)))
            pairs = f"{n * (n if data.repeats(config.data) else n - 1):,} ordered pairs"
            yield split, f"{different:,} images of {len(space.class_ids):,} classes, {pairs}"


def position(pictures, rows):
    """The hash of each image, block by block: of some sets the images are not in memory."""
    blocks = (rows[start : start + 4096] for start in range(0, len(rows), 4096))
    return np.concatenate([data.images.hash_pixels(pictures[block]) for block in blocks])


def seen(config):
    """The share of test images and test pairs that training has seen: yields (what, text).

    Exact where training's pairs can be counted, or no test image is among its images; elsewhere
    training is drawn, or its beginning. Pairs are the same whichever image comes first.
    """
    steps, names = config.num_steps * config.batch_size, ("test images seen", "test pairs seen")
    train, test = (data.enumerate_pairs(config.data, s, MOST_PAIRS) for s in ("train", "test"))
    if train and test:
        shares = [exactly(train, test, steps, key) for key in (by_image, by_pair)]
        how = f"after {steps:,} training pairs (exact)"
    elif apart(config):
        shares, how = (0.0, 0.0), "after any number of training pairs (no image is in both)"
    else:
        drawn = min(steps, SIMULATED_PAIRS)
        shares = by_drawing(config, drawn)
        first = "the first " if drawn < steps else ""
        how = f"after {first}{drawn:,} training pairs (drawn)"
    for name, share in zip(names, shares, strict=True):
        yield name, f"{100 * share:.2f} % {how}"


def by_drawing(config, count):
    """The shares of test images and pairs that the batches of training with `count` pairs hold."""
    blocks = []
    for step in range(-(-count // config.batch_size)):
        batch = data.make_batch(config, "train", step)
        both = [data.images.hash_pixels(pictures) for pictures in batch[:2]]
        blocks.append(np.stack(both, axis=1))
    train = np.concatenate(blocks)[:count]
    test = by_image(data.sample_pairs(config, "test", TEST_PAIRS))
    return np.isin(test, train).mean(), np.isin(unordered(test), unordered(train)).mean()


def unordered(names):
    """One name for two, in any order: complex128 [pairs, 1] of float64 [pairs, 2]."""
    low, high = np.sort(names, axis=1).T
    return (low + 1j * high)[:, None]


def apart(config):
    """Whether both splits are listed and no image is in both."""
    train, test = (data.open_space(config.data.to_json(), s) for s in ("train", "test"))
    if train.rows is None or test.rows is None:
        return False
    known, asked = (position(space.images, space.rows) for space in (train, test))
    return not np.isin(asked, known).any()


def by_image(pairs):
    """Names both images of each pair by their pixels: float64 [pairs, 2]."""
    pictures, first, second, *_ = pairs
    return position(pictures, np.arange(len(pictures)))[np.stack([first, second], axis=1)]


def by_pair(pairs):
    """Names each pair by the pixels of both images, in any order: complex128 [pairs, 1]."""
    return unordered(by_image(pairs))


def exactly(train, test, steps, key):
    """The probability that what a test pair holds was in one of `steps` training pairs."""
    keys, weight = key(train), train.weight
    names, place = np.unique(keys, return_inverse=True)
    place = place.reshape(keys.shape)
    once = np.bincount(place[:, 0], weight, len(names))
    if keys.shape[1] == 2:  # an image in both places is in the pair but once
        other = np.where(place[:, 1] == place[:, 0], 0, weight)
        once += np.bincount(place[:, 1], other, len(names))
    asked = key(test)
    found = np.searchsorted(names, asked).clip(max=len(names) - 1)
    never = (1 - once.clip(max=1)[found]) ** steps
    chance = np.where(names[found] == asked, 1 - never, 0).mean(axis=1)
    return float((chance * test.weight).sum())


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
    """Whether an image has a class: not in a list of pairs, nor where pictures are compared."""
    return config.data.source != "pairs" and config.data.same_as != "pixels"


def measures(pairs):
    """What forests are asked about each pair, and knows nothing of shape: {name: [pairs, k]}."""
    pictures, *places = pairs[:3]
    light = grey(pictures)
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


def grey(pictures):
    """Brightness of each pixel, float32 [n, height, width], 0 ... 1."""
    return pictures.mean(axis=-1, dtype=np.float32) / 255


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


def draw(config, facts, rules):
    """A sheet of samples by class and of pairs, beside the bars of the rules."""
    figure = new_figure(14, 7.5)
    sheet, right = figure.subfigures(1, 2, width_ratios=(3, 2))
    top, bottom = sheet.subfigures(2, 1)
    show_classes(config, top)
    show_pairs(config, bottom)
    axes = right.subplots()
    names = list(rules)[::-1]
    axes.barh(names, [100 * rules[name] for name in names], color="steelblue")
    axes.axvline(100 * rules[names[-1]], color="black", linewidth=1)
    for place, name in enumerate(names):
        axes.text(1, place, f"{name}: {100 * rules[name]:.1f} %", va="center", color="white")
    axes.set(xlim=(0, 100), yticks=[], xlabel="right on test pairs, %")
    axes.set_title("\n".join(f"{name}: {text}" for name, text in facts), fontsize=9, loc="left")
    return figure


def show_classes(config, figure, columns=14, most=8):
    """Samples of training, a row for each of the first classes."""
    if not knows_classes(config):
        pictures = data.sample_pairs(config, "train", 200)[0]
        rows = {columns * i: pictures[columns * i :][:columns] for i in range(5)}
        names = ["" for _ in rows]
    else:
        pictures, classes = images_of_classes(config, "train", 4000)
        found, counts = np.unique(classes, return_counts=True)
        shown = found[np.sort(np.argsort(-counts, kind="stable")[:most])]
        rows = {c: pictures[classes == c][:columns] for c in shown}
        names = [name[-16:] for name in data.class_names(config.data, shown)]
    height, width = (side + 2 for side in pictures.shape[1:3])
    sheet = np.full((len(rows) * height, columns * width, pictures.shape[-1]), 255, np.uint8)
    for top, row in enumerate(rows.values()):
        for left, picture in enumerate(row):
            place = np.s_[top * height :, left * width :]
            sheet[place][:height, :width] = framed(picture)
    figure.suptitle("samples of training", fontsize=10)
    axes = figure.subplots()
    show(axes, sheet)
    axes.set_axis_on()
    axes.set(xticks=[], yticks=(np.arange(len(rows)) + 0.5) * height - 0.5, yticklabels=names)
    axes.tick_params(length=0, labelsize=9)
    axes.spines[:].set_visible(False)


def show_pairs(config, figure, columns=4, rows=4):
    """Pairs of the test, same and different in turn."""
    pictures, first, second, label, *_ = data.sample_pairs(config, "test", 500)
    figure.suptitle("pairs of the test", fontsize=10)
    of_kind = [np.flatnonzero(label == kind)[: columns * rows // 2] for kind in (1, 0)]
    for place, index in enumerate(np.concatenate(of_kind)[: columns * rows]):
        axis = figure.add_subplot(rows, columns, place + 1)
        show(axis, np.concatenate([framed(pictures[i[index]]) for i in (first, second)], axis=1))
        axis.set_title("same" if label[index] else "different", fontsize=8, pad=2)


def framed(picture):
    """An image with a grey line around it."""
    return np.pad(picture, ((1, 1), (1, 1), (0, 0)), constant_values=128)


def show(axis, picture):
    axis.imshow(picture.squeeze(), "gray", vmin=0, vmax=255)
    axis.set_axis_off()
