"""Which images a folder or a prepared TensorFlow dataset has, and of which classes."""

import os
from collections import Counter
from functools import partial
from hashlib import blake2b
from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import Image

from decoding import reason, suffixes
from errors import bad_set, first_five

SPLITS = ("train", "validation", "test")
EMBEDDINGS = "embeddings.npz"  # of gallery.py, which keeps it beside the images
NAMES = ("train training", "validation valid val dev", "test testing eval evaluation")
SPLIT_NAMES = {name: i for i, names in enumerate(NAMES) for name in names.split()}  # of folders


class Item(NamedTuple):
    """An image that is listed, and not decoded yet."""

    stamp: tuple  # (bytes, int that changes with the content: of a file its time in ns)
    open: object  # function without arguments that returns a Pillow image


class Files(NamedTuple):
    """The n images of a set; the last three fields are None until `images.load` decodes them."""

    names: np.ndarray  # str [n]: the path from the root of the set, or what else names an image
    items: list  # [n] of Item; None when they are decoded
    classes: np.ndarray  # int [n], index into `class_names`; -1 where the image is left out
    class_names: tuple  # of str; of a list of pairs every image is a class
    given: np.ndarray  # int8, the splits that the set gives its images, a list its pairs; or None
    pairs: np.ndarray  # int [m, 3], two images and a label; None unless a list of pairs
    facts: tuple  # of str, a line each: what was understood, skipped and left out, and why
    images: np.ndarray = None  # uint8 [n, height, width, channels]
    split_hash: np.ndarray = None  # float64 [n], see `images.hash_pixels`
    white: int = None  # the value that became 255 in images of over 8 bits; 0 where there are none


def file_item(path):
    """The Item of a file. One that is missing gets (0, 0): `images.load` names it."""
    try:
        status = os.stat(path)
        stamp = status.st_size, status.st_ctime_ns  # also changes with its permissions
    except OSError:
        stamp = (0, 0)
    return Item(stamp, partial(Image.open, path))


def find_images(root):
    """The files below a folder that Pillow can read by their suffix, links followed.

    Returns (their paths from there with "/", sorted; facts: how many were skipped and why).
    """
    found, seen, closed, skipped = [], set(), [], Counter()
    for folder, folders, files in os.walk(root, followlinks=True, onerror=closed.append):
        if (real := os.path.realpath(folder)) in seen:  # a link, perhaps to where it is
            skipped["links to folders that are listed"] += 1
            folders.clear()
            continue
        seen.add(real)
        below = os.path.relpath(folder, root).removeprefix(".")
        skipped["with a dot in front"] += sum(name[0] == "." for name in folders + files)
        folders[:] = sorted(name for name in folders if name[0] != ".")
        for name in (name for name in files if name[0] != "." and name != EMBEDDINGS):
            if (suffix := os.path.splitext(name)[1].lower()) in suffixes():
                found.append(os.path.join(below, name))
            else:
                skipped[suffix or "without a suffix"] += 1
    skipped["folders that cannot be opened"] = len(closed)
    kinds = [f"{count:,} {kind}" for kind, count in (+skipped).most_common()]
    facts = [f"skipped files and folders that are no images by name: {first_five(kinds)}"]
    return sorted(found), facts if kinds else []


def list_folder(path, class_level=0):
    """A folder of images: Files; raises UserError.

    The class of an image is the path of its folder from the root, or with class_level the first so
    many folders of that. Paths begin below the splits, where the first level is train and others.
    """
    names, skipped = find_images(path)
    folders, given, facts = [name.split("/")[:-1] for name in names], None, []
    meant = {parts[0]: SPLIT_NAMES.get(parts[0].lower()) for parts in folders if parts}
    found = {*meant.values()}
    alike = sorted({name for parts in folders for name in parts if name.lower() in SPLIT_NAMES})
    if 0 in found and len(found) > 1 and None not in found:
        given = np.array([meant[parts[0]] if parts else 0 for parts in folders], np.int8)
        folders = [parts[1:] for parts in folders]
        facts = [f"the folders {', '.join(sorted(meant))} are the splits"]
    elif len(alike) > 1:
        text = f"the folders {first_five(alike)} are taken for (parts of) classes: splits must be"
        facts = [f"{text} all folders of the first level"]
    labels = ["/".join(parts[: class_level or None]) or None for parts in folders]
    items = [file_item(os.path.join(path, name)) for name in names]
    return list_classes(path, names, items, labels, facts + skipped, given)


def list_classes(path, names, items, labels, facts, given=None, class_names=None):
    """The Files of named items with the label of each; classes of one image are left out.

    A label is the name of a class, an index into `class_names`, or a number; None: it has no class.
    """
    called = str if class_names is None else class_names.__getitem__
    if loose := [name for name, label in zip(names, labels, strict=True) if label is None]:
        facts = [*facts, f"left out: images in no class: {len(loose):,} ({first_five(loose)})"]
    counts = Counter(label for label in labels if label is not None)
    if single := sorted(label for label, count in counts.items() if count == 1):
        text = f"left out: {len(single):,} of {len(counts):,} classes have one image"
        facts = [*facts, f"{text}: {first_five([*map(called, single)])}"]
    found = sorted(counts.keys() - {*single})
    if len(found) < 2:
        text = f"{len(found)} of {len(counts):,} classes have two images or more; pairs take two"
        raise bad_set(path, "; ".join([f"{text} such classes (in a folder: class/image)", *facts]))
    index, sizes = {label: k for k, label in enumerate(found)}, [counts[k] for k in found]
    kept = [i for i, label in enumerate(labels) if label in index]
    items, classes = [items[i] for i in kept], np.array([index[labels[i]] for i in kept])
    found = tuple(map(called, found))
    text = f"{len(kept):,} images of {len(found):,} classes ({first_five(found)}), "
    text += f"{min(sizes):,} in the smallest class and {max(sizes):,} in the largest"
    given = None if given is None else given[kept]
    return Files(np.array(names)[kept], items, classes, found, given, None, (text, *facts))


def list_tfds(path):
    """A prepared set of tensorflow_datasets, by name or folder, all of its splits: Files."""
    import tensorflow_datasets as tfds  # its data sources read array_record without TensorFlow

    try:
        builder = (tfds.builder_from_directory if os.path.isdir(path) else tfds.builder)(path)
        features, splits = dict(builder.info.features.items()), list(builder.info.splits)
        encoded = [k for k, kind in features.items() if isinstance(kind, tfds.features.Image)]
        if "image" not in encoded or getattr(features.get("label"), "shape", None) != ():
            text = "wanted is a set of image and label, which is one number or text; it has"
            raise ValueError(f"{text} {', '.join(sorted(features))}")
        if not splits:  # as of a set in another format
            raise ValueError("it is not prepared")
        decoders = {name: tfds.decode.SkipDecoding() for name in encoded}
        sources = {s: builder.as_data_source(split=s, decoders=decoders) for s in splits}
        *listed, facts = read_examples(sources)
    except Exception as error:
        text = f"cannot be read by tensorflow_datasets: {reason(error)}"
        raise bad_set(path, f"{text}; configs/omniglot.py says how to prepare a set") from None
    class_names = getattr(features["label"], "names", None)
    return list_classes(path, *listed, facts, class_names=class_names)


def read_examples(sources):
    """The examples of {name of a split: data source}: (names, items, labels, facts)."""
    names, items, labels, first_split, again = [], [], [], {}, 0
    for split, source in sources.items():
        for i, example in enumerate(source):
            content, label = example["image"], example["label"]
            stamp = len(content), int.from_bytes(blake2b(content, digest_size=8).digest())
            if first_split.setdefault((stamp, label), split) != split:
                again += 1
                continue
            names.append(f"{split} {i}")
            items.append(Item(stamp, lambda k=source, i=i: Image.open(BytesIO(k[i]["image"]))))
            label = label.decode() if isinstance(label, bytes) else label
            labels.append(None if label == -1 else label)
    sizes = ", ".join(f"{split} ({len(source):,})" for split, source in sources.items())
    facts = [f"the splits of the set are put together, and divided anew: {sizes}"]
    facts += [f"taken once: images in two splits of the set: {again:,}"] * (again > 0)
    return names, items, labels, facts
