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
NAMES = ("train training", "validation valid val dev", "test testing eval evaluation")
SPLIT_NAMES = {name: i for i, names in enumerate(NAMES) for name in names.split()}  # of folders
PREPARE = (  # not `tfds build`, which needs Apache Beam
    'python -c "import tensorflow_datasets as tfds; '
    "tfds.builder('%s', file_format='array_record').download_and_prepare()\""
)


class Item(NamedTuple):
    """An image that is listed, and not decoded yet."""

    name: str  # its path from the root of the set, or what else names it in the set
    stamp: tuple  # (bytes, int that changes with the content: of a file its time in ns)
    open: object  # function without arguments that returns a Pillow image


class Listing(NamedTuple):
    """The n images of a set."""

    items: list  # [n] of Item
    classes: np.ndarray  # int [n], index into `class_names`; of a list of pairs: 0 ... n - 1
    class_names: tuple  # of str
    image_splits: np.ndarray  # int8 [n], index into SPLITS where the set says it; or None
    pairs: np.ndarray  # int [m, 3], two images and a label; None unless a list of pairs
    pair_splits: np.ndarray  # int8 [m], as image_splits, or len(SPLITS) + fold of the list; or None
    facts: tuple  # of str, a line each: what was understood, and what was skipped and why


def file_item(name, path):
    """The Item of a file."""
    try:
        status = os.stat(path)
        stamp = status.st_size, status.st_ctime_ns  # also changes with its permissions
    except OSError:  # it is missing: `images.load` names it
        stamp = (0, 0)
    return Item(name, stamp, partial(Image.open, path))


def find_images(root):
    """The files below a folder that Pillow can read by their suffix.

    Returns (their paths from there with "/", sorted; facts: how many were skipped and why). Links
    are followed. Names with a dot in front are skipped: those that systems and programs write.
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
        for name in (name for name in files if name[0] != "."):
            if (suffix := os.path.splitext(name)[1].lower()) in suffixes():
                found.append(os.path.join(below, name))
            else:
                skipped[suffix or "without a suffix"] += 1
    skipped["folders that cannot be opened"] = len(closed)
    kinds = [f"{count:,} {kind}" for kind, count in (+skipped).most_common()]
    facts = [f"skipped files and folders that are no images by name: {first_five(kinds)}"]
    return sorted(found), facts if kinds else []


def list_folder(path, class_level=0):
    """A folder of images: Listing; raises UserError.

    The class of an image is the path of its folder from the root, or with class_level the first so
    many folders of that. Where `find_splits` finds splits, paths begin below them.
    """
    names, skipped = find_images(path)
    image_splits, folders, facts = find_splits([name.split("/")[:-1] for name in names])
    if loose := [name for name, parts in zip(names, folders, strict=True) if not parts]:
        facts += [f"skipped images in no folder of a class: {len(loose):,} ({first_five(loose)})"]
    facts += skipped
    classed = [i for i, parts in enumerate(folders) if parts]
    items = [file_item(names[i], os.path.join(path, names[i])) for i in classed]
    classes = ["/".join(folders[i][: class_level or None]) for i in classed]
    if image_splits is not None:
        image_splits = image_splits[classed]
    return list_classes(path, items, classes, image_splits, facts)


def find_splits(folders):
    """The splits that folders mean: (int8 [n] or None, the parts below them [n], facts).

    `folders` are the parts of n paths. They mean splits where all names of the first level are
    names of splits, train and another; a level of one folder does not count.
    """
    inside = [parts for parts in folders if parts]
    depth = len(os.path.commonprefix(inside))  # noqa: RUF071  of lists it compares the parts
    below = [parts[depth:] for parts in folders]
    top = sorted({parts[0] for parts in below if parts})
    found = {SPLIT_NAMES.get(name.lower()) for name in top}
    if 0 in found and len(found) > 1 and None not in found:
        splits = [SPLIT_NAMES[parts[0].lower()] if parts else 0 for parts in below]
        fact = f"the folders {', '.join(top)} are the splits"
        return np.array(splits, np.int8), [parts[1:] for parts in below], [fact]
    alike = sorted({name for parts in folders for name in parts if name.lower() in SPLIT_NAMES})
    text = "are taken for (parts of) classes: splits must be all folders of the first level"
    text += "; data.class_level=1 ignores them inside of a class"
    fact = f"the folders {first_five(alike)} {text}"
    return None, folders, [fact] * (len({SPLIT_NAMES[name.lower()] for name in alike}) > 1)


def list_classes(path, items, labels, image_splits, facts, names=None):
    """The Listing of items with the label of each; raises UserError.

    A label is the name of a class, or an index into `names`, or a number. Classes of one image are
    left out.
    """
    if not items:
        text = "no images there that have a class (in a folder: class/image.png)"
        raise bad_set(path, "; ".join([text, *facts]))
    found, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    found = found.astype(str) if names is None else np.array(names)[found]
    if (usable := counts > 1).sum() < 2:
        text = f"{usable.sum()} of {len(found):,} classes have two images or more"
        raise bad_set(path, f"{text} ({first_five(found)}); pairs take two such classes")
    if not usable.all():
        text = f"left out: {(~usable).sum():,} of {len(found):,} classes have one image"
        facts = [*facts, f"{text}: {first_five(found[~usable])}"]
    kept = np.flatnonzero(usable[classes])
    found, counts, classes = found[usable], counts[usable], (usable.cumsum() - 1)[classes[kept]]
    shown = first_five(found)
    if len(folders := sorted({os.path.dirname(name) or "." for name in found})) > 1:
        first, last = first_five(found[:1]), first_five(found[-1:])
        shown = f"{first} ... {last}) in {len(folders):,} folders ({first_five(folders)}"
    text = f"{len(kept):,} images of {len(found):,} classes ({shown}), "
    text += f"{counts.min():,} in the smallest class and {counts.max():,} in the largest"
    items, found = [items[i] for i in kept], tuple(found.tolist())
    image_splits = None if image_splits is None else image_splits[kept]
    return Listing(items, classes, found, image_splits, None, None, (text, *facts))


def list_tfds(path):
    """A prepared set of tensorflow_datasets, by name or folder, all of its splits: Listing."""
    import tensorflow_datasets as tfds  # its data sources read array_record without TensorFlow

    try:
        builder = (tfds.builder_from_directory if os.path.isdir(path) else tfds.builder)(path)
        features = builder.info.features
        if not {"image", "label"} <= set(features):
            raise ValueError(f"wanted is a set of image and label; it has {', '.join(features)}")
        if shape := features["label"].shape:
            raise ValueError(f"its label is of shape {shape}; wanted is one number or text")
        if not builder.info.splits:
            raise NotImplementedError("it is not prepared")  # as of a set in another format
        encoded = [name for name in features if isinstance(features[name], tfds.features.Image)]
        decoders = {name: tfds.decode.SkipDecoding() for name in encoded}
        splits = list(builder.info.splits)
        sources = {s: builder.as_data_source(split=s, decoders=decoders) for s in splits}
        items, labels, facts = read_examples(sources)
    except Exception as error:
        remedy = f"; prepare it: {PREPARE % path}" * isinstance(error, NotImplementedError)
        text = f"cannot be read by tensorflow_datasets: {reason(error)}{remedy}"
        raise bad_set(path, text) from None
    names = getattr(features["label"], "names", None)
    return list_classes(path, items, labels, None, facts, names)


def read_examples(sources):
    """The examples of {name of a split: data source}: (items, labels, facts). Decodes no image.

    The splits are put together. An image that is in two of them is taken once.
    """
    items, labels, first_split, left_out = [], [], {}, Counter()
    for split, source in sources.items():
        for i, example in enumerate(source):
            content, label = example["image"], example["label"]
            content = content if isinstance(content, bytes) else content.tobytes()
            stamp = len(content), int.from_bytes(blake2b(content, digest_size=8).digest())
            if label == -1:
                left_out["left out: images without a label (-1)"] += 1
            elif first_split.setdefault((stamp, label), split) != split:
                left_out["taken once: images in two splits of the set"] += 1
            else:
                items.append(Item(f"{split} {i}", stamp, partial(open_example, source, i)))
                labels.append(label.decode() if isinstance(label, bytes) else label)
    sizes = ", ".join(f"{split} ({len(source):,})" for split, source in sources.items())
    facts = [f"the splits of the set are put together, and divided anew: {sizes}"]
    return items, labels, facts + [f"{why}: {count:,}" for why, count in left_out.items()]


def open_example(source, index):
    """The Pillow image of an example; an array where its feature is no Image."""
    image = source[index]["image"]
    is_file = isinstance(image, bytes)
    return Image.open(BytesIO(image)) if is_file else Image.fromarray(np.squeeze(image))
