"""Pairs of pictures, same or different: drawn from shapes or read from files, with NumPy alone.

    batch = make_batch(config, "train", step)
    python data.py --config=configs/everywhere.py    # what the data are and what gives them away

A batch is a pure function of (config, split, step): there is no iterator state to save, and any
batch of any run can be drawn again. A split is a `Space`: classes, each with its images and their
probabilities. A pair is two classes and then an image of each. Where a space is too large to be
listed, or continuous, an image is drawn anew from its latents (shape, size, centre, angle, ...).
"""

import json
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

import images
from shapes import Latents, draw_latents, is_continuous, list_latents, render

SPLITS = ("train", "validation", "test")
SHARES = (0.8, 0.1, 0.1)  # of the images or of the classes, where the splits are disjoint
TABLE_BYTES = 2**28  # a space whose images fit is drawn once, and batches are looked up in it
PAIR_NUMBERS = 24  # random numbers that draw a pair anew: 2 + 10 for each image, 1, and 1 spare
MOST_ATTEMPTS = 1000  # a tenth of them succeeds where there is an image at all
NOISE_LEVELS = 2**12  # quantiles of the normal distribution


class Batch(NamedTuple):
    """Pairs of images; under pmap fields have leading axes, of devices and of steps."""

    image1: np.ndarray  # uint8 [batch, height, width, channels], 0 ... 255
    image2: np.ndarray  # the same
    label: np.ndarray  # float32 [batch], 1 if both show the same, else 0
    classes: np.ndarray  # int32 [batch, 2], of both images; -1 where pairs are given


class Space(NamedTuple):
    """What a split draws from: k classes with n images, or m pairs that are given.

    Fields that do not apply are None: of a space that is not listed all but the classes.
    """

    images: np.ndarray  # uint8 [all, height, width, channels]
    rows: np.ndarray  # int [n], where the split's images are among them, sorted by class
    members: np.ndarray  # int [k], classes as `members` has them, or places in a set's class names
    first: np.ndarray  # int [k + 1], where the images of each class begin
    edges: np.ndarray  # float64 [n + 1], 0 ... 1, cumulated probabilities of the images
    pairs: np.ndarray  # int [m, 3], two images and a label, sorted by label
    latents: Latents  # of the n images, where they are drawn


class Pairs(NamedTuple):
    """Pairs of a split, as indices into its images, so that each image is encoded once."""

    images: np.ndarray  # uint8 [n, height, width, channels]
    first: np.ndarray  # int [m]
    second: np.ndarray  # int [m]
    label: np.ndarray  # float64 [m], 1 if both show the same, else 0
    weight: np.ndarray  # float64 [m], sum 1: the probability of each pair
    exact: bool  # whether these are all pairs that can occur
    ordered: bool  # whether each is one order of its images, else both
    members: np.ndarray  # int [n], as in Space; None where pairs are given
    latents: Latents  # of the n images; None where they are not drawn


def make_batch(config, split, step, host=0, hosts=1):
    """Draws the batch of a step, or that part of it which is one host's: hosts' parts in a row."""
    count = config.batch_size // hosts
    uniform = partial(uniforms, config.seed, split, step, host * count, count)
    data, space = config.data, open_space(config.data.to_json(), split)
    if space.images is None:
        return draw_anew(data, split, space, uniform)[0]
    *rows, label, classes = draw_rows(data, space, uniform(4))
    return Batch(*(np.take(space.images, one, axis=0) for one in rows), label, classes)


def uniforms(seed, split, step, first, count, width, attempt=0):
    """Uniform numbers [count, width] for the pairs from `first` on; width a multiple of 4.

    Philox is keyed by seed and split. The step is the top word of its counter: in a lower one the
    streams of neighbouring steps would overlap. One count of it makes four numbers.
    """
    key, counter = [seed, SPLITS.index(split)], [first * width // 4, attempt, 0, step]
    random = np.random.Generator(np.random.Philox(key=key, counter=counter))
    return random.random((count, width))


def draw_rows(data, space, u):
    """Draws pairs of a listed space from uniform numbers [n, 4]: (rows, rows, label, classes)."""
    if space.pairs is not None:
        rows = draw_listed(space.pairs[:, 2], data.p_same, u[:, 0], u[:, 1])
        rows1, rows2, label = space.pairs[rows].T
        return rows1, rows2, label.astype(np.float32), np.full((len(label), 2), -1, np.int32)
    class1, class2 = draw_classes(data, space, u)
    rows1 = pick(space.edges, u[:, 2], space.first[class1], space.first[class1 + 1])
    other = None if repeats(data) else np.where(class1 == class2, rows1, -1)
    rows2 = pick(space.edges, u[:, 3], space.first[class2], space.first[class2 + 1], other)
    classes = np.stack([class1, class2], axis=1).astype(np.int32)
    return space.rows[rows1], space.rows[rows2], (class1 == class2).astype(np.float32), classes


def repeats(data):
    """Whether both images of a pair may be one image: not where a class is a set of files."""
    return data.source == "shapes"


def draw_classes(data, space, u):
    """Draws pairs of classes, int [n] each, from the first two of the uniform numbers [n, ...].

    The second is the first with probability p_same, and independent of it where that is 0 or is
    about pictures that are drawn anew.
    """
    last, u1, u2 = len(space.class_ids), u[:, 0], u[:, 1]
    if space.rows is None:
        edges = np.append(0, np.cumsum(class_shares(data, space.class_ids)))
    else:
        edges = space.edges[space.first]
    class1 = pick(edges, u1, 0, last)
    if data.p_same == 0 or (space.rows is None and data.same_as == "pixels"):
        return class1, pick(edges, u2, 0, last)
    rest = np.maximum(u2 - data.p_same, 0) / max(1 - data.p_same, 1e-300)
    return class1, np.where(u2 < data.p_same, class1, pick(edges, rest, 0, last, class1))


def pick(edges, u, first, last, without=None):
    """Draws i in first ... last - 1 with probability as edges[i + 1] - edges[i], by u uniform.

    `without`, int [n], is left out where it is one of them.
    """
    low, high = edges[first], edges[last]
    if without is None:
        x = low + u * (high - low)
    else:
        inside = (first <= without) & (without < last)
        end = edges[without + 1]
        gap = np.where(inside, end - edges[without], 0)
        x = low + u * (high - low - gap)
        x = np.where(inside & (x >= edges[without]), np.maximum(x + gap, end), x)
    return np.clip(np.searchsorted(edges, x, "right") - 1, first, last - 1)  # sums are rounded


def draw_listed(labels, p_same, u1, u2):
    """Draws from a list of pairs sorted by label: one label first, where p_same is not 0."""
    first, last = 0, len(labels)
    if p_same:
        different = int((labels == 0).sum())
        first, last = np.where(u1 < p_same, [[different], [last]], [[0], [different]])
    return (first + u2 * (last - first)).astype(int)


def draw_anew(data, split, space, uniform):
    """Draws pairs of a space that is not listed, each image until it is one of the split's.

    Returns (Batch, members int [2 * n], Latents [2 * n]), the two images of a pair in a row.
    """
    u = uniform(PAIR_NUMBERS)
    classes = np.stack(draw_classes(data, space, u), axis=1).astype(np.int32)
    member = space.class_ids[classes.ravel()]
    drawn = np.empty((len(member), data.image_size, data.image_size, 1), np.uint8)
    latents = None
    missing, attempt = np.arange(len(member)), 0
    while len(missing):
        numbers = u if attempt == 0 else uniform(PAIR_NUMBERS, attempt)
        numbers = numbers[:, 2:22].reshape(len(member), 10)[missing]
        tried = draw_latents(data, numbers, member[missing])
        drawn[missing] = fresh = render(data, tried)
        latents = latents or tried
        for kept, values in zip(latents, tried, strict=True):
            kept[missing] = values
        missing = missing[~in_split(data, split, fresh)]
        attempt += 1
        if attempt == MOST_ATTEMPTS:
            text = f"no image of some class is in {split}; more sizes or places are needed"
            raise SystemExit(f"error: data.split={data.split}: {text}")
    image1, image2 = drawn[::2], drawn[1::2]
    if data.same_as == "pixels":
        same = u[:, 22] < data.p_same
        image2[same] = image1[same]
        label = (image1 == image2).all(axis=(1, 2, 3)).astype(np.float32)
        return Batch(image1, image2, label, classes), member, None
    if data.noise:
        image1, image2 = (add_noise(data, uniform, i, x) for i, x in enumerate((image1, image2)))
    label = (classes[:, 0] == classes[:, 1]).astype(np.float32)
    return Batch(image1, image2, label, classes), member, latents


def add_noise(data, uniform, which, drawn):
    """Adds normal noise of standard deviation data.noise to each pixel of a pair's images.

    By table: a random word makes four pixels, which a generator of normal numbers cannot promise.
    """
    pixels = drawn[0].size
    words = -(-pixels // 16) * 4
    u = uniform(words, 2**32 + which)
    quarters = (u[..., None] * 2.0 ** np.array([12, 24, 36, 48])).astype(np.int64) % NOISE_LEVELS
    noise = data.noise * normal_quantiles()[quarters.reshape(len(drawn), -1)[:, :pixels]]
    return np.rint(np.clip(drawn + noise.reshape(drawn.shape), 0, 255)).astype(np.uint8)


@lru_cache
def normal_quantiles():
    from statistics import NormalDist

    levels = (np.arange(NOISE_LEVELS) + 0.5) / NOISE_LEVELS
    return np.array([NormalDist().inv_cdf(level) for level in levels])


def enumerate_images(data, split):
    """Every image that a split can draw.

    Returns (images uint8 [n, height, width, channels], classes int [n], probabilities float64 [n],
    which sum to 1), or None where the space is continuous or takes more than TABLE_BYTES.
    """
    space = open_space(data.to_json(), split)
    if space.rows is None:
        return None
    classes = np.repeat(np.arange(len(space.class_ids)), np.diff(space.first))
    return space.images[space.rows], classes, np.diff(space.edges)


def enumerate_pairs(data, split, most, ordered=True):
    """Every pair that a split can draw, with its probability, if these are at most `most`.

    Ordered, or each two images once, with the probability of both orders (given ones as they are).
    Returns Pairs, or None where they are more or the space is not listed.
    """
    space = open_space(data.to_json(), split)
    if space.pairs is not None and len(space.pairs) <= most:
        used, inverse = np.unique(space.pairs[:, :2], return_inverse=True)
        first, second = inverse.reshape(-1, 2).T
        label = space.pairs[:, 2]
        share = np.where(label == 1, data.p_same, 1 - data.p_same) / np.bincount(label)[label]
        weight = share if data.p_same else np.full(len(label), 1 / len(label))
        pairs = (space.images[used], first, second, label.astype(float), weight)
        return Pairs(*pairs, exact=True, ordered=True, class_ids=None, latents=None)
    n = 0 if space.rows is None else len(space.rows)
    if not 0 < (n**2 if ordered else n * (n + 1) // 2) <= most:
        return None
    pictures, classes, p = enumerate_images(data, split)
    first, second = np.indices((n, n)).reshape(2, -1) if ordered else np.triu_indices(n)
    weight = pair_probability(data, classes, p, first, second)
    if not ordered:
        weight += np.where(first == second, 0, pair_probability(data, classes, p, second, first))
    can = weight > 0
    same = classes[first] == classes[second]
    pairs = (pictures, first[can], second[can], same[can].astype(float), weight[can])
    return Pairs(*pairs, True, ordered, space.class_ids[classes], space.latents)


def pair_probability(data, classes, p, first, second):
    """How probable ordered pairs of listed images are, float64 [n], from the images' own p."""
    p1, p2 = p[first], p[second]
    share1, share2 = (np.bincount(classes, p)[classes[i]] for i in (first, second))
    same = classes[first] == classes[second]
    weight = p1 * share2  # of the first image and the second class, next of the second image
    if data.p_same:
        different = (1 - data.p_same) * share2 / np.maximum(1 - share1, 1e-300)
        weight = p1 * np.where(same, data.p_same, different)
    if repeats(data):
        return weight * p2 / share2
    return weight * np.where(first == second, 0, p2) / (share2 - np.where(same, p1, 0))


def sample_pairs(config, split, count):
    """So many pairs as a step would draw, each image once: Pairs of equal weight."""
    config = config.copy_and_resolve_references()
    config.batch_size = count
    space = open_space(config.data.to_json(), split)
    weight = np.full(count, 1 / count)
    if space.images is None:
        uniform = partial(uniforms, config.seed, split, 0, 0, count)
        batch, members, latents = draw_anew(config.data, split, space, uniform)
        pictures = np.stack(batch[:2], axis=1).reshape(-1, *batch.image1.shape[1:])
        pairs = (pictures, *np.arange(2 * count).reshape(-1, 2).T, batch.label.astype(float))
        return Pairs(*pairs, weight, False, True, members, latents)
    *rows, label, _ = draw_rows(config.data, space, uniforms(config.seed, split, 0, 0, count, 4))
    used, (first, second) = np.unique(np.stack(rows), return_inverse=True)
    pairs = (space.images[used], first, second, label.astype(float), weight)
    if space.pairs is not None:
        return Pairs(*pairs, False, True, None, None)
    order = np.argsort(space.rows)
    places = order[np.searchsorted(space.rows, used, sorter=order)]  # among the split's images
    members = space.class_ids[np.searchsorted(space.first, places, "right") - 1]
    latents = space.latents and Latents(*(field[places] for field in space.latents))
    return Pairs(*pairs, False, True, members, latents)


def members(data, split):
    """The classes that a split draws, int [k]: see `shapes.shape_and_identity`.

    Kinds of shape; and where these are told apart by identity each blob, of which the test has none
    if it has kinds of its own.
    """
    held_out = np.isin(data.shapes, data.held_out_shapes)
    chosen = held_out == (split == "test" and held_out.any())
    if data.same_as != "identity":
        return np.flatnonzero(chosen)
    kinds = np.flatnonzero(chosen & (np.array(data.shapes) != "blob"))
    if held_out.any() and split == "test":
        return kinds
    every = np.arange(data.num_identities)
    blobs = class_split(data.num_identities, split) if data.split == "classes" else every
    return np.append(kinds, len(data.shapes) + blobs)


def class_names(data, members):
    """What classes are called: str [k]."""
    if data.source == "shapes":
        kinds = len(data.shapes)
        return np.array([f"blob {i - kinds}" if i >= kinds else data.shapes[i] for i in members])
    return np.array(images.load(data.to_json()).names)[members]


def class_shares(data, members):
    """How probable each class is, float64 [k]: equally; half the images show blobs among kinds."""
    blobs = members >= len(data.shapes)
    groups = [group.sum() for group in (blobs, ~blobs) if group.any()]
    return 1 / len(groups) / np.where(blobs, groups[0], groups[-1])


def class_split(count, split):
    """The classes of a split where no class is in two: at least two for validation and for test."""
    order = np.random.Generator(np.random.Philox(key=2)).permutation(count)
    share = max(2, round(SHARES[2] * count))
    parts = {"test": order[:share], "validation": order[share : 2 * share]}
    return np.sort(parts.get(split, order[2 * share :]))


@lru_cache(maxsize=8)
def open_space(data_json, split):
    """Lists a split, or says that it is drawn anew. Remembered: every batch is looked up in it."""
    data = SimpleNamespace(**json.loads(data_json))
    if data.source != "shapes":
        return space_of_files(data, data_json, split)
    not_listed = Space(None, None, members(data, split), None, None, None, None)
    if is_continuous(data):
        return not_listed
    most = TABLE_BYTES // data.image_size**2
    latents, probability = list_latents(data, not_listed.class_ids, most)
    if latents is None:
        return not_listed
    drawn = render(data, latents)
    kept = in_split(data, split, drawn)
    drawn, probability = drawn[kept], probability[kept]
    latents = Latents(*(field[kept] for field in latents))
    shape, identity = latents.shape, latents.identity
    if data.same_as == "pixels":
        probability /= np.bincount(shape, probability)[shape]
        drawn, same = np.unique(drawn, axis=0, return_inverse=True)
        return make_space(drawn, np.arange(len(drawn)), np.bincount(same.ravel(), probability))
    classes = shape
    if data.same_as == "identity":
        blob = np.array(data.shapes)[shape] == "blob"
        classes = np.where(blob, len(data.shapes) + identity, shape)
    found, place = np.unique(classes, return_inverse=True)
    share = probability * (class_shares(data, found) / np.bincount(place, probability))[place]
    return make_space(drawn, classes, share)._replace(latents=latents)


def space_of_files(data, data_json, split):
    """The Space of a set of files; ends the program where no pairs can be made of it."""
    files = images.load(data_json)
    kept = (files.classes >= 0) & in_split(data, split, files.images, files.position)
    if files.pairs is not None:
        if files.splits is not None:
            chosen = (files.splits == split) & (files.classes[files.pairs[:, :2]] >= 0).all(axis=1)
        else:
            chosen = kept[files.pairs[:, :2]].all(axis=1)
        pairs = files.pairs[chosen]
        kinds = (
            f"{split} has {int(pairs[:, 2].sum())} pairs of the same and {(pairs[:, 2] == 0).sum()}"
        )
        if len(set(pairs[:, 2])) < 2:
            raise UserError(
                f"data.path={data.path}: "
                + f"{kinds} different: too few; more lines, or a column split, are needed"
            )
        if files.splits is None and data.split == "disjoint":
            text = "pairs of images that the hash puts into two splits are left out"
            print(f"warning: {kinds} different; {text}", file=sys.stderr)
        order = np.argsort(pairs[:, 2], kind="stable")
        return Space(files.images, None, None, None, None, pairs[order], None)
    if data.split == "classes":
        if len(files.names) < 6:
            raise UserError(
                f"data.path={data.path}: "
                + f"{len(files.names)} classes; data.split=classes takes six, two a split"
            )
        kept &= np.isin(files.classes, class_split(len(files.names), split))
    counts = np.bincount(files.classes[kept], minlength=len(files.names))
    usable = f"{(counts > 1).sum()} of {len(counts)} classes have two images or more in {split}"
    if (counts > 1).sum() < 2:
        raise UserError(
            f"data.path={data.path}: "
            + f"{usable}; pairs of same and different take two such classes"
        )
    if (counts == 1).any():
        print(f"warning: {usable}; the others are left out of it", file=sys.stderr)
    rows = np.flatnonzero(kept & (counts[files.classes] > 1))
    rows = rows[np.argsort(files.classes[rows], kind="stable")]
    classes = files.classes[rows]
    return make_space(files.images, classes, 1 / counts[classes], rows)


def make_space(pictures, classes, probability, rows=None):
    """A Space of images sorted by class, with probabilities up to a common factor."""
    found, first = np.unique(classes, return_index=True)
    edges = np.concatenate([[0], np.cumsum(probability)])
    rows = np.arange(len(classes)) if rows is None else rows
    first = np.append(first, len(classes))
    return Space(pictures, rows, found, first, edges / edges[-1], pairs=None, latents=None)


def in_split(data, split, pictures, position=None):
    """Which images belong to a split: bool [n].

    Where splits are disjoint a hash of the pixels decides, so that equal images, however they came
    about, are on the same side. `position` is this hash where it is known.
    """
    if data.split != "disjoint":
        return np.ones(len(pictures), bool)
    if position is None:
        position = images.hash_pixels(pictures)
    bounds = np.cumsum((0, *SHARES))[SPLITS.index(split) :][:2]
    return (bounds[0] <= position) & (position < bounds[1])


def prefetch(function, items, workers=2):
    """Yields function(item) of each item, computed by threads up to two each ahead, in order.

    NumPy lets the threads run side by side. An error in the function is raised here, at the item it
    belongs to.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="prefetch")
    pending = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


if __name__ == "__main__":
    import audit

    audit.main()
