"""The fingerprint of a run's files: which images it had, and in which split each of them was.

A run is resumed on the same pixels only, and evaluated with the splits of its training: files may
move, and what is added later does not turn an image of its training into one of its test. The file
`data.json.gz` in a run's folder holds this as JSON; a split is null where there is none:

    images      {name: [bytes of the file or null, hash of the pixels, split]}
    classes     {name: split}; a split with data.split=classes only; {} for a list of pairs
    pairs       {"image1\\timage2": split}; null unless a list of pairs
    labels      [index of the class of each image, or 1 (same) or 0 of each pair]
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
    files, assigned = images.load(data), assign_splits(data)
    names, words = files.names.tolist(), (*SPLITS, None)  # None: index -1
    root = os.path.dirname(data.path) if data.source == "pairs" else data.path
    listed = files.names if files.pairs is None else files.pairs
    splits = [None] * len(listed) if assigned is None else [words[split] for split in assigned]
    image_splits, classes, pairs, labels = splits, {}, None, files.classes
    if files.pairs is None:
        classes = dict.fromkeys(files.class_names)
        if data.split == "classes":
            found = {*zip(files.classes.tolist(), splits, strict=True)}
            parts = Counter(k for k, _ in found)  # 1: all images of the class are in one split
            whole = ((k, split) for k, split in found if k >= 0 and parts[k] == 1)
            classes |= {files.class_names[k]: split for k, split in whole}
    else:
        image_splits, labels = [None] * len(names), files.pairs[:, 2]
        keys = (f"{names[first]}\t{names[second]}" for first, second, _ in files.pairs.tolist())
        pairs = dict(zip(keys, splits, strict=True))
    found = {
        name: [file_bytes(os.path.join(root, name)), f"{int(number * 2**53):014x}", split]
        for name, number, split in zip(names, files.split_hash.tolist(), image_splits, strict=True)
    }
    return {"images": found, "classes": classes, "pairs": pairs, "labels": labels.tolist()}


def file_bytes(path):
    """The size of a file; None where there is none, as in a prepared set."""
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return None


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
    pairs = found["pairs"]
    splits = [split for *_, split in found["images"].values()] if pairs is None else pairs.values()
    counts = Counter(split for split in splits if split)
    short = {"sha256": identity(found), "images": len(found["images"])}
    short |= {"classes": len(found["classes"]), "pairs": len(found["labels"]) if pairs else None}
    return short | {"splits": dict(counts)}


def seal(data):
    """{what: SHA-256} of a set of files, which must be alike on all hosts; {} of drawn shapes."""
    if data.source == "shapes":
        return {}
    return {"the images, their classes and their splits": identity(take(data))}


def check(data, workdir):
    """Raises UserError unless the data are those that the run in `workdir` was trained on."""
    before, now = read_fingerprint(workdir), take(data)
    if before is None:
        text = "has no fingerprint of its data: whether they have changed is not known"
        print(f"warning: --workdir={workdir} {text}", file=sys.stderr)
    elif changed := changes(before, now):
        raise UserError(
            f"--workdir={workdir}: its data have changed since it was trained: {changed}; "
            "put them back, or name another --workdir"
        )


def changes(before, now):
    """What differs between two fingerprints but the size of files, in words; "" if nothing does."""
    if identity(before) == identity(now):
        return ""
    texts = []
    for noun, kind in (("class", "classes"), ("image", "images"), ("pair", "pairs")):
        old, new = (contents(found[kind]) for found in (before, now))
        both = [name for name in new if name in old]
        same = [name for name in both if new[name][0] == old[name][0]]
        groups = {
            "added": [name for name in new if name not in old],
            "removed": [name for name in old if name not in new],
            "changed": [name for name in both if new[name][0] != old[name][0]],
            "in another split": [name for name in same if new[name][1] != old[name][1]],
        }
        texts += [counted(names, noun, what) for what, names in groups.items() if names]
        if both and not same:
            texts[-1] += ", all that there are: has Pillow another version?"
    return ", ".join(texts) or "other classes, labels or order of its images or pairs"


def contents(group):
    """{name: (what must stay as it is, split)} of a group of a fingerprint."""
    values = {name.replace("\t", " - "): value for name, value in (group or {}).items()}
    return {k: v[1:] if isinstance(v, list) else (None, v) for k, v in values.items()}


def counted(names, noun, what):
    """As "7 images added (a.png, ...)", with up to five of their names."""
    plural = "" if len(names) == 1 else "es" if noun == "class" else "s"
    return f"{len(names):,} {noun}{plural} {what} ({first_five(names)})"


def news(data):
    """What has changed since the training of the run that data.splits_of names: list of str.

    Raises UserError where the data are quite others.
    """
    before = read_fingerprint(data.splits_of) if data.splits_of else None
    if before is None:
        return []
    now, lines = take(data), []
    if not before["images"].keys() & now["images"].keys():
        text = counted(list(before["images"]), "image", f"that {data.splits_of} was trained on")
        raise bad_set(data.path, f"has none of the {text}")
    if changed := changes(before, now):
        lines.append(f"the data have changed since {data.splits_of} was trained: {changed}")
    kind = "images" if now["pairs"] is None else "pairs"
    added = {k: v for k, v in contents(now[kind]).items() if k not in contents(before[kind])}
    counts = Counter(split for _, split in added.values())
    if counts.keys() - {None}:
        found = [split for split in (*SPLITS, None) if counts[split]]
        texts = (f"{counts[split]:,} in {split or 'no split'}" for split in found)
        text = f"{kind} added: {', '.join(texts)}"
        lines.append(f"{text}; what was there before stays in the split that it had")
    known = {v[1]: (name, v[2]) for name, v in before["images"].items() if v[2]}
    copies = [
        f"{name} is {known[pixels][0]} of {known[pixels][1]}"
        for name, (_, pixels, split) in now["images"].items()
        if name not in before["images"] and split and known.get(pixels, ("", split))[1] != split
    ]
    if copies:
        text = "added under another name, that are in another split now"
        lines.append(counted(copies, "known image", text))
    return lines
