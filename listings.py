"""Which images a folder or a prepared TensorFlow dataset has, and of which classes."""

from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from decoding import SUFFIXES
from errors import bad_set

SPLITS = ("train", "validation", "test")
PREPARE = (  # not `tfds build`, which needs Apache Beam
    'python -c "import tensorflow_datasets as tfds; '
    "tfds.builder('%s', file_format='array_record').download_and_prepare()\""
)


class Item(NamedTuple):
    """An image that is listed, and not decoded yet."""

    name: str  # its path from the root of the set, or what else names it in the set
    stamp: tuple  # changes with its content: (bytes, time of the last change in ns) of a file
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
        status = path.stat()
        stamp = status.st_size, status.st_mtime_ns
    except OSError:  # it is missing: `images.load` names it
        stamp = (0, 0)
    return Item(name, stamp, partial(Image.open, path))


def list_folder(path):
    """A folder root/class/**/image: Listing; raises UserError."""
    by_class = {
        folder.name: sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        for folder in sorted(Path(path).iterdir())
        if folder.is_dir()
    }
    by_class = {name: paths for name, paths in by_class.items() if paths}
    if not by_class:
        wanted = f"wanted: class/image, one of {', '.join(SUFFIXES)}"
        raise bad_set(path, f"no images there; {wanted}")
    if alone := [name for name, paths in by_class.items() if len(paths) == 1]:
        text = "a pair of the same class takes two: give it another image or move it away"
        raise bad_set(path, f"class {', '.join(alone)} has one image; {text}")
    files = chain(*by_class.values())
    items = [file_item(file.relative_to(path).as_posix(), file) for file in files]
    classes = np.repeat(np.arange(len(by_class)), [len(paths) for paths in by_class.values()])
    return Listing(items, classes, tuple(by_class), None, None, None, ())


def list_tfds(path):
    """A prepared set of tensorflow_datasets, by name or folder, all of its splits: Listing."""
    import tensorflow_datasets as tfds  # its data sources read array_record without TensorFlow

    try:
        make_builder = tfds.builder_from_directory if Path(path).is_dir() else tfds.builder
        builder = make_builder(path)
    except Exception as error:
        text = str(error).strip().splitlines()[0]
        raise bad_set(path, f"no set of tensorflow_datasets: {text}") from None
    features = builder.info.features
    if not {"image", "label"} <= set(features):
        raise bad_set(path, f"not a set of image and label: it has {', '.join(features)}")
    splits = [name for name in builder.info.splits if name in ("train", "validation", "test")]
    try:
        source = builder.as_data_source(split="+".join(splits))
        labels = np.array([source[i]["label"] for i in range(len(source))])
    except Exception:
        text = f"not prepared in array_record format; prepare it: {PREPARE % path}"
        raise bad_set(path, text) from None
    found, classes = np.unique(labels, return_inverse=True)
    names = getattr(features["label"], "names", None)
    names = [names[i] for i in found] if names else found
    items = [
        Item(f"example {i}", (), lambda i=i: Image.fromarray(np.squeeze(source[i]["image"])))
        for i in range(len(source))
    ]
    return Listing(items, classes, tuple(map(str, names)), None, None, None, ())
