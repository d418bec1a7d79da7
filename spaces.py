"""What a split's pairs are drawn from, and how they are drawn and listed (NumPy).

`open_split` returns one of three types:

    ListedImages    every image is known, with its class and its probability
    DrawnImages     images are too many, or continuous: each is rendered anew from random latents
    GivenPairs      the pairs themselves are listed in a file

Each type has draw(uniform, classes=None) -> Pairs, and enumerate_pairs(most) -> Pairs or None.
classes: the local classes of both images of each pair, two int [pairs], if not drawn here.
`uniform(width, attempt=0)` returns random numbers, float64 [pairs, width]: see `data.uniforms`.

A class id names a class in all splits: of shapes see `shapes.draw_latents`, of files it is an index
into the names of the classes. A local class is an index into the class ids of one split.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from ml_collections import FrozenConfigDict

import images
import settings
from errors import UserError, bad_set
from listings import SPLITS
from shapes import LATENT_NUMBERS, draw_latents, list_latents, render
from splits import SHARES, assign_splits, by_hash, count_classes

TABLE_BYTES = 2**28  # images of shapes that fit are rendered once, and batches are looked up
# The uniform numbers of a pair that is drawn anew: two for its classes, ten for each image (of
# which LATENT_NUMBERS are the first), two spare ones. Another order would change every batch.
PAIR_WIDTH = 24
MOST_ATTEMPTS = 1000  # a tenth of them succeeds where there is an image at all


class Pairs(NamedTuple):
    """m pairs of a split, as indices into n images, so that each image is encoded once."""

    images: np.ndarray  # uint8 [n, height, width, channels]
    first: np.ndarray  # int [m], index of image 1
    second: np.ndarray  # int [m], index of image 2
    label: np.ndarray  # float64 [m], 1 if both show the same, else 0
    weight: np.ndarray  # float64 [m], sum 1: the probability of each pair
    exact: bool  # whether these are all pairs that can occur, else a sample
    ordered: bool  # whether (a, b) and (b, a) are two pairs, else one with the weight of both
    class_ids: np.ndarray  # int [n], of the images; None where pairs are given
    names: np.ndarray = None  # str [n], of the images; None where they are drawn

    def compact(self):
        """The same pairs without the images that are in none."""
        used, places = np.unique([self.first, self.second], return_inverse=True)
        first, second = places.reshape(2, -1)
        class_ids, names = (x if x is None else x[used] for x in (self.class_ids, self.names))
        return Pairs(self.images[used], first, second, *self[3:7], class_ids, names)


def sample(shown, first, second, label, class_ids, names=None):
    """Pairs that were drawn, of equal weight."""
    weight = np.full(len(label), 1 / len(label))
    return Pairs(shown, first, second, label.astype(float), weight, False, True, class_ids, names)


class ListedImages(NamedTuple):
    """A split of n images of k classes, all of them known; no file is paired with itself."""

    images: np.ndarray  # uint8 [all, height, width, channels], of files those of every split
    classes: np.ndarray  # int [all], the class id of each
    names: np.ndarray  # str [all], of the images, where they are files; else None
    rows: np.ndarray  # int [n], where the split's images are among them, sorted by class
    class_ids: np.ndarray  # int [k]
    starts: np.ndarray  # int [k + 1], where among the rows each class begins
    edges: np.ndarray  # float64 [n + 1], 0 ... 1, cumulated probabilities of the rows
    p_same: float  # probability of "same"; 0: images are independent

    def draw(self, uniform, classes=None):
        u = uniform(4)
        if classes is None:
            classes = draw_classes(self.edges[self.starts], self.p_same, u[:, 0], u[:, 1])
        class1, class2 = classes
        place1 = draw_index(self.edges, u[:, 2], self.starts[class1], self.starts[class1 + 1])
        without = None if self.names is None else np.where(class1 == class2, place1, -1)
        bounds = self.starts[class2], self.starts[class2 + 1]
        place2 = draw_index(self.edges, u[:, 3], *bounds, without)
        both = self.rows[place1], self.rows[place2]
        return sample(self.images, *both, class1 == class2, self.classes, self.names)

    def enumerate_images(self):
        """(images uint8 [n, ...], local classes int [n], probabilities float64 [n], sum 1)."""
        local_classes = np.repeat(np.arange(len(self.class_ids)), np.diff(self.starts))
        return self.images[self.rows], local_classes, np.diff(self.edges)

    def enumerate_pairs(self, most):
        n = len(self.rows)
        if n * (n + 1) // 2 > most:
            return None
        shown, classes, p = self.enumerate_images()
        weight = self.pair_probability(classes, p)
        weight = np.triu(weight) + np.triu(weight.T, 1)
        first, second = np.nonzero(weight)
        label = (classes[first] == classes[second]).astype(float)
        pairs = shown, first, second, label, weight[first, second], True, False
        names = None if self.names is None else self.names[self.rows]
        return Pairs(*pairs, self.class_ids[classes], names)

    def pair_probability(self, classes, p):
        """The probability of image 1 (row) with image 2 (column): float64 [n, n]."""
        same, share = classes[:, None] == classes, np.bincount(classes, p)[classes]
        weight = p[:, None] * share  # of image 1 and the class of image 2, which follows
        if self.p_same:
            different = (1 - self.p_same) * share / np.maximum(1 - share[:, None], 1e-300)
            weight = p[:, None] * np.where(same, self.p_same, different)
        if self.names is None:
            return weight * p / share
        others = np.where(np.eye(len(p)), 0, p)
        return weight * others / (share - np.where(same, p[:, None], 0))


class DrawnImages(NamedTuple):
    """A split of k classes whose images are not listed: each is drawn from its latents."""

    class_ids: np.ndarray  # int [k]
    edges: np.ndarray  # float64 [k + 1], 0 ... 1, cumulated probabilities of the classes
    data: FrozenConfigDict  # config.data
    split: str

    def draw(self, uniform, classes=None):
        """Two images for each pair, in turn, by rejection: again until they are the split's.

        Raises UserError where no image of some class is found in the split.
        """
        data = self.data
        both = classes or draw_classes(self.edges, data.p_same, *uniform(PAIR_WIDTH)[:, :2].T)
        class_ids = self.class_ids[np.stack(both, axis=1).ravel()]
        missing = np.arange(len(class_ids))
        drawn = np.empty((len(class_ids), data.image_size, data.image_size, 1), np.uint8)
        for attempt in range(MOST_ATTEMPTS):
            u = latent_numbers(uniform(PAIR_WIDTH, attempt))[missing]
            drawn[missing] = shown = render(data, draw_latents(data, u, class_ids[missing]))
            missing = missing[~in_split(data, self.split, shown)]
            if not len(missing):
                first, second = np.arange(len(class_ids)).reshape(-1, 2).T
                return sample(drawn, first, second, both[0] == both[1], class_ids)
        raise too_few(data, self.split)

    def enumerate_pairs(self, most):
        return None


class GivenPairs(NamedTuple):
    """A split of m pairs that a file lists."""

    images: np.ndarray  # uint8 [all, height, width, channels], of every split
    pairs: np.ndarray  # int [m, 3], two images and a label, sorted by label
    p_same: float  # probability of "same"; 0: each pair is as probable as any other
    names: np.ndarray  # str [all], of the images

    def draw(self, uniform, classes=None):
        u_label, u_pair = uniform(4)[:, :2].T
        first, last = 0, len(self.pairs)
        if self.p_same:
            different = int((self.pairs[:, 2] == 0).sum())
            same = u_label < self.p_same
            first, last = np.where(same, different, 0), np.where(same, last, different)
        image1, image2, label = self.pairs[(first + u_pair * (last - first)).astype(int)].T
        return sample(self.images, image1, image2, label, None, self.names)

    def enumerate_pairs(self, most):
        if len(self.pairs) > most:
            return None
        *both, label = self.pairs.T
        share = np.where(label == 1, self.p_same, 1 - self.p_same) / np.bincount(label)[label]
        pairs = sample(self.images, *both, label, None, self.names)._replace(exact=True)
        return (pairs._replace(weight=share) if self.p_same else pairs).compact()


def latent_numbers(u):
    """The LATENT_NUMBERS of both images of m pairs, in turn: float64 [2 * m, 6] of [m, 24]."""
    return u[:, 2:22].reshape(-1, 10)[:, : len(LATENT_NUMBERS)]


def too_few(data, split):
    """The UserError to raise where a split of shapes lacks a class."""
    text = f"no image of some class is in {split}; more sizes or places are needed"
    return UserError(f"data.split={data.split}: {text}")


def draw_classes(edges, p_same, u1, u2):
    """Draws m pairs of local classes by uniform numbers [m]: (int [m], int [m]).

    `edges`, float64 [k + 1], are the cumulated probabilities of the classes. The second class is
    the first with probability p_same; where that is 0, both are independent.
    """
    last = len(edges) - 1
    class1 = draw_index(edges, u1, 0, last)
    if p_same == 0:
        return class1, draw_index(edges, u2, 0, last)
    rest = np.maximum(u2 - p_same, 0) / max(1 - p_same, 1e-300)  # uniform again, if u2 >= p_same
    return class1, np.where(u2 < p_same, class1, draw_index(edges, rest, 0, last, class1))


def draw_index(edges, u, first, last, without=None):
    """Draws i, first <= i < last, with a probability in proportion to edges[i + 1] - edges[i].

    Inverse transform sampling: the uniform number u becomes a point between edges[first] and
    edges[last], and i is the interval that it falls into. `without`, int [n], is an i that must not
    come out, where it is within the bounds: its interval is a gap, over which points are moved.
    """
    low, high = edges[first], edges[last]
    if without is None:
        point = low + u * (high - low)
    else:
        has_gap = (first <= without) & (without < last)
        gap_start, gap_end = edges[without], edges[without + 1]
        gap = np.where(has_gap, gap_end - gap_start, 0)
        point = low + u * (high - low - gap)
        moved = np.maximum(point + gap, gap_end)  # the sum may be rounded to below the end
        point = np.where(has_gap & (point >= gap_start), moved, point)
    i = edges.searchsorted(point, "right") - 1
    return i.clip(first, last - 1)  # points are rounded, too


def open_split(data, split):
    """What the pairs of a split are drawn from: ListedImages, DrawnImages or GivenPairs.

    The result is remembered; with config.data frozen it is found faster. Raises UserError where no
    pairs can be made of the split.
    """
    return open_frozen(settings.frozen(data), split)


@lru_cache(maxsize=8)
def open_frozen(data, split):
    if data.source == "shapes":
        return open_shapes(data, split)
    files = images.load(data)
    return (open_classes if files.pairs is None else open_pairs)(data, split, files)


def open_shapes(data, split):
    """A split of shapes: ListedImages where all of its images can be listed, else DrawnImages."""
    class_ids = split_class_ids(data, split)
    listed = list_latents(data, class_ids, TABLE_BYTES // data.image_size**2)
    if listed is None:
        blobs = class_ids >= len(data.shapes)  # half of the images show one, of both if any
        counts = np.where(blobs, blobs.sum(), (~blobs).sum())
        edges = np.append(0, np.cumsum(1 / (1 + (blobs.any() and not blobs.all())) / counts))
        return DrawnImages(class_ids, edges, data, split)
    latents, probability = listed
    drawn = render(data, latents)
    kept = in_split(data, split, drawn)
    drawn, probability, classes = drawn[kept], probability[kept], latents.shape[kept]
    of_class = np.bincount(classes, probability, len(data.shapes))
    if not of_class[class_ids].all():
        raise too_few(data, split)
    probability *= 1 / len(class_ids) / of_class[classes]
    return list_images(data, (drawn, classes, None), np.arange(len(drawn)), probability)


def open_pairs(data, split, files):
    """The pairs of a split of a list."""
    splits, usable = assign_splits(data), (files.classes[files.pairs[:, :2]] >= 0).all(axis=1)
    splits = np.where(usable, SPLITS.index(split), -1) if splits is None else splits
    pairs = files.pairs[splits == SPLITS.index(split)]
    different, same = np.bincount(pairs[:, 2], minlength=2)
    if not (same and different):
        text = f"{split} has {same} pairs of the same and {different} different: too few"
        text += f" ({(splits < 0).sum():,} of {len(splits):,} are in none)"
        text += f"; more lines are needed, or a column split that gives {split} some"
        raise bad_set(data.path, text)
    order = np.argsort(pairs[:, 2], kind="stable")
    return GivenPairs(files.images, pairs[order], data.p_same, files.names)


def open_classes(data, split, files):
    """The images of a split, of files in classes: of those classes that have two there or more."""
    kept, counts = count_classes(data, files, split)
    if (counts > 1).sum() < 2:
        text = f"{(counts > 1).sum()} of {len(counts)} classes have two images or more in {split}"
        text += "; pairs of same and different take two such classes: more images are needed"
        text += ", or data.split=classes, which leaves classes whole" * (data.split == "disjoint")
        raise bad_set(data.path, text)
    rows = np.flatnonzero(kept & (counts[files.classes] > 1))
    rows = rows[np.argsort(files.classes[rows], kind="stable")]
    known = files.images, files.classes, files.names
    return list_images(data, known, rows, 1 / counts[files.classes[rows]])


def list_images(data, known, rows, probability):
    """ListedImages of rows that are sorted by class; known: its first three fields.

    probability: float64 [rows], up to a common factor.
    """
    class_ids, starts = np.unique(known[1][rows], return_index=True)
    edges = np.concatenate([[0], np.cumsum(probability)])
    starts, edges = np.append(starts, len(rows)), edges / edges[-1]
    return ListedImages(*known, rows, class_ids, starts, edges, data.p_same)


def split_class_ids(data, split):
    """The class ids of a split of shapes, int [k]: see `shapes.draw_latents`.

    With same_as=identity each blob is a class beside the kinds of shape, but not in the test of
    held-out kinds. With split=classes validation and test have a tenth of the blobs each.
    """
    held_out = np.isin(data.shapes, data.held_out_shapes)
    chosen = held_out == (split == "test" and held_out.any())
    if data.same_as != "identity":
        return np.flatnonzero(chosen)
    kinds = np.flatnonzero(chosen & (np.array(data.shapes) != "blob"))
    if held_out.any() and split == "test":
        return kinds
    blobs = np.arange(data.num_identities)
    if data.split == "classes":
        order = np.random.Generator(np.random.Philox(key=2)).permutation(len(blobs))
        share = max(2, round(SHARES[2] * len(blobs)))
        parts = {"test": order[:share], "validation": order[share : 2 * share]}
        blobs = np.sort(parts.get(split, order[2 * share :]))
    return np.append(kinds, len(data.shapes) + blobs)


def in_split(data, split, shown):
    """Which images of shapes belong to a split, by a hash of the pixels: bool [n]."""
    if data.split != "disjoint":
        return np.ones(len(shown), bool)
    return by_hash(images.hash_pixels(shown)) == SPLITS.index(split)
