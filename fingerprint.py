"""The fingerprint of a run's files: which images it had, and in which split each of them was.

A run is resumed on the same pixels only, and evaluated with the splits of its training. The file
`data.json.gz` in a run's folder holds this as JSON; null: there is none:

    images      {name: [class, split, hash of the pixels, a number in [0, 1)]}
    pairs       {"image1 - image2": [label, split]}, and so on where it is listed again
"""

import gzip
import hashlib
import json
import sys

import images
from errors import UserError, bad_set, first_five
from listings import SPLITS
from settings import write_file
from splits import FINGERPRINT, assign_splits, read_fingerprint, unit_names


def take(data):
    """The fingerprint of the set that config.data names: a dict as the module says."""
    files, assigned, pairs = images.load(data), assign_splits(data), {}
    names, words = unit_names(files), (*SPLITS, None)  # None: index -1
    splits = [None] * len(names) if assigned is None else [words[split] for split in assigned]
    classes = [files.class_names[k] if k >= 0 else None for k in files.classes]
    if files.pairs is not None:
        for name, label, split in zip(names, files.pairs[:, 2].tolist(), splits, strict=True):
            pairs.setdefault(name, []).extend([label, split])
        classes = splits = [None] * len(classes)
    rows = zip(files.names.tolist(), classes, splits, files.split_hash.tolist(), strict=True)
    return {"images": {name: row for name, *row in rows}, "pairs": pairs}


def write(data, workdir):
    """Writes the fingerprint into a run's folder, whole or not at all."""
    content = gzip.compress(json.dumps(take(data)).encode(), 1, mtime=0)
    write_file(workdir / FINGERPRINT, content)


def identity(found):
    """SHA-256 of a fingerprint, which decides a run's pairs."""
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def seal(data):
    """{what: SHA-256} of a set of files, which must be alike on all hosts; {} of drawn shapes."""
    what = "the images, their classes and their splits"
    return {} if data.source == "shapes" else {what: identity(take(data))}


def check(data, workdir):
    """Raises UserError unless the data are those that the run in `workdir` was trained on."""
    if read_fingerprint(workdir) is None:
        text = "has no fingerprint of its data: whether they have changed is not known"
        print(f"warning: --workdir={workdir} {text}", file=sys.stderr)
    elif changed := changes(data, workdir):
        text = f"--workdir={workdir} was trained on other data than {data.path} is now: {changed}"
        todo = "put them back, or name another --workdir (data.splits_of keeps the splits there)"
        raise UserError(f"{text}; {todo}")


def news(data):
    """What has changed since the run that data.splits_of names was trained: list of str."""
    changed = changes(data, data.splits_of) if data.splits_of else ""
    return [f"the data have changed since {data.splits_of} was trained: {changed}"] * bool(changed)


def changes(data, workdir):
    """What differs from the fingerprint of a run, in words; "" if nothing does, or it has none.

    Raises UserError where the data have no image of that run.
    """
    before = read_fingerprint(workdir)
    if before is None or identity(before) == identity(now := take(data)):
        return ""
    if not (known := before["images"]).keys() & now["images"].keys():
        text = f"has none of the {len(known):,} images that {workdir} was trained on"
        raise bad_set(data.path, f"{text} ({first_five([*known])})")
    found = {}
    for kind, old in before.items():
        new = now[kind]
        found[f"{kind} added"] = [name for name in new if name not in old]
        found[f"{kind} removed"] = [name for name in old if name not in new]
        found[f"{kind} changed"] = [k for k in new if k in old and new[k] != old[k]]
    texts = [f"{how}: {len(some):,} ({first_five(some)})" for how, some in found.items() if some]
    return ", ".join(texts) or "another order of its images or pairs"
