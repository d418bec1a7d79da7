"""Finds images that are equal, or nearly, where they should not be (NumPy, Pillow, scikit-learn).

Equal pixels in two classes, or in a pair that is called different, are contradictions. Nearly equal
images in two splits, such as a photograph that was resized or compressed again, make a test easy.
"""

from collections import Counter

import numpy as np
from PIL import Image

import images
from errors import first_five
from listings import SPLITS
from spaces import GivenPairs, open_split

SIDE = 16  # of the thumbnails that are compared
ALIKE = 0.99  # least correlation of the thumbnails of near-duplicates
FLAT = 1.0  # grey levels: a thumbnail that deviates less shows nothing to compare


def find_all(data):
    """What is wrong in the set of files that config.data names: a list of str, a line each."""
    if data.source == "shapes":
        return []
    files, lines = images.load(data), []
    found = (in_two_classes if files.pairs is None else contradictions)(files)
    for what, both in (found | across_splits(data)).items():
        if pairs := [f"{files.names[i]} with {files.names[j]}" for i, j in both]:
            lines.append(f"{len(pairs):,} {what}: {first_five(pairs)}")
    return lines or ["no contradictions, and no near-duplicates in two splits"]


def in_two_classes(files):
    """Images of equal pixels in two classes: {what: int [n, 2], indices of images}."""
    order = np.lexsort((files.classes, files.split_hash))
    order = order[files.classes[order] >= 0]  # those that can be read
    both = np.stack([order[:-1], order[1:]], axis=1)
    equal = np.equal(*files.split_hash[both].T)
    both = both[equal & np.not_equal(*files.classes[both].T)]
    return {"images are in two classes": both}


def contradictions(files):
    """What a list of pairs says twice, in either order, or against itself: {what: [(i, j)]}."""
    lines = Counter((min(a, b), max(a, b), label) for a, b, label in files.pairs.tolist())
    hashes = np.where(files.classes >= 0, files.split_hash, np.nan)  # nan: it cannot be read
    equal = [(a, b) for a, b, label in lines if not label and hashes[a] == hashes[b]]
    both = [(a, b) for a, b, label in lines if label and (a, b, 0) in lines]
    again = [(a, b) for (a, b, _), count in lines.items() if count > 1]
    return {
        "pairs of equal pixels are labelled different": equal,
        "pairs of images are labelled both same and different": both,
        "pairs are listed more than once with one label": again,
    }


def across_splits(data):
    """Near-duplicates of the images of another split: {what: int [n, 2], indices of images}."""
    from sklearn.metrics import pairwise_distances_argmin

    spaces = {split: open_split(data, split) for split in SPLITS}
    rows = {split: used_rows(space) for split, space in spaces.items()}
    small, found = thumbnails(spaces["train"].images), {}
    for asked, known in (("validation", "train"), ("test", "train"), ("test", "validation")):
        some, others = rows[asked], np.setdiff1d(rows[known], rows[asked])  # not in both splits
        if len(others):
            nearest = others[pairwise_distances_argmin(small[some], small[others])]
            alike = (small[some] * small[nearest]).sum(axis=1) >= ALIKE
            what = f"of {len(some):,} images of {asked} are near-duplicates of {known} images"
            found[what] = np.stack([some, nearest], axis=1)[alike]
    return found


def used_rows(space):
    """Which images are in a pair of ListedImages or GivenPairs: int [n], each once."""
    return np.unique(space.pairs[:, :2] if isinstance(space, GivenPairs) else space.rows)


def thumbnails(shown):
    """Small copies of images [n, height, width, channels]: float32 [n, SIDE**2 * channels].

    Each has mean 0 and length 1, so that the product of two is their correlation. An image that is
    nearly flat is shorter, and like no other.
    """
    pictures = (Image.fromarray(x[..., 0] if x.shape[2] == 1 else x) for x in shown)
    small = [np.ravel(x.resize((SIDE, SIDE), Image.Resampling.BOX)) for x in pictures]
    small -= np.mean(small, axis=1, keepdims=True, dtype=np.float32)
    length = np.linalg.norm(small, axis=1, keepdims=True)
    return small / np.maximum(length, FLAT * small.shape[1] ** 0.5)
