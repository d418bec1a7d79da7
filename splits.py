"""Which split each image, or each pair of a list, of a set of files is in.

In this order: the split that a run had it in (data.splits_of), the split that the set itself gives,
and what data.split says. Where a hash decides, it is compared with fixed bounds: what is added to a
set moves nothing that was there. Folds (data.folds) are equal parts instead, in the order of the
hashes: what is added may move others into the next fold.
"""

import gzip
import hashlib
import json
import os
import zlib
from collections import defaultdict
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
WHOLE = ("classes", "groups")  # values of data.split that leave each class whole


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
    files, facts = images.load(data), []
    if files.pairs is None:
        what, own, names, usable = "images", files.image_splits, files.names, files.classes >= 0
    else:
        what, names = "pairs", pair_names(files)
        own, own_how = list_splits(data, files.pair_splits)
        usable = (files.classes[files.pairs[:, :2]] >= 0).all(axis=1)
        if not usable.all():
            text = f"{(~usable).sum():,} of {len(names):,} pairs have an image that cannot be read"
            facts.append(f"{text} and are left out")
    if own is None and data.split == "shared":
        return None, facts
    known, more = known_splits(data.splits_of), []
    before = np.array([known.get(name, -1) for name in names], np.int8)
    if what == "images":  # also by its pixels, where it has another name now
        pixels = [known.get(text, -1) for text in hash_texts(files)]
        before = np.where(before >= 0, before, pixels).astype(np.int8)
        splits, how, more = divide_images(data, files, usable, known, before)
    elif own is None:
        how, splits = "connected groups of images", divide_pairs(files, usable, before)
    else:
        how, splits = own_how, own
    if what == "images" and own is None and data.split in WHOLE:
        before = np.full_like(before, -1)  # the class decides, as it did in that run
    splits = np.where(usable, np.where(before >= 0, before, splits), -1).astype(np.int8)
    counts = np.bincount(splits[splits >= 0], minlength=len(SPLITS))
    counts = ", ".join(f"{count:,} {name}" for count, name in zip(counts, SPLITS, strict=True))
    facts = [f"{what} are split by {how}: {counts}", *facts, *more]
    if what == "pairs" and (lost := (splits[usable] < 0).sum()):
        text = f"{lost:,} of {len(names):,} pairs join images of two splits and are left out"
        facts.append(f"{text}; a column split (train, validation, test) would keep them")
    return splits, facts


def list_splits(data, given):
    """The splits that a list of pairs gives itself, perhaps by its folds: (int [m] or None, how).

    given: see `listings.Listing`. Raises UserError where data.folds are not those of the list.
    """
    count = 0 if given is None else max(int(given.max()) - len(SPLITS) + 1, 0)
    if data.folds not in (0, count):
        text = f"the list has {count} folds; say so, or give it a column fold (and none split)"
        raise UserError(f"data.folds={data.folds}: {text}")
    if not count:
        return given, "the list itself (data.split moves none)"
    test, validation = count - 1, count - 2
    if data.folds:
        test, validation = data.fold, (data.fold + 1) % count
    how = f"the list's {count} folds (fold {test} is the test, fold {validation} the validation)"
    fold = given - len(SPLITS)
    return np.select([fold == test, fold == validation], [2, 1], 0), how


def hash_texts(files):
    """The hashes of the pixels as a fingerprint has them: list of str."""
    return [f"{int(number * 2**53):014x}" for number in files.split_hash.tolist()]


def pair_names(files):
    """What the pairs of a list are called in a fingerprint: list of str."""
    names = files.names.tolist()
    return [f"{names[first]} - {names[second]}" for first, second, _ in files.pairs.tolist()]


def known_splits(workdir):
    """What a run had in one split: {name or pixels of an image, name of a class or pair: split}.

    A split is an index into SPLITS. Empty with workdir="". Raises UserError.
    """
    if not workdir:
        return {}
    if (saved := read_fingerprint(workdir)) is None:
        raise UserError(f"data.splits_of={workdir}: {FINGERPRINT} is missing there")
    found = defaultdict(set)
    for name, (owner, split, *pixels) in (saved["images"] | saved["pairs"]).items():
        for key in (name, owner, *pixels[:1]):  # the owner of an image is its class
            found[key].add(split)
    one = {key: splits for key, splits in found.items() if len(splits) == 1 and splits != {None}}
    if not one:
        text = "that run had no splits (data.split=shared)"
        raise UserError(f"data.splits_of={workdir}: {text}; leave the key out")
    return {key: SPLITS.index(*splits) for key, splits in one.items()}


def read_fingerprint(workdir):
    """The fingerprint in a run's folder, see `fingerprint`; None where there is none.

    Raises UserError where it is damaged.
    """
    path = Path(workdir, FINGERPRINT)
    try:
        found = json.loads(gzip.decompress(path.read_bytes()))
        return {kind: found[kind] for kind in ("classes", "images", "pairs")}
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
    divided = data.split not in WHOLE and files.image_splits is None  # each class in each split
    for split in SPLITS[:1] if splits is None else SPLITS:
        _, here = count_classes(data, files, split)
        lost = here < 2 if divided else here == 1
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


def lower_bits(hashes):
    """Numbers in [0, 1) that look random, too, and independent of the order of the hashes."""
    return hashes * 2.0**20 % 1


def deal(hashes, usable, folds):
    """The fold of each unit: int [n]. Equal parts of those `usable`, in the order of the hashes.

    Units of equal hashes are in one fold.
    """
    order = np.unique(hashes[usable])
    return (np.searchsorted(order, hashes) * folds // max(len(order), 1)).clip(max=folds - 1)


def divide_images(data, files, usable, known, before):
    """Divides images: (int8 [n], by what, facts). Splits that the set lacks are made of its train.

    usable: bool [n]; known: see `known_splits`; before: int8 [n], the splits of a run, or -1.
    """
    own, how, facts = files.image_splits, "the set itself (data.split moves none)", []
    if own is None:
        own, how = np.zeros(len(usable), np.int8), f"data.split={data.split}"
        text = f" (fold {data.fold} of {data.folds} is the test, a tenth of the rest validation)"
        how += text if data.folds else ""
    elif data.folds:
        text = "the set itself says which images are its test: leave the key out"
        raise UserError(f"data.folds={data.folds}: {text}")
    made = [0, *({1, 2} - {*own})]
    free = usable & (own == 0)
    if data.split in WHOLE and len(made) > 1:
        side, facts = divide_classes(data, files, free, known, before, made)
        side = side[files.classes]
    elif data.folds:
        side = by_hash(lower_bits(files.split_hash)) % 2  # test, 2, is made train, 0
        side[deal(files.split_hash, free, data.folds) == data.fold] = 2
    else:
        side = by_hash(files.split_hash)
    if len(made) == 2:
        what = "name" if data.split in WHOLE else "pixels"
        how += f"; {SPLITS[made[1]]} is a tenth of train, by a hash of the {what}"
    return np.where(free & np.isin(side, made), side, own), how, facts


def divide_classes(data, files, free, known, before, made):
    """Divides classes between the splits `made`: (the split of each class, int [k], list of str).

    A hash of the name decides, unless a run had the class, or images of it, in a split. The test of
    folds or groups is chosen first. Classes count that have two images that are `free`, bool [n].
    """
    names = files.class_names
    usable = np.bincount(files.classes[free], minlength=len(names)) > 1
    fixed = known_classes(data, files, free, known, before)
    hashes, least, facts = np.array([hash_name(name) for name in names]), (2, 2, 2), []
    if data.folds or data.split == "groups":
        in_test, facts = choose_test(data, names, usable, fixed, made)
        fixed = np.where(in_test, 2, fixed)
        hashes, made = lower_bits(hashes), [split for split in made if split < 2]
        least = (2, min(max((usable & ~in_test).sum() // 5, 2), 6), 2)
    elif len(made) == 3 and usable.sum() < 6:
        text = f"{usable.sum()} classes of two images or more; data.split=classes takes six"
        raise bad_set(data.path, f"{text}, two a split: add classes, or say data.split=disjoint")
    side, moved = settle(hashes, usable, fixed, made, least)
    return side, facts + say_moved("classes", names, side, moved)


def known_classes(data, files, free, known, before):
    """The split in which a run had each class, int [k]; -1: it is new. Raises UserError."""
    names, old = files.class_names, free & (before >= 0)
    had = np.zeros((len(names), 3), bool)
    had[files.classes[old], before[old]] = True
    if mixed := [names[k] for k in np.flatnonzero(had.sum(axis=1) > 1)]:
        text = f"that run had images of one class in several splits: {first_five(mixed)}"
        raise UserError(f"data.splits_of={data.splits_of}: {text}; say data.split=disjoint")
    fixed = np.array([known.get(name, -1) for name in names])
    return np.where(had.any(axis=1), had.argmax(axis=1), fixed)


def choose_test(data, names, usable, fixed, made):
    """The classes of the test, where it is of whole groups or a fold: (bool [k], list of str).

    A group is the path of a class without its last part. Raises UserError where there are too few.
    """
    if 2 not in made:
        return np.zeros(len(names), bool), []
    grouped = data.split == "groups"
    units = [(os.path.dirname(name) or ".") if grouped else name for name in names]
    units, unit = np.unique(units, return_inverse=True)
    weights, hashes = np.bincount(unit, usable), np.array([hash_name(name) for name in units])
    tested, others = (np.bincount(unit, np.isin(fixed, some)) > 0 for some in ([2], [0, 1]))
    if mixed := units[tested & others].tolist():
        text = f"that run had one group in the test and in another split: {first_five(mixed)}"
        raise UserError(f"data.splits_of={data.splits_of}: {text}; say data.split=classes")
    known, rest, moved = np.where(tested, 2, np.where(others, 0, -1)), 2 * len(made) - 2, []
    if data.folds:
        fold = deal(hashes, weights > 0, data.folds)
        side = np.where(known >= 0, known, np.where(fold == data.fold, 2, 0))
        sizes = np.bincount(fold, weights, data.folds)
    else:
        side, moved = settle(hashes, weights, known, [0, 2], (rest, 0, 2))
        sizes = np.bincount(side, weights, 3)[2:]
    if not data.splits_of and (sizes.min() < 2 or usable.sum() - sizes.max() < rest):
        text = f"{usable.sum()} classes of two images or more"
        text += f" in {len(units)} groups ({first_five(units)})" if grouped else ""
        what, remedy = "the test takes two or more, of whole groups", "data.split=classes"
        if data.folds:
            what, remedy = f"each of {data.folds} folds takes two or more", "fewer data.folds"
        text += f"; {what}, and leaves {rest} or more: add classes, or say {remedy}"
        raise bad_set(data.path, text)
    chosen = units[(side == 2) & (weights > 0)]
    text = f"the test is {len(chosen)} of {len(units)} groups of classes ({first_five(chosen)})"
    text += "; validation is about a tenth of the classes of the others" if 1 in made else ""
    return (side == 2)[unit], [text] * grouped + say_moved("groups", units, side, moved)


def settle(hashes, weights, fixed, made, least):
    """Puts classes, or groups of them, into the splits `made`: (int [n], which were moved).

    A hash decides, unless one is `fixed`, int [n]; -1: it is not. weights: how many classes each
    has. A split of fewer than `least` classes, [3], gets those that are nearest to its bounds.
    """
    side, moved = by_hash(hashes), []
    side = np.where(fixed >= 0, fixed, np.where(np.isin(side, made), side, 0))
    for split in made:
        distance = np.maximum(BOUNDS[split] - hashes, hashes - BOUNDS[split + 1])
        for k in np.argsort(distance, kind="stable"):
            count = np.bincount(side, weights, 3)
            if count[split] >= least[split]:
                break
            if weights[k] and fixed[k] < 0 and count[side[k]] - weights[k] >= least[side[k]]:
                side[k] = split
                moved.append(k)
    return side, moved


def say_moved(what, names, side, moved):
    """What is to be said about classes or groups that `settle` has moved: list of str."""
    texts = [f"{names[k]} ({SPLITS[side[k]]})" for k in moved]
    text = f"{what} moved into a split that would have too few classes"
    return [f"{text}: {len(moved)} ({first_five(texts)})"] if moved else []


def divide_pairs(files, usable, before):
    """Divides a list of pairs: int8 [m]; -1: a pair joins two splits, or it is not `usable`.

    before: int8 [m], the splits that a run had, or -1. Images are the nodes of a graph, those of
    equal pixels are one; pairs are its edges. Its connected pieces are dealt whole, the largest
    first, each to the split that is then least full. Where a split lacks a kind of pairs, the
    largest is cut: a hash of the pixels decides for each node. A piece that a run had in one split
    stays there; one that it had in two is cut.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    _, first, place = np.unique(files.split_hash, return_index=True, return_inverse=True)
    (*pairs, label), before = files.pairs[usable].T, before[usable]
    ends, old = first[place][np.array(pairs)], before >= 0
    graph = coo_array((np.ones(len(label)), ends), shape=(len(place), len(place)))
    _, of_node = connected_components(graph, directed=False)
    _, piece, sizes = np.unique(of_node[ends[0]], return_inverse=True, return_counts=True)
    had = np.zeros((len(sizes), 3), bool)  # of each piece: the splits in which a run had a part
    had[piece[old], before[old]] = True
    side = by_hash(files.split_hash)
    side[ends[:, old]] = before[old]
    if_cut = np.where(side[ends[0]] == side[ends[1]], side[ends[0]], -1)
    order = np.argsort(-sizes, kind="stable")  # those of equal size by their first image
    order = order[~had.any(axis=1)[order]]
    splits = np.full(len(usable), -1, np.int8)
    for whole in (order, order[1:]):
        dealt = np.where(had.sum(axis=1) == 1, had.argmax(axis=1), -1)  # -1: it is cut
        found = np.where(dealt[piece] >= 0, dealt[piece], if_cut)
        held = np.bincount(found[~np.isin(piece, whole) & (found >= 0)], minlength=3)
        for k in whole:
            dealt[k] = ((held + sizes[k]) / SHARES).argmin()
            held[dealt[k]] += sizes[k]
        splits[usable] = found = np.where(dealt[piece] >= 0, dealt[piece], if_cut)
        if len({*(2 * found + label)[found >= 0]}) == 6:
            break
    return splits
