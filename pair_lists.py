"""Lists of pairs in a file: which two images, and whether they show the same."""

import csv
from pathlib import Path

import numpy as np

from errors import bad_set
from listings import SPLITS, Listing, file_item

LABELS = {"1": 1, "same": 1, "true": 1, "0": 0, "different": 0, "false": 0}


def list_pairs(path):
    """A CSV file with columns image1, image2, label and perhaps split: Listing; raises UserError.

    Paths are relative to it.
    """
    columns, rows = read_table(path)
    names = sorted({row[column] for row in rows for column in ("image1", "image2")})
    index = {name: i for i, name in enumerate(names)}
    items = [file_item(name, Path(path).parent / name) for name in names]
    pairs = [
        (index[row["image1"]], index[row["image2"]], LABELS[row["label"].lower()]) for row in rows
    ]
    pair_splits = None
    if "split" in columns:
        pair_splits = np.array([SPLITS.index(row["split"]) for row in rows], np.int8)
    classes = np.arange(len(names))
    return Listing(items, classes, tuple(names), None, np.array(pairs, int), pair_splits, ())


def read_table(path):
    """The table of `list_pairs`: (names of its columns, {column: text} of each pair), checked."""
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
    return columns, [row for _, row in rows]
