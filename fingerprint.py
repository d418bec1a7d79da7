"""The fingerprint of a run's files: which images it had, and in which split each of them was.

A run is resumed on the same pixels only, and evaluated with the splits of its training: files may
move, and what is added later does not turn an image of its training into one of its test. The file
`data.json.gz` in a run's folder holds this as JSON:

    images      {name: [bytes of the file, hash of the pixels, class, split]}
    pairs       [[image1, image2, label (1: same, 0: different), split]]; null unless listed

Bytes are null where there is no file, a class or split where an image or pair has none.
"""

import gzip
import hashlib
import json
import os
import sys
from collections import Counter

import images
from errors import UserError, bad_set, first_five
from listings import SPLITS
from splits import FINGERPRINT, assign_splits, read_fingerprint


def take(data):
    """The fingerprint of the set that config.data names: a dict as the module says."""
    files, assigned, pairs = images.load(data), assign_splits(data), None
    root = os.path.dirname(data.path) if data.source == "pairs" else data.path
    names, words = files.names.tolist(), (*SPLITS, None)  # None: index -1
    listed = names if files.pairs is None else files.pairs.tolist()
    splits = [None] * len(listed) if assigned is None else [words[split] for split in assigned]
    classes = [files.class_names[k] if k >= 0 else None for k in files.classes]
    if files.pairs is not None:
        both = zip(listed, splits, strict=True)
        pairs = [[names[a], names[b], label, split] for (a, b, label), split in both]
        classes = splits = [None] * len(names)
    paths = [os.path.join(root, name) for name in names]
    sizes = [os.path.getsize(path) if os.path.exists(path) else None for path in paths]
    hashes = [f"{int(number * 2**53):014x}" for number in files.split_hash.tolist()]
    rows = map(list, zip(sizes, hashes, classes, splits, strict=True))
    return {"images": dict(zip(names, rows, strict=True)), "pairs": pairs}


def write(data, workdir):
    """Writes the fingerprint into a run's folder, whole or not at all."""
    path = workdir / FINGERPRINT
    partial = path.with_suffix(".partial")
    try:
        partial.write_bytes(gzip.compress(json.dumps(take(data)).encode(), 1, mtime=0))
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


def identity(found):
    """SHA-256 of what decides a run's pairs: all of a fingerprint but the size of the files."""
    pixels = [[name, *rest] for name, (_, *rest) in found["images"].items()]
    return hashlib.sha256(json.dumps(found | {"images": pixels}).encode()).hexdigest()


def summarize(found):
    """A fingerprint in short: {"sha256", "images", "classes", "pairs", "splits"}; numbers."""
    rows = [*found["images"].values()]
    pairs = found["pairs"]
    return {
        "sha256": identity(found),
        "images": len(rows),
        "classes": len({kind for *_, kind, _ in rows} - {None}),
        "pairs": pairs and len(pairs),
        "splits": dict(Counter(split for *_, split in pairs or rows if split)),
    }


def check(data, workdir):
    """Raises UserError unless the data are those that the run in `workdir` was trained on."""
    before = read_fingerprint(workdir)
    if before is None:
        text = "has no fingerprint of its data: whether they have changed is not known"
        print(f"warning: --workdir={workdir} {text}", file=sys.stderr)
    elif changed := changes(before, take(data)):
        raise UserError(
            f"--workdir={workdir}: its data have changed since it was trained: {changed}; "
            "put them back, or name another --workdir"
        )


def changes(before, now):
    """What differs between two fingerprints but the size of files, in words; "" if nothing does."""
    if identity(before) == identity(now):
        return ""
    texts = []
    for what, old in contents(before).items():
        new = contents(now)[what]
        groups = {
            "added": [name for name in new if name not in old],
            "removed": [name for name in old if name not in new],
            "changed": [name for name in new if old.get(name, new[name]) != new[name]],
        }
        texts += [f"{what} {how}: {len(names):,} ({first_five(names)})"
                  for how, names in groups.items() if names]  # fmt: skip
        if len(groups["changed"]) == len(old) > 0:
            texts[-1] += ", all that there are: has Pillow another version?"
    return ", ".join(texts) or "another order of its images or pairs"


def contents(found):
    """What a fingerprint holds: {kind: {name: what must stay as it is}}."""
    rows, pairs = found["images"].items(), found["pairs"] or ()
    return {
        "classes": {kind: None for _, (*_, kind, _) in rows if kind is not None},
        "images": {name: rest for name, (_, *rest) in rows},
        "pairs": {f"{image1} - {image2}": rest for image1, image2, *rest in pairs},
    }


def news(data):
    """What has changed since the training of the run that data.splits_of names: list of str.

    Raises UserError where the data are quite others.
    """
    before = read_fingerprint(data.splits_of) if data.splits_of else None
    if before is None:
        return []
    now, run = take(data), data.splits_of
    old, new = before["images"], now["images"]
    if not old.keys() & new.keys():
        text = f"has none of the {len(old):,} images that {run} was trained on"
        raise bad_set(data.path, f"{text} ({first_five([*old])})")
    changed = changes(before, now)
    lines = [f"the data have changed since {run} was trained: {changed}"] if changed else []
    known = {pixels: (name, split) for name, (_, pixels, _, split) in old.items() if split}
    copies = [
        f"{name} is {known[pixels][0]} of {known[pixels][1]}"
        for name, (_, pixels, _, split) in new.items()
        if name not in old and split and known.get(pixels, ("", split))[1] != split
    ]
    if copies:
        text = f"known images added under another name, in another split: {len(copies):,}"
        lines.append(f"{text} ({first_five(copies)})")
    return lines
