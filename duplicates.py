"""Finds images that are equal, or nearly, where they should not be (NumPy, Pillow, scikit-learn).

Equal pixels in two classes, or in a pair that is called different, are contradictions. Nearly equal
images in two splits, such as a photograph that was resized or compressed again, make a test easy.
No two of Omniglot's 2,720 drawings are found; of 645 pieces of photographs 97 % are found again at
half the size, and 85 % as a JPEG of quality 50.
"""

import numpy as np
from PIL import Image

import images
import pair_lists
from errors import first_five
from listings import SPLITS
from spaces import GivenPairs, open_split

SIDE = 16  # of the thumbnails that are compared
ALIKE = 0.99  # least correlation of the thumbnails of near-duplicates
SHIFT = 8.0  # grey levels: their mean colours differ by no more
FLAT = 1.0  # grey levels: a thumbnail that deviates less shows nothing to compare


def find_all(data):
    """What is wrong in the set of files that config.data names: a list of str, a line each."""
    if data.source == "shapes":
        return []
    files = images.load(data)
    lines = [*equal_pixels(files), *across_splits(data)]
    if files.pairs is not None:
        lines = [*pair_lists.contradictions(files.pairs, files.names), *lines]
    return lines or ["no contradictions, and no near-duplicates in two splits"]


def named(what, names, one, other):
    """Yields a line that counts pairs of images and names five of them, if there are any."""
    pairs = [f"{names[i]} with {names[j]}" for i, j in zip(one, other, strict=True)]
    if pairs:
        yield f"{len(pairs):,} {what}: {first_five(pairs)}"


def equal_pixels(files):
    """The line about equal images in two classes, or in given pairs that are called different."""
    if files.pairs is None:
        order, what = np.lexsort((files.classes, files.split_hash)), "images are in two classes"
        order = order[files.classes[order] >= 0]  # those that can be read
        one, other = order[:-1], order[1:]
        odd = files.classes[one] != files.classes[other]
    else:
        (one, other, label), what = files.pairs.T, "pairs of equal pixels are labelled different"
        odd = (one != other) & (label == 0) & (files.classes[one] >= 0)  # both can be read
    odd &= files.split_hash[one] == files.split_hash[other]
    return named(what, files.names, one[odd], other[odd])


def across_splits(data):
    """Yields a line for each two splits that have near-duplicates of each other's images."""
    spaces = {split: open_split(data, split) for split in SPLITS}
    rows = {split: used_rows(space) for split, space in spaces.items()}
    names, small = spaces["train"].names, thumbnails(spaces["train"].images)
    for asked, known in (("validation", "train"), ("test", "train"), ("test", "validation")):
        both = rows[asked], np.setdiff1d(rows[known], rows[asked])  # what is in both is no news
        if len(both[1]):
            one, other = find_near(*([part[r] for part in small] for r in both))
            what = f"of {len(rows[asked]):,} images of {asked} are near-duplicates of {known}"
            yield from named(f"{what} images", names, both[0][one], both[1][other])


def used_rows(space):
    """Which images are in a pair of ListedImages or GivenPairs: int [n], each once."""
    return np.unique(space.pairs[:, :2] if isinstance(space, GivenPairs) else space.rows)


def thumbnails(shown):
    """Small grey copies of n images [n, height, width, channels], and their mean colours.

    Returns (float32 [n, SIDE**2] of mean 0 and length 1, so that the product of two is their
    correlation, and 0 where the image is flat; float32 [n, channels]).
    """
    grey = (Image.fromarray(image.mean(axis=2, dtype=np.float32)) for image in shown)
    small = np.stack([np.ravel(x.resize((SIDE, SIDE), Image.Resampling.BOX)) for x in grey])
    small -= small.mean(axis=1, keepdims=True)
    length = np.linalg.norm(small, axis=1, keepdims=True)
    colors = np.stack([image.mean(axis=(0, 1), dtype=np.float32) for image in shown])
    return small * (length >= FLAT * SIDE) / np.maximum(length, FLAT), colors


def find_near(asked, known):
    """Which asked images have a near-duplicate among the known ones, and the nearest: int [2, k].

    Both are `thumbnails`.
    """
    from sklearn.metrics import pairwise_distances_argmin

    nearest = pairwise_distances_argmin(asked[0], known[0])
    alike = (asked[0] * known[0][nearest]).sum(axis=1) >= ALIKE
    shift = np.abs(asked[1] - known[1][nearest]).max(axis=1)
    near = np.flatnonzero(alike & (shift <= SHIFT))
    return np.stack([near, nearest[near]])
