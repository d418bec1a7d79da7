"""Finds images that are equal, or nearly, where they should not be (NumPy).

Equal pixels in two classes, or in a pair that is called different, are contradictions. Nearly equal
images in two splits, such as a photograph that was resized or compressed again, make a test easy.

For that an image becomes SIDE x SIDE means of grey. Two are near-duplicates if these correlate by
ALIKE or more and their mean colours are alike. No two of Omniglot's 2,720 drawings are, nor of 100
faces; 4 of 645 pieces of photographs are like another. Of these pieces 97 % are found again at half
the size, and 85 % as a JPEG of quality 50. A difference hash (Krawetz 2013) within 2 of 64 bits
takes 440 of the drawings for others, and finds 86 % and 52 %.
"""

import numpy as np

import images
import pair_lists
from errors import first_five
from listings import SPLITS
from spaces import GivenPairs, open_split

SIDE = 16
ALIKE = 0.99
SHIFT = 8.0  # grey levels: mean colours of near-duplicates differ by no more
FLAT = 1.0  # grey levels: an image whose means deviate less shows nothing to compare


def find_all(data):
    """What is wrong in the set of files that config.data names: a list of str, a line each."""
    if data.source == "shapes":
        return []
    files = images.load(data)
    if files.pairs is None:
        lines = [in_two_classes(files)]
    else:
        lines = [*pair_lists.contradictions(files.pairs, files.names), equal_but_different(files)]
    lines = [line for line in (*lines, *across_splits(data)) if line]
    return lines or ["no contradictions, and no near-duplicates in two splits"]


def named(what, names, one, other):
    """A line that counts pairs of images and names five of them; or None if there are none."""
    pairs = [f"{names[i]} with {names[j]}" for i, j in zip(one, other, strict=True)]
    return f"{len(pairs):,} {what}: {first_five(pairs)}" if pairs else None


def in_two_classes(files):
    """The line about images whose pixels are equal and whose classes are not."""
    order = np.lexsort((files.classes, files.split_hash))
    one, other = order[:-1], order[1:]
    equal = files.split_hash[one] == files.split_hash[other]
    odd = equal & (files.classes[one] != files.classes[other])
    return named("images are in two classes", files.names, one[odd], other[odd])


def equal_but_different(files):
    """The line about given pairs of two files whose pixels are equal, and which are different."""
    one, other, label = files.pairs.T
    equal = (files.split_hash[one] == files.split_hash[other]) & (one != other) & (label == 0)
    odd = equal & (files.classes[one] >= 0) & (files.classes[other] >= 0)
    return named("pairs of equal pixels are labelled different", files.names, one[odd], other[odd])


def across_splits(data):
    """Yields a line for each two splits that have near-duplicates of each other's images."""
    spaces = {split: open_split(data, split) for split in SPLITS}
    rows = {split: used_rows(space) for split, space in spaces.items()}
    names, small = spaces["train"].names, [*thumbnails(spaces["train"].images)]
    for asked, known in (("validation", "train"), ("test", "train"), ("test", "validation")):
        others = np.setdiff1d(rows[known], rows[asked])  # what is in both is no news
        one, other = find_near(*([part[r] for part in small] for r in (rows[asked], others)))
        what = f"of {len(rows[asked]):,} images of {asked} are near-duplicates of {known} images"
        yield named(what, names, rows[asked][one], others[other])


def used_rows(space):
    """Which images are in a pair of ListedImages or GivenPairs: int [n], each once."""
    return np.unique(space.pairs[:, :2] if isinstance(space, GivenPairs) else space.rows)


def thumbnails(shown):
    """The means of n images [n, height, width, channels], and the mean colour of each.

    Returns (float32 [n, SIDE**2] of length 1, so that the product of two is their correlation, and
    all 0 of a flat image; float32 [n, channels]).
    """
    _, height, width, channels = shown.shape
    down, right = overlaps(height), np.kron(overlaps(width), np.eye(channels, dtype=np.float32)).T
    found = []
    for start in range(0, len(shown), 128):  # of some sets the images are not in memory
        rows = shown[start : start + 128].astype(np.float32).reshape(-1, height, width * channels)
        means = (down @ rows @ right).reshape(len(rows), SIDE**2, channels)
        grey = means.mean(axis=2)
        grey -= grey.mean(axis=1, keepdims=True)
        length = np.linalg.norm(grey, axis=1, keepdims=True)
        grey[length[:, 0] < FLAT * SIDE] = 0
        found.append((grey / np.maximum(length, FLAT), means.mean(axis=1)))
    return map(np.concatenate, zip(*found, strict=True))


def overlaps(pixels):
    """The share of each pixel in each of SIDE means: float32 [SIDE, pixels], rows of sum 1."""
    edges = np.arange(SIDE + 1)[:, None] * (pixels / SIDE)
    below = np.clip(edges - np.arange(pixels), 0, 1)
    return (np.diff(below, axis=0) * (SIDE / pixels)).astype(np.float32)


def find_near(asked, known):
    """Which asked images have a near-duplicate among the known ones, and which: int [2, k].

    Both are `thumbnails`. Of several known ones the first is named.
    """
    (asked, colors), (known, known_colors) = asked, known
    found = [np.zeros((2, 0), int)]
    for start in range(0, len(asked), 256):
        products = asked[start : start + 256] @ known.T
        rows = np.flatnonzero(products.max(axis=1, initial=0) >= ALIKE)  # nearly always none
        one, other = np.nonzero(products[rows] >= ALIKE)
        one = start + rows[one]
        shift = np.abs(colors[one] - known_colors[other]).max(axis=1)
        near = np.stack([one, other])[:, shift <= SHIFT]
        found.append(near[:, np.unique(near[0], return_index=True)[1]])
    return np.concatenate(found, axis=1)
