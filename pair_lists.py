"""Lists of pairs in a file: which two images, and whether they show the same."""

import csv
import glob
import re
from pathlib import Path

import numpy as np

from errors import bad_set, first_five
from listings import SPLITS, Listing, file_item

LABELS = {"1": 1, "same": 1, "true": 1, "0": 0, "different": 0, "false": 0}
LFW_FIRST_LINE = re.compile(r"(\d+)(?:\s+(\d+))?")  # folds (where more than one), pairs of a kind
LFW_PAIR = re.compile(r"([^\t]+)\t(\d+)\t(?:([^\t]+)\t)?(\d+)")  # name n1 n2; name1 n1 name2 n2
FOLDS = range(3, 21)  # blocks of a list without its first line that are taken for folds


def list_pairs(path):
    """A list of pairs, as `read_table` or `read_lfw` reads it: Listing; raises UserError."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        start = file.readline(1000).strip()
    is_lfw = LFW_FIRST_LINE.fullmatch(start) or match_lfw(start)
    rows, pair_splits, facts = (read_lfw if is_lfw else read_table)(path)
    names = sorted({name for row in rows for name in row[:2]})
    items = [file_item(name, Path(path).parent / name) for name in names]
    if all(item.stamp == (0, 0) for item in items):
        where = f"paths are relative to {Path(path).absolute().parent}; the first is {rows[0][0]}"
        raise bad_set(path, f"none of {len(names):,} images found; {where}")
    index = {name: i for i, name in enumerate(names)}
    pairs = np.array([(index[name1], index[name2], label) for name1, name2, label in rows])
    same = int(pairs[:, 2].sum())
    if same in (0, len(pairs)):
        kind = "same" if same else "different"
        raise bad_set(path, f"all {len(pairs):,} pairs are labelled {kind}; both kinds are needed")
    counts = f"{len(rows):,} pairs of {len(names):,} images, {same:,} of them the same"
    classes = np.arange(len(names))
    return Listing(items, classes, tuple(names), None, pairs, pair_splits, (counts, *facts))


def read_table(path):
    """A CSV file with columns image1, image2, label and perhaps split.

    Returns (rows, a list of (name 1, name 2, label), splits int8 [rows] or None, facts); raises
    UserError. Paths are relative to the file; a backslash in them is taken for a slash.
    """
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        try:
            columns = reader.fieldnames or []
            rows = [(reader.line_num, {k: (v or "").strip() for k, v in row.items() if k})
                    for row in reader]  # fmt: skip
        except (csv.Error, UnicodeDecodeError, AttributeError) as error:
            raise bad_set(path, f"is no CSV file: {error}") from None
    if missing := {"image1", "image2", "label"} - set(columns):
        text = f"lacks the column {', '.join(sorted(missing))}; it has {columns}"
        raise bad_set(path, text)
    if not rows:
        raise bad_set(path, "no pairs there, only the names of the columns")
    for line, row in rows:
        if row["label"].lower() not in LABELS:
            text = f"label {row['label']!r}; must be one of {', '.join(LABELS)}"
            raise bad_set(path, f"line {line}: {text}")
        if not (row["image1"] and row["image2"]):
            raise bad_set(path, f"line {line}: the name of an image is missing")
        if row.get("split", "train") not in SPLITS:
            text = f"split {row['split']!r}; must be train, validation or test"
            raise bad_set(path, f"line {line}: {text}")
    splits = None
    if "split" in columns:
        splits = np.array([SPLITS.index(row["split"]) for _, row in rows], np.int8)
    both = [(row["image1"], row["image2"], LABELS[row["label"].lower()]) for _, row in rows]
    turned = len({name for row in both for name in row[:2] if "\\" in name})
    facts = (f"backslashes in {turned:,} paths are taken for slashes",) if turned else ()
    rows = [(a.replace("\\", "/"), b.replace("\\", "/"), label) for a, b, label in both]
    return rows, splits, facts


def read_lfw(path):
    """A list of pairs in the form of "Labeled Faces in the Wild": as `read_table`.

    A line `name n1 n2` is two images of one person, `name1 n1 name2 n2` of two; an image is
    name/name_0001.jpg, in the list's folder or in a folder there. The first line may say how many
    folds follow and how many pairs of either kind each has. Without it, blocks of equal length, the
    same before different, are the folds. The last is the test, the one before the validation.
    """
    lines = [line.strip() for line in Path(path).read_text("utf-8-sig", "replace").splitlines()]
    start = LFW_FIRST_LINE.fullmatch(lines[0])
    rows = []
    for number, line in enumerate(lines, 1):
        if not line or (start and number == 1):
            continue
        if not (found := match_lfw(line)):
            text = f"line {number}: {line[:80]!r}; must be name n1 n2, or name1 n1 name2 n2"
            raise bad_set(path, text)
        name1, n1, name2, n2 = found.groups()
        image1, image2 = ((name, int(n)) for name, n in ((name1, n1), (name2 or name1, n2)))
        rows.append((*("{0}/{0}_{1:04d}.jpg".format(*image) for image in (image1, image2)),
                     int(name2 is None)))  # fmt: skip
    fold = folds(path, start, np.array([label for *_, label in rows]))
    facts, splits, first = [], None, rows[0][0]
    if fold[-1] + 1 in FOLDS:
        splits = (fold - fold[-1] + 2).clip(0).astype(np.int8)
        text = "the last is the test, the one before the validation, the others train"
        facts.append(f"{fold[-1] + 1} folds: {text}")
    root = Path(path).parent
    holders = sorted(root.glob(f"*/{glob.escape(first)}"))
    if holders and not (root / first).exists():
        folder = holders[0].relative_to(root).parts[0]
        rows = [(f"{folder}/{a}", f"{folder}/{b}", label) for a, b, label in rows]
        facts.append(f"images are taken from the folder {folder}")
    return rows, splits, facts


def match_lfw(line):
    """(name1, n1, name2 or None, n2) of a line of LFW's list, as a match; or None."""
    return LFW_PAIR.fullmatch(line if "\t" in line else "\t".join(line.split()))


def folds(path, start, labels):
    """The fold of each pair of LFW's list, int [m], from 0: see `read_lfw`."""
    if not len(labels):
        raise bad_set(path, "no pairs there, only a first line")
    if start:
        count, each = (1, int(start[1])) if start[2] is None else map(int, start.groups())
        if len(labels) != 2 * count * each:
            said = f"the first line says {2 * count * each:,} pairs (2 x {count} x {each})"
            raise bad_set(path, f"{said}, but {len(labels):,} follow; mend the line or delete it")
        return np.arange(len(labels)) // (2 * each)
    fold = np.cumsum(np.diff(labels, prepend=labels[0]) == 1)
    sizes = np.bincount(fold)
    return fold if (sizes == sizes[0]).all() else np.zeros(len(labels), int)


def contradictions(pairs, names):
    """What a list of pairs says against itself, or twice: a list of str, a line each.

    pairs: int [m, 3], two images and a label; names: str [n], of the images. Whichever image comes
    first, it is the same pair.
    """
    low, high = np.sort(pairs[:, :2], axis=1).T
    found, place = np.unique(low * len(names) + high, return_inverse=True)
    low, high = np.divmod(found, len(names))
    times = np.bincount(2 * place + pairs[:, 2], minlength=2 * len(found)).reshape(-1, 2)
    different, same = times.T
    kinds = {  # how many there are of each two images
        "pairs of an image with itself are labelled different": different * (low == high),
        "pairs of images are labelled both same and different": (same > 0) * (different > 0) * 1,
        "lines repeat the images and the label of another line": (times - 1).clip(0).sum(axis=1),
    }
    facts = []
    for text, counts in kinds.items():
        if counts.any():
            both = [f"{names[low[i]]} with {names[high[i]]}" for i in np.flatnonzero(counts)[:6]]
            facts.append(f"{counts.sum():,} {text}: {first_five(both)}")
    return facts
