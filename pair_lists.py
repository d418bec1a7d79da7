"""Lists of pairs in a file: which two images, and whether they show the same."""

import csv
import io
import re
from pathlib import Path

import numpy as np

from errors import bad_set
from listings import MOVED, SPLIT_NAMES, SPLITS, Files, file_item

LABELS = dict.fromkeys(("1", "1.0", "same", "true"), 1)
LABELS |= dict.fromkeys(("0", "0.0", "different", "false"), 0)
LFW_FIRST_LINE = re.compile(r"\d+([ \t]+\d+)?\s*\n")  # folds, and pairs of each kind


def list_pairs(path):
    """A list of pairs: Files, whose `given` is of pairs, len(SPLITS) + i for fold i.

    Raises UserError. Paths are relative to the list; a backslash is taken for a slash.
    """
    root = Path(path).parent
    try:
        text = Path(path).read_text("utf-8-sig")
        rows, given = (read_lfw if LFW_FIRST_LINE.match(text) else read_table)(text)
    except OSError:
        raise bad_set(path, f"is no CSV file or pairs.txt; {MOVED}") from None
    except (ValueError, csv.Error) as error:  # also of bytes that are no text
        raise bad_set(path, error) from None
    if not rows:
        raise bad_set(path, "no pairs there")
    rows = [(*(name.replace("\\", "/") for name in both), label) for *both, label in rows]
    names = sorted({name for row in rows for name in row[:2]})
    items = [file_item(root / name) for name in names]
    if all(item.stamp == (0, 0) for item in items):
        where = f"paths are relative to {root.absolute()}; the first is {rows[0][0]}"
        raise bad_set(path, f"none of {len(names):,} images found; {where}")
    index = {name: i for i, name in enumerate(names)}
    pairs = np.array([(index[name1], index[name2], label) for name1, name2, label in rows])
    same = pairs[:, 2].sum()
    fact = f"{len(rows):,} pairs of {len(names):,} images, {same:,} of them the same"
    given = None if given is None else np.array(given, np.int8)
    return Files(np.array(names), items, np.arange(len(names)), (*names,), given, pairs, (fact,))


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
    name/name_0001.jpg. A first line of two numbers says how many folds follow, and how many pairs
    of each kind are in a fold.
    """
    first, *lines = text.splitlines()
    rows, sizes = [], [int(number) for number in first.split()]
    for number, line in enumerate(lines, 2):
        words = line.strip().split("\t" if "\t" in line else None)
        if len(words) == 3:
            words.insert(2, words[0])
        if words and not (len(words) == 4 and words[1].isdecimal() and words[3].isdecimal()):
            must = "must be name n1 n2, or name1 n1 name2 n2"
            raise ValueError(f"line {number}: {line[:80]!r}; {must}")
        if words:
            both = (f"{words[i]}/{words[i]}_{int(words[i + 1]):04d}.jpg" for i in (0, 2))
            rows.append((*both, int(words[0] == words[2])))
    if len(sizes) == 1:
        return rows, None
    each = max(2 * sizes[1], len(rows) // 100 + 1)  # pairs of a fold, of which there are 100 at most
    return rows, [len(SPLITS) + i // each for i in range(len(rows))]
