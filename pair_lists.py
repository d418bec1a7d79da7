"""Lists of pairs in a file: which two images, and whether they show the same."""

import csv
import re
from collections import Counter
from pathlib import Path

import numpy as np

from errors import bad_set, first_five
from listings import SPLIT_NAMES, SPLITS, Listing, file_item

LABELS = dict.fromkeys(("1", "1.0", "same", "true"), 1)
LABELS |= dict.fromkeys(("0", "0.0", "different", "false"), 0)
LFW_FIRST_LINE = re.compile(r"\d+(\s+\d+)?")  # the number of folds, and of pairs of a kind
LFW_PAIR = re.compile(r"([^\t]+)\t(\d+)\t(?:([^\t]+)\t)?(\d+)")  # name n1 n2; name1 n1 name2 n2
LFW_FOLDS = 10


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
    """A CSV file with columns image1, image2, label and perhaps split, or else fold.

    Returns (rows, a list of (name 1, name 2, label), splits int8 [rows] or None as of a Listing,
    facts); raises UserError. Paths are relative to the file; a backslash is taken for a slash.
    """
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        try:
            columns = reader.fieldnames or []
            lines = [(reader.line_num, {k: (v or "").strip() for k, v in row.items() if k})
                     for row in reader]  # fmt: skip
        except (csv.Error, UnicodeDecodeError, AttributeError) as error:
            raise bad_set(path, f"is no CSV file: {error}") from None
    if missing := {"image1", "image2", "label"} - set(columns):
        text = f"lacks the column {', '.join(sorted(missing))}; it has {columns}"
        raise bad_set(path, text)
    if not lines:
        raise bad_set(path, "no pairs there, only the names of the columns")
    named = next((name for name in ("split", "fold") if name in columns), None)
    words = SPLIT_NAMES if named == "split" else {str(k): len(SPLITS) + k for k in range(100)}
    rows, splits, turned = [], [], set()
    for number, line in lines:
        names, label, split = (line["image1"], line["image2"]), line["label"], line.get(named)
        wrong = None
        if label.lower() not in LABELS:
            wrong = f"label {label!r}; must be one of {', '.join(LABELS)}"
        elif not all(names):
            wrong = "the name of an image is missing"
        elif named and split.lower() not in words:
            must = "train, validation or test" if named == "split" else "a number from 0 to 99"
            wrong = f"{named} {split!r}; must be {must}"
        if wrong:
            raise bad_set(path, f"line {number}: {wrong}")
        rows.append((*(name.replace("\\", "/") for name in names), LABELS[label.lower()]))
        splits.append(named and words[split.lower()])
        turned |= {name for name in names if "\\" in name}
    if named == "fold" and (len({*splits}) < 3 or len({*splits}) <= max(splits) - len(SPLITS)):
        raise bad_set(path, "the column fold must name three folds or more: 0, 1, 2 and so on")
    facts = (f"backslashes in {len(turned):,} paths are taken for slashes",) if turned else ()
    return rows, np.array(splits, np.int8) if named else None, facts


def read_lfw(path):
    """A list of pairs in the form of "Labeled Faces in the Wild": as `read_table`.

    A line `name n1 n2` is two images of one person, `name1 n1 name2 n2` of two; an image is
    name/name_0001.jpg, in the list's folder or in a folder there. Ten blocks of equal length, the
    same before different, are folds.
    """
    rows = []
    for number, line in enumerate(Path(path).read_text("utf-8-sig", "replace").splitlines(), 1):
        found, line = match_lfw(line.strip()), line.strip()
        if found:
            name1, n1, name2, n2 = found.groups()
            images = (name1, int(n1)), (name2 or name1, int(n2))
            names = (f"{name}/{name}_{n:04d}.jpg" for name, n in images)
            rows.append((*names, int(name2 is None)))
        elif line and not (number == 1 and LFW_FIRST_LINE.fullmatch(line)):
            text = f"line {number}: {line[:80]!r}; must be name n1 n2, or name1 n1 name2 n2"
            raise bad_set(path, text)
    if not rows:
        raise bad_set(path, "no pairs there, only a first line")
    fold = np.cumsum(np.diff([label for *_, label in rows], prepend=rows[0][2]) == 1)
    facts, splits, sizes = [], None, np.bincount(fold)
    if len(sizes) == LFW_FOLDS and np.ptp(sizes) == 0:
        splits = (len(SPLITS) + fold).astype(np.int8)
    root, first = Path(path).parent, rows[0][0]
    holders = [folder for folder in sorted(root.iterdir()) if (folder / first).exists()]
    if holders and not (root / first).exists():
        rows = [(f"{holders[0].name}/{a}", f"{holders[0].name}/{b}", label) for a, b, label in rows]
        facts.append(f"images are taken from the folder {holders[0].name}")
    return rows, splits, facts


def match_lfw(line):
    """(name1, n1, name2 or None, n2) of a line of LFW's list, as a match; or None."""
    return LFW_PAIR.fullmatch(line if "\t" in line else "\t".join(line.split()))


def contradictions(pairs, names):
    """What a list of pairs (int [m, 3]) says twice or against itself: list of str.

    Whichever image comes first, it is the same pair. names: str [n], of the images.
    """
    lines = Counter(sorted((min(a, b), max(a, b), label) for a, b, label in pairs.tolist()))
    kinds = {
        "pairs of an image with itself are labelled different":
            {pair: n for pair, n in lines.items() if pair[0] == pair[1] and not pair[2]},
        "pairs of images are labelled both same and different":
            {pair: 1 for pair in lines if pair[2] and (*pair[:2], 0) in lines},
        "lines repeat the images and the label of another line":
            {pair: n - 1 for pair, n in lines.items() if n > 1},
    }  # fmt: skip
    facts = []
    for text, counts in kinds.items():
        if counts:
            both = [f"{names[a]} with {names[b]}" for a, b, _ in counts]
            facts.append(f"{sum(counts.values()):,} {text}: {first_five(both)}")
    return facts
