"""Which images a folder or a prepared TensorFlow dataset has, and of which classes."""

import os
from collections import Counter
from functools import partial
from hashlib import blake2b
from io import BytesIO
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from decoding import suffixes
from errors import bad_set, first_five

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = dict.fromkeys(("train", "training"), 0)  # of folders, in lower case
SPLIT_NAMES |= dict.fromkeys(("validation", "valid", "val", "dev"), 1)
SPLIT_NAMES |= dict.fromkeys(("test", "testing", "eval", "evaluation"), 2)
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
    pair_splits: np.ndarray  # int8 [m], as image_splits; None where the list names none
    facts: tuple  # of str, a line each: what was understood, and what was skipped and why


def file_item(name, path):
    """The Item of a file."""
    try:
        status = os.stat(path)
        stamp = status.st_size, status.st_mtime_ns
    except OSError:  # it is missing: `images.load` names it
        stamp = (0, 0)
    return Item(name, stamp, partial(Image.open, path))


def counted(number, noun):
    """A number of things, as a text."""
    return f"{number:,} {noun}" + "s" * (number != 1)


def find_images(root):
    """The files below a folder that Pillow can read by their suffix.

    Returns (their paths from there with "/", sorted; facts about what was skipped). Links are
    followed. Names that begin with a dot are skipped: those that systems and programs write.
    """
    found, seen, again, hidden, skipped, closed = [], set(), [], [], Counter(), []
    for folder, folders, files in os.walk(root, followlinks=True, onerror=closed.append):
        below = os.path.relpath(folder, root).replace(os.sep, "/") + "/"
        if (real := os.path.realpath(folder)) in seen:  # a link, perhaps to where it is
            again.append(below[:-1])
            folders.clear()
            continue
        seen.add(real)
        hidden += [name for name in folders + files if name.startswith(".")]
        shown = [name for name in folders if not name.startswith(".")]
        folders[:] = sorted(shown, key=lambda name: (os.path.islink(f"{folder}/{name}"), name))
        for name in files:
            suffix = os.path.splitext(name)[1].lower()
            if suffix in suffixes() and not name.startswith("."):
                found.append(below.removeprefix("./") + name)
            elif not name.startswith("."):
                skipped[suffix or "without a suffix"] += 1
    facts = []
    if skipped:
        kinds = first_five([f"{count:,} {suffix}" for suffix, count in skipped.most_common()])
        facts.append(f"skipped {counted(skipped.total(), 'file')}, no images by suffix: {kinds}")
    if hidden:
        names = first_five(sorted(set(hidden)))
        facts.append(f"skipped {counted(len(hidden), 'name')} with a dot in front: {names}")
    if again:
        text = f"skipped {counted(len(again), 'link')} to folders that are listed"
        facts.append(f"{text}: {first_five(again)}")
    if closed:
        names = first_five([f"{error.filename} ({error.strerror})" for error in closed])
        facts.append(f"skipped {counted(len(closed), 'folder')} that cannot be opened: {names}")
    return sorted(found), facts


def list_folder(path, class_level=0):
    """A folder of images: Listing; raises UserError.

    The class of an image is the path of its folder from the root, or with class_level the first so
    many folders of that. Where `find_splits` finds splits, paths begin below them.
    """
    names, facts = find_images(path)
    folders = [name.split("/")[:-1] for name in names]
    image_splits, folders, more = find_splits(folders)
    classed = [i for i, parts in enumerate(folders) if parts]
    if loose := [name for name, parts in zip(names, folders, strict=True) if not parts]:
        text = f"skipped {counted(len(loose), 'image')} in no folder of a class"
        more.append(f"{text}: {first_five(loose)}")
    facts = [*more, *facts]
    if not classed:
        wanted = "wanted: class/image, of a suffix that Pillow reads, such as .png or .jpg"
        raise bad_set(path, "; ".join(["no images there", wanted, *facts]))
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
    levels = zip(*(parts for parts in folders if parts), strict=False)
    depth = len(list(takewhile(lambda level: len(set(level)) == 1, levels)))
    below = [parts[depth:] for parts in folders]
    top = sorted({parts[0] for parts in below if parts})
    found = {SPLIT_NAMES.get(name.lower()) for name in top}
    if 0 in found and len(found) > 1 and None not in found:
        splits = [SPLIT_NAMES[parts[0].lower()] if parts else 0 for parts in below]
        counts = Counter(i for i, parts in zip(splits, below, strict=True) if parts[1:])
        sizes = ", ".join(f"{counts[i]:,} {split}" for i, split in enumerate(SPLITS))
        fact = f"the folders {', '.join(top)} are the splits: {sizes}"
        return np.array(splits, np.int8), [parts[1:] for parts in below], [fact]
    alike = sorted({p for parts in folders for p in parts if p.lower() in SPLIT_NAMES})
    if len({SPLIT_NAMES[name.lower()] for name in alike}) > 1:
        text = "would be splits if they, train among them, were all folders of the first level"
        fact = f"{text}; here they are classes or parts of them: {first_five(alike)}"
        return None, folders, [fact]
    return None, folders, []


def list_classes(path, items, labels, image_splits, facts, names=None):
    """The Listing of items with the label of each; raises UserError.

    A label is the name of a class, or an index into `names`, or a number. Classes of one image are
    left out.
    """
    found, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    found = found.astype(str) if names is None else np.array(names)[found]
    if (usable := (counts > 1).sum()) < 2:
        text = f"{usable} of {len(found):,} classes have two images or more ({first_five(found)})"
        raise bad_set(path, f"{text}; pairs of the same and different take two such classes")
    if len(alone := found[counts == 1]):
        text = f"left out: {len(alone):,} of {len(found):,} classes have one image"
        facts = [*facts, f"{text}: {first_five(alone)}"]
    kept = counts[classes] > 1
    items = [item for item, keep in zip(items, kept, strict=True) if keep]
    class_names, counts = found[counts > 1].tolist(), counts[counts > 1]
    shown = first_five(class_names)
    if len(folders := sorted({os.path.dirname(name) or "." for name in class_names})) > 1:
        shown = f"{class_names[0]} ... {class_names[-1]}"
        shown += f") in {len(folders):,} folders ({first_five(folders)}"
    text = f"{len(items):,} images of {len(counts):,} classes ({shown}), "
    text += f"{counts.min():,} in the smallest class and {counts.max():,} in the largest"
    classes = np.unique(classes[kept], return_inverse=True)[1]
    image_splits = None if image_splits is None else image_splits[kept]
    facts = (text, *facts)
    return Listing(items, classes, tuple(class_names), image_splits, None, None, facts)


def list_tfds(path):
    """A prepared set of tensorflow_datasets, by name or folder, all of its splits: Listing.

    Its splits are put together. An image that is in two of them is taken once.
    """
    import tensorflow_datasets as tfds  # its data sources read array_record without TensorFlow

    try:
        make_builder = tfds.builder_from_directory if Path(path).is_dir() else tfds.builder
        builder = make_builder(path)
    except Exception as error:
        raise bad_set(path, f"no set of tensorflow_datasets: {first_line(error)}") from None
    features = builder.info.features
    if not {"image", "label"} <= set(features):
        raise bad_set(path, f"not a set of image and label: it has {', '.join(features)}")
    if features["label"].shape:
        text = f"is of shape {features['label'].shape}; wanted is one number or text an image"
        raise bad_set(path, f"its label {text}")
    encoded = [name for name in features if isinstance(features[name], tfds.features.Image)]
    decoders = {name: tfds.decode.SkipDecoding() for name in encoded}
    try:
        splits = list(builder.info.splits)
        sources = {s: builder.as_data_source(split=s, decoders=decoders) for s in splits}
        items, labels, facts = read_examples(sources)
    except Exception as error:
        remedy = f"; {PREPARE % path}" if isinstance(error, NotImplementedError) else ""
        raise bad_set(path, f"cannot be read: {first_line(error)}{remedy}") from None
    if not splits:
        raise bad_set(path, f"it is not prepared; prepare it: {PREPARE % path}")
    if not items:
        raise bad_set(path, "; ".join(["no image with a label there", *facts]))
    names = getattr(features["label"], "names", None)
    return list_classes(path, items, labels, None, facts, names)


def read_examples(sources):
    """The examples of {name of a split: data source}: (items, labels, facts). Decodes no image."""
    items, labels, seen, twice, unlabelled = [], [], {}, Counter(), 0
    for split, source in sources.items():
        for i, example in enumerate(source):
            content, label = example["image"], example["label"]
            content = content if isinstance(content, bytes) else content.tobytes()
            stamp = len(content), int.from_bytes(blake2b(content, digest_size=8).digest())
            if label == -1:
                unlabelled += 1
            elif seen.setdefault((stamp, label), split) != split:
                twice[split] += 1
            else:
                items.append(Item(f"{split} {i}", stamp, partial(open_example, source, i)))
                labels.append(label.decode() if isinstance(label, bytes) else label)
    sizes = ", ".join(f"{split} ({len(source):,})" for split, source in sources.items())
    facts = [f"the splits of the set are put together, and divided anew: {sizes}"]
    for split, count in twice.items():
        text = f"{counted(count, 'image')} of {split} that a split before has, too"
        facts.append(f"taken once: {text}")
    if unlabelled:
        facts.append(f"left out: {counted(unlabelled, 'image')} without a label (-1)")
    return items, labels, facts


def open_example(source, index):
    """The Pillow image of an example; an array where its feature is no Image."""
    image = source[index]["image"]
    if isinstance(image, bytes):
        return Image.open(BytesIO(image))
    return Image.fromarray(np.squeeze(image))


def first_line(error):
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
