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
from typing import NamedTuple

import numpy as np

import images
import settings
from errors import UserError, bad_set, first_five
from listings import SPLITS

SHARES = (0.8, 0.1, 0.1)  # of the images, classes or pairs, where the splits are disjoint
BOUNDS = np.cumsum((0, *SHARES))  # of the hashes of each split
FINGERPRINT = "data.json.gz"  # in the folder of a run: see `fingerprint`
KINDS = ("shared", "disjoint", "classes", "groups")  # of data.split: each keeps more apart
WHOLE = KINDS[2:]  # those that leave each class whole


class Units(NamedTuple):
    """Images, or classes, or groups of classes: a split takes each of the k whole."""

    names: np.ndarray  # str [k]
    hashes: np.ndarray  # float64 [k] in [0, 1), which decide
    weights: np.ndarray  # int [k]: images that can be read, or classes with two of them


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
    files, facts, more = images.load(data), [], []
    names, usable, what = unit_names(files), files.classes >= 0, "images"
    if files.pairs is not None:
        what = "pairs"
        usable = usable[files.pairs[:, :2]].all(axis=1)
        text = f"{(~usable).sum():,} of {len(names):,} pairs have an image that cannot be read"
        facts += [f"{text} and are left out"] * (not usable.all())
    splits, how = given_splits(data, files)
    if splits is None and data.split == "shared":
        return None, facts
    known, other_names = known_splits(data), hash_texts(files) if files.pairs is None else names
    both = zip(names, other_names, strict=True)  # an image may have another name now
    before = np.array([known.get(name, known.get(other, -1)) for name, other in both], np.int8)
    if files.pairs is None:
        splits, more = divide_images(data, files, splits, usable, known, before)
    elif splits is None:
        splits = divide_pairs(files, usable, before)
    splits = np.where(usable, np.where(before >= 0, before, splits), -1).astype(np.int8)
    counts = np.bincount(splits[splits >= 0], minlength=len(SPLITS))
    counts = ", ".join(f"{count:,} {name}" for count, name in zip(counts, SPLITS, strict=True))
    facts = [f"{what} are split by {how}: {counts}", *facts, *more]
    if lost := (splits[usable] < 0).sum():
        text = f"{lost:,} of {len(names):,} pairs join images of two splits and are left out"
        facts.append(f"{text}; a column split (train, validation, test) would keep them")
    return splits, facts


def given_splits(data, files):
    """The splits that the set itself gives, perhaps by folds: (int8 or None, what decides).

    Raises UserError where data.folds are not those of the set.
    """
    given, listed = files.given, files.pairs is not None
    count = 0 if given is None else max(int(given.max()) - len(SPLITS) + 1, 0)
    if data.folds not in (0, count) and (listed or given is not None):
        text = f"the set itself has {count} folds: leave the key out, or give a list of pairs"
        raise UserError(f"data.folds={data.folds}: {text} a column fold (and none split)")
    if given is None:
        text = f" (fold {data.fold} of {data.folds} is the test, a tenth of the rest validation)"
        text = f"data.split={data.split}" + text * (data.folds > 0)
        return None, "connected groups of images" if listed else text
    if not count:
        missing = [SPLITS[k] for k in (1, 2) if k not in given and not listed]
        text = f"; {missing[0]} is a tenth of train" if len(missing) == 1 else ""
        return given, f"the set itself (data.split moves none){text}"
    test, validation = count - 1, count - 2
    if data.folds:
        test, validation = data.fold, (data.fold + 1) % count
    how = f"the list's {count} folds (fold {test} is the test, fold {validation} the validation)"
    fold = given - len(SPLITS)
    return np.select([fold == test, fold == validation], [2, 1], 0), how


def hash_texts(files):
    """The hashes of the pixels as a fingerprint has them: list of str."""
    return [f"{int(number * 2**53):014x}" for number in files.split_hash.tolist()]


def unit_names(files):
    """What images, or the pairs of a list, are called in a fingerprint: list of str."""
    names = files.names.tolist()
    if files.pairs is None:
        return names
    return [f"{names[first]} - {names[second]}" for first, second, _ in files.pairs.tolist()]


def known_splits(data):
    """What data.splits_of had in one split: {name or pixels of an image, class or pair: split}.

    A split is an index into SPLITS. Empty without such a run. Raises UserError.
    """
    if not data.splits_of:
        return {}
    saved, text = read_fingerprint(data.splits_of), f"data.splits_of={data.splits_of}"
    if saved is None:
        raise UserError(f"{text}: {FINGERPRINT} is missing there")
    before = settings.load_config(Path(data.splits_of)).data.split
    if KINDS.index(data.split) > KINDS.index(before):
        raise UserError(f"{text}: data.split={before} was all that run kept apart: say so")
    found = defaultdict(set)
    for name, (owner, split, *pixels) in (saved["images"] | saved["pairs"]).items():
        for key in (name, owner, *pixels[:1]):  # the owner of an image is its class
            found[key].add(split)
    one = {key: splits for key, splits in found.items() if len(splits) == 1 and splits != {None}}
    return {key: SPLITS.index(*splits) for key, splits in one.items()}


def read_fingerprint(workdir):
    """The fingerprint in a run's folder, see `fingerprint`; None where there is none.

    Raises UserError where it is damaged.
    """
    path = Path(workdir, FINGERPRINT)
    try:
        found = json.loads(gzip.decompress(path.read_bytes()))
        rows = {name: row[:3] for name, row in found["images"].items()}  # once also bytes of files
        return {"images": rows, "pairs": found["pairs"]}
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, EOFError, zlib.error, ValueError, TypeError, KeyError, AttributeError):
        text = "is damaged: put it back, or delete it to go on without its comparison"
        raise UserError(f"{path} {text}") from None


def split_facts(data):
    """What is to be said about the splits of a set of files, a line each: tuple of str."""
    splits, facts = assign(settings.frozen(data))
    if data.source in ("shapes", "pairs"):
        return tuple(facts)
    files, facts = images.load(data), list(facts)
    divided = data.split not in WHOLE and files.given is None  # each class in each split
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


def divide_images(data, files, given, usable, known, before):
    """Divides images: (int8 [n], facts). Splits that the set does not give are made of its train.

    usable: bool [n]; known: see `known_splits`; before: int8 [n], the splits of a run, or -1.
    Raises UserError where data.split leaves classes whole, and they are too few.
    """
    own = np.zeros(len(usable), np.int8) if given is None else given
    made, free = [0, *({1, 2} - {*own})], usable & (own == 0)
    facts, whole, before = [], data.split in WHOLE, np.where(free, before, -1)
    unit, units = np.arange(len(own)), Units(files.names, files.split_hash, free)
    if whole:
        unit, names = files.classes, files.class_names
        weights = np.bincount(unit[free], minlength=len(names)) > 1
        units = Units(np.array(names), np.array([*map(hash_name, names)]), weights)
        of_class = np.full(len(names), -1)
        of_class[unit[before >= 0]] = before[before >= 0]  # where the class has another name now
        of_class = np.array([known.get(name, k) for name, k in zip(names, of_class, strict=True)])
        apart = files.names[(before >= 0) & (before != of_class[unit])]
        text = f"{len(apart):,} images stay in a split where their class is not"
        facts = [f"{text}: {first_five(apart)}"] * (len(apart) > 0)
        before = np.where(free & (before < 0), of_class[unit], before)
    least, rest, in_test, smallest = (2, 2, 2), made, np.zeros(len(units.names), bool), 2
    if data.folds or data.split == "groups":
        if 2 in made:
            in_test, smallest, more = choose_test(data, units, made, unit, before)
            facts += more
        rest = [split for split in made if split != 2]
        # The lower bits: independent of the order of the hashes, which has chosen the test.
        units = units._replace(hashes=units.hashes * 2.0**20 % 1)
        least = (2, min(max((units.weights & ~in_test).sum() // 5, 2), 6), 2)
    moves = whole and len(made) > 1 and not data.splits_of  # a run's splits stay as they are
    side, moved = settle(units._replace(weights=units.weights & ~in_test), rest, least, moves)
    side = np.where(in_test, 2, side)
    smallest = min(smallest, np.bincount(side, units.weights, 3)[made].min())
    if moves and smallest < 2:
        text = f"data.split={data.split} leaves a split, or a fold, fewer than two of"
        text += f" {units.weights.sum()} classes of two images or more: add classes, or say"
        other = "data.split=" + ("disjoint" if data.split == "classes" else "classes")
        raise bad_set(data.path, f"{text} {'fewer data.folds' if data.folds else other}")
    side = np.where(free & np.isin(side[unit], made), side[unit], own)
    return np.where(before >= 0, before, side), facts + moved


def choose_test(data, units, made, unit, before):
    """The test where it is a fold or of whole groups: (bool [k], size of the least fold, facts).

    A group is the path of a class without its last part. One that a run had (before, int [n], of
    images whose units are `unit`) is in the test where it was.
    """
    group, groups, facts, smallest = np.arange(len(units.names)), units, [], 2
    if data.split == "groups":
        paths = [os.path.dirname(name) or "." for name in units.names.tolist()]
        names, group = np.unique(paths, return_inverse=True)
        hashes = np.array([*map(hash_name, names.tolist())])
        groups = Units(names, hashes, np.bincount(group, units.weights))
    if data.folds:
        order = np.unique(groups.hashes[groups.weights > 0])  # equal hashes are in one fold
        fold = np.searchsorted(order, groups.hashes) * data.folds // max(len(order), 1)
        fold = fold.clip(max=data.folds - 1)
        sizes, in_test = np.bincount(fold, groups.weights, data.folds), fold == data.fold
        smallest = min(sizes.min(), (sizes.sum() - sizes.max()) // (len(made) - 1))
    else:
        least = (2 * len(made) - 2, 0, 2)
        side, facts = settle(groups, [0, 2], least, not data.splits_of, "groups")
        in_test = side == 2
    in_test[group[unit[before >= 0]]] = False
    in_test[group[unit[before == 2]]] = True
    if data.split == "groups":
        chosen = groups.names[in_test & (groups.weights > 0)]
        text = f"the test is {len(chosen)} of {len(groups.names)} groups of classes"
        facts = [f"{text} ({first_five(chosen)})", *facts]
    return in_test[group], smallest, facts


def settle(units, made, least, moves, what="classes"):
    """Puts units into the splits `made` by their hashes: (int [k], what is to be said).

    moves: a split of fewer than `least`, [3], by their weights, gets those that are nearest to its
    bounds.
    """
    side, moved = by_hash(units.hashes), []
    side = np.where(np.isin(side, made), side, 0)
    for split in made if moves else []:
        distance = np.maximum(BOUNDS[split] - units.hashes, units.hashes - BOUNDS[split + 1])
        for k in np.argsort(distance, kind="stable"):
            count, weight = np.bincount(side, units.weights, 3), units.weights[k]
            if count[split] >= least[split]:
                break
            if weight and count[side[k]] - weight >= least[side[k]]:
                side[k] = split
                moved.append(k)
    texts = first_five([f"{units.names[k]} ({SPLITS[side[k]]})" for k in moved])
    text = f"{what} moved into a split that would have too few classes"
    return side, [f"{text}: {len(moved)} ({texts})"] * (len(moved) > 0)


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
    (*ends, label), before = files.pairs[usable].T, before[usable]
    ends, old = first[place][np.array(ends)], before >= 0
    graph = coo_array((np.ones(len(label)), ends), shape=(len(place), len(place)))
    _, of_node = connected_components(graph, directed=False)
    _, piece, sizes = np.unique(of_node[ends[0]], return_inverse=True, return_counts=True)
    side = by_hash(files.split_hash)
    side[ends[:, old]] = before[old]
    if_cut = np.where(side[ends[0]] == side[ends[1]], side[ends[0]], -1)
    had = np.zeros((len(sizes), 3), bool)  # of each piece: the splits in which a run had a part
    had[piece[old], before[old]] = True
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
