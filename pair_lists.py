"""Lists of pairs in a file: which two images, and whether they show the same."""

import csv
import io
import re
from pathlib import Path

import numpy as np

from errors import bad_set
from listings import SPLIT_NAMES, SPLITS, Files, file_item

LABELS = dict.fromkeys(("1", "1.0", "same", "true"), 1)
LABELS |= dict.fromkeys(("0", "0.0", "different", "false"), 0)
LFW_FIRST_LINE = re.compile(r"\d+(\s+\d+)?")  # the number of folds, and of pairs of a kind
LFW_PAIR = re.compile(r"([^\t]+)\t(\d+)\t(?:([^\t]+)\t)?(\d+)")  # name n1 n2; name1 n1 name2 n2


def list_pairs(path):
    """A list of pairs: Files, whose `given` is of pairs, len(SPLITS) + i for fold i.

    Raises UserError. Paths are relative to the list; a backslash is taken for a slash.
    """
    root = Path(path).parent
    try:
        text = Path(path).read_text("utf-8-sig")
        start = text.partition("\n")[0].strip()
        is_lfw = LFW_FIRST_LINE.fullmatch(start) or match_lfw(start)
        rows, given = (read_lfw if is_lfw else read_table)(text)
    except (OSError, ValueError, csv.Error) as error:  # also of bytes that are no text
        raise bad_set(path, error) from None
    if not rows:
        raise bad_set(path, "no pairs there")
    turned = len({name for row in rows for name in row[:2] if "\\" in name})
    rows = [(*(name.replace("\\", "/") for name in both), label) for *both, label in rows]
    names = sorted({name for row in rows for name in row[:2]})
    items = [file_item(root / name) for name in names]
    if all(item.stamp == (0, 0) for item in items):
        where = f"paths are relative to {root.absolute()}; the first is {rows[0][0]}"
        raise bad_set(path, f"none of {len(names):,} images found; {where}")
    index = {name: i for i, name in enumerate(names)}
    pairs = np.array([(index[name1], index[name2], label) for name1, name2, label in rows])
    same = pairs[:, 2].sum()
    facts = [f"{len(rows):,} pairs of {len(names):,} images, {same:,} of them the same"]
    facts += [f"backslashes in {turned:,} paths are taken for slashes"] * (turned > 0)
    given = None if given is None else np.array(given, np.int8)
    return Files(np.array(names), items, np.arange(len(names)), (*names,), given, pairs, (*facts,))


def read_table(text):
    """CSV with columns image1, image2, label and perhaps split, or else fold.

    Returns (rows, a list of (name 1, name 2, label); `given` of each or None); raises ValueError.
    """
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    columns = reader.fieldnames or []
    if missing := {"image1", "image2", "label"} - set(columns):
        raise ValueError(f"lacks the column {', '.join(sorted(missing))}; it has {columns}")
    by = next((name for name in ("split", "fold") if name in columns), "")
    words = SPLIT_NAMES if by == "split" else {str(k): len(SPLITS) + k for k in range(100)}
    rows, given = [], []
    for line in reader:
        *names, label, word = (
            (line.get(column) or "").strip() for column in ("image1", "image2", "label", by)
        )
        label, word = label.lower(), word.lower()
        if not all(names) or label not in LABELS or (by and word not in words):
            text = f"line {reader.line_num}: {names}, label {label!r}, {by} {word!r}; must be two"
            text += f" images, one of {', '.join(LABELS)}, and as split train, validation or test"
            raise ValueError(f"{text}, or as fold a number from 0 to 99")
        rows.append((*names, LABELS[label]))
        given.append(words.get(word))
    if by == "fold" and (len({*given}) < 3 or len({*given}) <= max(given) - len(SPLITS)):
        raise ValueError("the column fold must name three folds or more: 0, 1, 2 and so on")
    return rows, given if by else None


def read_lfw(text):
    """A list in the form of "Labeled Faces in the Wild": as `read_table`.

    A line `name n1 n2` is two images of one person, `name1 n1 name2 n2` of two; an image is
    name/name_0001.jpg. Ten blocks of equal length, the same before different, are folds.
    """
    rows = []
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if found := match_lfw(line):
            name1, n1, name2, n2 = found.groups()
            both = (name1, int(n1)), (name2 or name1, int(n2))
            rows.append((*(f"{name}/{name}_{n:04d}.jpg" for name, n in both), int(not name2)))
        elif line and not (number == 1 and LFW_FIRST_LINE.fullmatch(line)):
            must = "must be name n1 n2, or name1 n1 name2 n2"
            raise ValueError(f"line {number}: {line[:80]!r}; {must}")
    fold = np.cumsum(np.diff([label for *_, label in rows], prepend=1) == 1)
    sizes = np.bincount(fold)
    return rows, len(SPLITS) + fold if len(sizes) == 10 and np.ptp(sizes) == 0 else None


def match_lfw(line):
    """(name1, n1, name2 or None, n2) of a line of LFW's list, as a match; or None."""
    return LFW_PAIR.fullmatch(line if "\t" in line else "\t".join(line.split()))
