"""Which split each image, or each pair of a list, of a set of files is in.

In this order: the split that a run had it in (data.splits_of), the split that the set itself gives,
and what data.split says. Where a hash decides, it is compared with fixed bounds: what is added to a
set moves nothing that was there.
"""

import gzip
import hashlib
import json
import os
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np

import images
import settings
from errors import UserError, bad_set, first_five
from listings import SPLITS

SHARES = (0.8, 0.1, 0.1)  # of the images, classes or pairs, where the splits are disjoint
BOUNDS = np.cumsum((0, *SHARES))  # of the hashes of each split
FINGERPRINT = "data.json.gz"  # in the folder of a run: see `fingerprint`


def assign_splits(data):
    """The split of each image of `images.load(data)`, of a list of pairs of each pair: int8 [n].

    An index into SPLITS; -1: in none. None where everything is in every split, and of drawn shapes.
    The result is remembered. Raises UserError where the splits cannot be made.
    """
    return assign(settings.frozen(data))[0]


@lru_cache(maxsize=4)
def assign(data):
    """(what `assign_splits` returns, list of str: what is to be said about it)."""
    if data.source == "shapes":
        return None, []
    files, known = images.load(data), known_splits(data.splits_of)
    return (assign_images if files.pairs is None else assign_pairs)(data, files, *known)


def known_splits(workdir):
    """The splits in a run's fingerprint: {name: index into SPLITS} of images, classes and pairs.

    A pair's name is "image1\\timage2". All three are empty with workdir="". Raises UserError.
    """
    if not workdir:
        return {}, {}, {}
    if (saved := read_fingerprint(workdir)) is None:
        raise UserError(f"data.splits_of={workdir}: {FINGERPRINT} is missing there")
    of_images = {name: split for name, (*_, split) in saved["images"].items()}
    tables = of_images, saved["classes"], saved["pairs"] or {}
    return tuple({name: SPLITS.index(split) for name, split in table.items() if split}
                 for table in tables)  # fmt: skip


def read_fingerprint(workdir):
    """The fingerprint in a run's folder, see `fingerprint`; None where there is none.

    Raises UserError where it is damaged.
    """
    path = Path(workdir, FINGERPRINT)
    try:
        found = json.loads(gzip.decompress(path.read_bytes()))
        return {kind: found[kind] for kind in ("images", "classes", "pairs", "labels")}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, EOFError, zlib.error, ValueError, TypeError, KeyError):
        text = "is damaged: put it back, or delete it to go on without its comparison"
        raise UserError(f"{path} {text}") from None


def split_facts(data):
    """What is to be said about the splits of a set of files, a line each: tuple of str."""
    splits, facts = assign(settings.frozen(data))
    if data.source in ("shapes", "pairs"):
        return tuple(facts)
    files, facts = images.load(data), list(facts)
    everywhere = np.bincount(files.classes[files.classes >= 0], minlength=len(files.class_names))
    divided = data.split != "classes" and files.image_splits is None
    for split in SPLITS[:1] if splits is None else SPLITS:
        _, here = count_classes(data, files, split)
        lost = (here == 1) | ((here == 0) & (everywhere > 1) & divided)
        if lost.any():
            where = "every split" if splits is None else split
            text = f"{lost.sum()} of {len(lost)} classes have fewer than two images in {where}"
            names = first_five([files.class_names[k] for k in np.flatnonzero(lost)])
            facts.append(f"{text} and are left out of it: {names}")
    return tuple(facts)


def count_classes(data, files, split):
    """(which images are in a split, bool [n]; how many of each class are, int [k])."""
    splits = assign_splits(data)
    kept = files.classes >= 0 if splits is None else splits == SPLITS.index(split)
    return kept, np.bincount(files.classes[kept], minlength=len(files.class_names))


def by_hash(hashes):
    """The split of each hash in [0, 1): int8 [n]."""
    return np.searchsorted(BOUNDS[1:-1], hashes, "right").astype(np.int8)


def hash_name(name):
    """A number in [0, 1) that looks like a uniform random one."""
    digest = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2.0**53


def look_up(table, names):
    """The known split of each name, -1 where there is none: int8 [n]."""
    return np.array([table.get(name, -1) for name in names], np.int8)


def finish(splits, usable, known, run, how, what):
    """(splits, a fact): those that a run had before those given, -1 where it cannot be used."""
    kept = usable & (known >= 0)
    changed = int((kept & (known != splits)).sum())
    splits = np.where(usable, np.where(kept, known, splits), -1).astype(np.int8)
    counts = np.bincount(splits[splits >= 0], minlength=len(SPLITS))
    counts = ", ".join(f"{count:,} {name}" for count, name in zip(counts, SPLITS, strict=True))
    moved = f"; {changed:,} of them keep the split that they had in {run}" if changed else ""
    return splits, f"{what} are split by {how}: {counts}{moved}"


def assign_images(data, files, known, known_classes, _):
    """`assign` of images in classes."""
    own, usable, facts = files.image_splits, files.classes >= 0, []
    found = {0} if own is None else {0, *np.unique(own[own > 0]).tolist()}
    if len(found) == 1 or not (own <= 0).any():  # no train beside another split: none is given
        own, found = None, set()
        if data.split == "shared":
            return None, []
    made = [split for split in range(3) if split == 0 or split not in found]
    free = usable if own is None else usable & (own <= 0)  # to be divided between those
    if data.split == "classes" and len(made) > 1:
        side, facts = divide_classes(data, files, free, known_classes, made)
        side = side[files.classes]
    else:
        side = by_hash(files.split_hash)
    splits = np.where(np.isin(side, made), side, 0)
    how = f"data.split={data.split}"
    if own is not None:
        splits = np.where(free, splits, own)
        what = "class's name" if data.split == "classes" else "pixels"
        parts = [f"{SPLITS[s]} is a tenth of train, by a hash of the {what}" for s in made[1:]]
        how = "; ".join(["the set itself (data.split moves none)", *parts])
    known = look_up(known, files.names)
    splits, fact = finish(splits, usable, known, data.splits_of, how, "images")
    return splits, [fact, *facts]


def divide_classes(data, files, free, known, made):
    """Divides classes between the splits `made`: (the split of each class, int8 [k], list of str).

    A hash of the name decides, unless a run had the class in a split. A split in which fewer than
    two classes have two images that are `free`, bool [n], takes the nearest to its bounds.
    """
    names = files.class_names
    usable = np.bincount(files.classes[free], minlength=len(names)) > 1
    if len(made) == 3 and usable.sum() < 6:
        text = f"{usable.sum()} classes of two images or more; data.split=classes takes six"
        raise bad_set(data.path, f"{text}, two a split: add classes, or say data.split=disjoint")
    hashes, fixed, moved = np.array([hash_name(name) for name in names]), look_up(known, names), []
    side = np.where(fixed >= 0, fixed, by_hash(hashes))
    side[~np.isin(side, made)] = 0
    for split in made:
        distance = np.maximum(BOUNDS[split] - hashes, hashes - BOUNDS[split + 1])
        for k in np.argsort(distance, kind="stable"):
            count = np.bincount(side[usable], minlength=3)
            if count[split] >= 2:
                break
            if usable[k] and fixed[k] < 0 and count[side[k]] > 2:
                side[k] = split
                moved.append(f"{names[k]} ({SPLITS[split]})")
    text = "classes, nearest to its bounds, are in a split that had fewer than two by the hashes"
    return side, [f"{len(moved)} {text}: {first_five(moved)}"] if moved else []


def assign_pairs(data, files, _, __, known):
    """`assign` of a list of pairs."""
    pairs, splits = files.pairs, files.pair_splits
    usable, facts = (files.classes[pairs[:, :2]] >= 0).all(axis=1), []
    if not usable.all():
        text = f"{(~usable).sum():,} of {len(pairs):,} pairs have an image that cannot be read"
        facts.append(f"{text} and are left out")
    if splits is None and data.split == "shared":
        return None, facts
    names = files.names.tolist()
    known = look_up(known, [f"{names[a]}\t{names[b]}" for a, b, _ in pairs.tolist()])
    how = "the list itself (data.split moves none)"
    if splits is None:
        how, splits = "connected groups of images", np.full(len(pairs), -1, np.int8)
        splits[usable] = divide_pairs(files, pairs[usable], known[usable])
    splits, fact = finish(splits, usable, known, data.splits_of, how, "pairs")
    if lost := int((splits[usable] < 0).sum()):
        text = f"{lost:,} of {len(pairs):,} pairs join images of two splits and are left out"
        text += ", for a group had to be cut"
        facts.append(f"{text}; a column split (train, validation, test) would keep them")
    return splits, [fact, *facts]


def divide_pairs(files, pairs, known):
    """Divides pairs such that no image is in two splits: int8 [m]; -1: a pair joins two splits.

    Images are the nodes of a graph, those of equal pixels are one node; pairs are its edges. Whole
    pieces of the graph are dealt, the largest first. Where the poorest split has more if the
    largest is cut, it is cut: a hash of the pixels then decides for each node. A piece has the
    split of those of its pairs whose split is `known`, int8 [m]; where they have several it is cut.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    hashes, node = np.unique(files.split_hash, return_inverse=True)
    ends, label = node[pairs[:, :2]], pairs[:, 2]
    graph = coo_array((np.ones(len(ends)), ends.T), shape=(len(hashes), len(hashes)))
    _, of_node = connected_components(graph, directed=False)
    found, piece = np.unique(of_node[ends[:, 0]], return_inverse=True)  # int [m], of each pair
    side = by_hash(hashes)
    side[ends[known >= 0]] = known[known >= 0, None]
    side1, side2 = side[ends].T
    if_cut = np.where(side1 == side2, side1, -1)
    low, high = np.full(len(found), 3), np.full(len(found), -1)
    np.minimum.at(low, piece, np.where(known >= 0, known, 3))
    np.maximum.at(high, piece, known)
    decided = np.where(low == high, low, -1)
    first = np.full(len(found), len(node))
    np.minimum.at(first, piece, pairs[:, :2].min(axis=1))  # names are sorted
    names = [hash_name(files.names[i]) for i in first]  # whatever the order of the lines
    order = np.lexsort((names, -np.bincount(piece)))
    order = order[high[order] < 0]

    def divide(whole):
        splits = np.where(decided[piece] >= 0, decided[piece], if_cut)
        splits[np.isin(piece, whole)] = -1
        of_piece = decided.copy()
        of_piece[whole] = deal(shares(piece, label, len(found))[whole], shares(splits, label, 3))
        return np.where(of_piece[piece] >= 0, of_piece[piece], if_cut)

    def poorest(splits):
        return (shares(splits, label, 3).T / SHARES).min()

    return max(divide(order), divide(order[1:]), key=poorest)


def shares(groups, label, count):
    """The share of the different and of the same pairs that each group has: float64 [count, 2].

    groups: int [m], of each pair; -1: in none.
    """
    numbers = np.bincount((2 * groups + label)[groups >= 0], minlength=2 * count)
    return numbers.reshape(count, 2) / np.bincount(label, minlength=2).clip(1)


def deal(pieces, held):
    """Deals pieces to the splits, which hold something already: the split of each, int8 [k].

    pieces: float64 [k, 2] and held: float64 [3, 2], see `shares`. A piece goes where the sum of
    (held - SHARES)² / SHARES, over splits and kinds, grows least.
    """
    chosen = np.zeros(len(pieces), np.int8)
    for i, piece in enumerate(pieces):
        growth = ((2 * held + piece) * piece).sum(axis=1) / SHARES
        chosen[i] = growth.argmin()
        held[chosen[i]] += piece
    return chosen
