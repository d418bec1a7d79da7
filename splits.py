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
from functools import lru_cache
from pathlib import Path

import numpy as np

import images
import settings
from errors import UserError, bad_set, first_five
from listings import SPLITS

SHARES = (0.8, 0.1, 0.1)  # of the images, classes or pairs, where the splits are disjoint
FEW = 20  # pairs of a split; with fewer its metrics are hardly worth a look
BOUNDS = np.cumsum((0, *SHARES))  # of the hashes of each split
FINGERPRINT = "data.json.gz"  # in the folder of a run: see `fingerprint`
KINDS = ("shared", "disjoint", "classes", "groups")  # of data.split: each keeps more apart
WHOLE = KINDS[2:]  # those that leave each class whole


def assign_splits(data):
    """The split of each image of `images.load(data)`, of a list of pairs of each pair: int8 [n].

    An index into SPLITS; -1: in none. None where everything is in every split, and of drawn shapes.
    Raises UserError.
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
    known, pixels = known_splits(data), files.split_hash.tolist() if what == "images" else names
    both = zip(names, pixels, strict=True)  # an image may have another name now
    before = np.array([known.get(name, known.get(other, -1)) for name, other in both], np.int8)
    before[~usable] = -1
    if what == "images":
        splits, more = divide_images(data, files, splits, known, before)
    else:
        splits = divide_pairs(files, usable, before) if splits is None else splits
        splits = np.where(before >= 0, before, splits)
    splits = np.where(usable, splits, -1).astype(np.int8)
    sizes = np.bincount(splits[splits >= 0], minlength=len(SPLITS))
    counts = ", ".join(f"{count:,} {name}" for count, name in zip(sizes, SPLITS, strict=True))
    facts = [f"{what} are split by {how}: {counts}", *facts, *more]
    if lost := (splits[usable] < 0).sum():
        text = f"{lost:,} of {len(names):,} pairs join images of two splits and are left out"
        facts.append(f"{text}; a column split (train, validation, test) would keep them")
    if files.pairs is not None and min(sizes[1:]) < FEW:
        text = f"fewer than {FEW} pairs of validation or test say little about a network"
        facts.append(f"{text}; a column split can give them more")
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
    fold = given - len(SPLITS)
    how = f"the list's {count} folds (fold {test} is the test, fold {validation} the validation)"
    return np.select([fold == test, fold == validation], [2, 1], 0), how


def unit_names(files):
    """What images, or the pairs of a list, are called in a fingerprint: list of str."""
    names = files.names.tolist()
    if files.pairs is None:
        return names
    return [f"{names[first]} - {names[second]}" for first, second, _ in files.pairs.tolist()]


def known_splits(data):
    """Where data.splits_of had what: {name or pixels of an image, name of a class or pair: split}.

    An index into SPLITS; -1: in two of them. Empty without such a run. Raises UserError.
    """
    if not data.splits_of:
        return {}
    saved, text = read_fingerprint(data.splits_of), f"data.splits_of={data.splits_of}"
    if saved is None:
        raise UserError(f"{text}: {FINGERPRINT} is missing there")
    before = settings.load_config(Path(data.splits_of)).data.split
    if KINDS.index(data.split) > KINDS.index(before):
        raise UserError(f"{text}: data.split={before} was all that run kept apart: say so")
    known = {}
    for name, (owner, split, *pixels) in (saved["images"] | saved["pairs"]).items():
        for key in (name, owner, *pixels[:1]) if split else ():  # the owner of an image: its class
            place = SPLITS.index(split)
            known[key] = place if known.get(key, place) == place else -1
    return known


def read_fingerprint(workdir):
    """The fingerprint in a run's folder, or None; raises UserError where it is damaged."""
    path = Path(workdir, FINGERPRINT)
    try:
        found = json.loads(gzip.decompress(path.read_bytes()))
        return {kind: dict(found[kind]) for kind in ("images", "pairs")}
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
    divided = data.split not in WHOLE and files.given is None  # each class in each split
    for split in SPLITS[:1] if splits is None else SPLITS:
        _, here = count_classes(data, files, split)
        lost = np.flatnonzero(here < 2 if divided else here == 1)
        if len(lost):
            where = "every split" if splits is None else split
            text = f"{len(lost)} of {len(here)} classes have fewer than two images in {where}"
            names = first_five([files.class_names[k] for k in lost])
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


def divide_images(data, files, given, known, before):
    """Divides images: (int8 [n], facts). Splits that the set does not give are made of its train.

    known: see `known_splits`; before: int8 [n], the splits of a run, or -1. A split takes images,
    or classes, each whole: unit, int [n], names them. Raises UserError where classes are too few.
    """
    own = np.zeros(len(before), np.int8) if given is None else given
    made, free = [0, *({1, 2} - {*own})], (files.classes >= 0) & (own == 0)
    unit, names, hashes, weights = np.arange(len(own)), files.names, files.split_hash, free
    whole, had, old = data.split in WHOLE, before, before >= 0
    if whole:  # a class of another name is where its images were: where they differ, in training
        unit, names = files.classes, np.array(files.class_names)
        hashes = np.array([*map(hash_name, files.class_names)])
        weights = np.bincount(unit[free], minlength=len(names)) > 1
        had = np.full(len(names), len(SPLITS))
        np.minimum.at(had, unit[old], before[old])
        had = [known.get(name, k) for name, k in zip(files.class_names, had, strict=True)]
        had = np.where(np.less(had, len(SPLITS)), had, -1)
    moves = whole and len(made) > 1 and not data.splits_of  # a run's splits stay as they are
    side, facts, smallest = np.zeros(len(names), int), [], 2
    rest, least = made, (2, 2, 2)
    if data.folds or data.split == "groups":
        if 2 in made:
            side, smallest, facts = choose_test(data, names, hashes, weights, had, made)
        rest, count = made[: len(made) - (2 in made)], (weights & (side == 0)).sum()
        # The lower bits: independent of the order of the hashes, which has chosen the test.
        hashes, least = hashes * 2.0**20 % 1, (2, min(max(count // 5, 2), 6), 2)
    others = settle(hashes, weights & (side == 0), rest, least * moves)
    side = np.where(side, side, others)
    if moves and min(smallest, np.bincount(side, weights, 3)[made].min()) < 2:
        text = f"data.split={data.split} leaves a split, or a fold, fewer than two of"
        text += f" {weights.sum()} classes of two images or more: add classes, or say"
        other = "data.split=" + ("disjoint" if data.split == "classes" else "classes")
        raise bad_set(data.path, f"{text} {'fewer data.folds' if data.folds else other}")
    splits = np.where(old, before, np.where(free, side[unit], own))
    splits = np.where(had[unit] >= 0, had[unit], splits)
    follow = files.names[old & (splits != before)]
    text = f"images that follow their class into another split: {len(follow):,}"
    return splits, facts + [f"{text} ({first_five(follow)})"] * (len(follow) > 0)


def choose_test(data, names, hashes, weights, had, made):
    """The test where it is a fold or of whole groups: (2 or 0, [k]; size of the least fold; facts).

    A group is the path of a class without its last part. One that a run had (had, int [k], its
    split or -1) is in the test where it was.
    """
    group, facts, smallest, by_group = np.arange(len(names)), [], 2, data.split == "groups"
    if by_group:
        paths = [os.path.dirname(name) or "." for name in names.tolist()]
        names, group = np.unique(paths, return_inverse=True)
        hashes, weights = np.array([*map(hash_name, names.tolist())]), np.bincount(group, weights)
    if data.folds:
        order = np.unique(hashes[weights > 0])  # equal hashes are in one fold
        fold = np.searchsorted(order, hashes) * data.folds // max(len(order), 1)
        fold = fold.clip(max=data.folds - 1)
        sizes, side = np.bincount(fold, weights, data.folds), 2 * (fold == data.fold)
        smallest = min(sizes.min(), (sizes.sum() - sizes.max()) // (len(made) - 1))
    else:
        least = (2 * len(made) - 2, 0, 2) * (not data.splits_of)
        side = settle(hashes, weights, [0, 2], least)
    side[group[had >= 0]] = 0
    side[group[had == 2]] = 2
    if by_group:
        chosen = names[(side == 2) & (weights > 0)]
        text = f"the test is {len(chosen)} of {len(names)} groups of classes"
        facts = [f"{text} ({first_five(chosen)})"]
    return side[group], smallest, facts


def settle(hashes, weights, made, least):
    """Puts k units into the splits `made` by their hashes: int [k].

    A split of fewer than `least`, [3] or empty, by their weights, gets those nearest to its bounds.
    """
    side = by_hash(hashes)
    side[~np.isin(side, made)] = 0
    for split in made if least else []:
        distance = np.maximum(BOUNDS[split] - hashes, hashes - BOUNDS[split + 1])
        for k in np.argsort(distance, kind="stable"):
            count = np.bincount(side, weights, 3)
            if count[split] >= least[split]:
                break
            if weights[k] and count[side[k]] - weights[k] >= least[side[k]]:
                side[k] = split
    return side


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
