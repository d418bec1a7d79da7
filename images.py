"""Images from files: folders of classes, lists of pairs, prepared TensorFlow datasets.

Every image is decoded once, resized to image_size x image_size with `channels`, and kept: in memory
up to KEEP_BYTES, beyond in a temporary file that the system pages in.
"""

import csv
import os
import sys
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from errors import UserError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
KEEP_BYTES = 2**30
PREPARE = (  # not `tfds build`, which needs Apache Beam
    'python -c "import tensorflow_datasets as tfds; '
    "tfds.builder('%s', file_format='array_record').download_and_prepare()\""
)
LABELS = {"1": 1, "same": 1, "true": 1, "0": 0, "different": 0, "false": 0}


class Files(NamedTuple):
    """All n images of a set of files."""

    images: np.ndarray  # uint8 [n, height, width, channels]
    classes: np.ndarray  # int [n], index into `names`; -1 where the image cannot be read
    names: tuple  # of the classes; of a list of pairs every image is a class
    split_hash: np.ndarray  # float64 [n], see `hash_pixels`
    pairs: np.ndarray  # int [m, 3], two images and a label; None unless a list of pairs
    splits: np.ndarray  # str [m], of each pair; None where the list names none


@lru_cache(maxsize=2)
def load(source, path, image_size, channels):
    """Reads a whole set: Files. The arguments are keys of config.data.

    An image that cannot be read is named in a warning and left out. Raises UserError where the set
    cannot be listed. The result is remembered by these arguments: no other key of config.data has
    the images decoded again.
    """
    items, classes, names, pairs, splits = LISTS[source](path)
    images = keep((len(items), image_size, image_size, channels))
    split_hash, bad = np.zeros(len(items)), {}

    def read(index):
        name, open_image = items[index]
        try:
            images[index] = decode(open_image, image_size, channels)
        except Exception as error:  # whatever a damaged file does to its decoder
            bad[index] = f"{name} ({type(error).__name__})"
        else:
            split_hash[index] = hash_pixels(images[index : index + 1])[0]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(read, range(len(items))))
    if bad:
        named = ", ".join(bad[index] for index in sorted(bad)[:5])
        more = ", ..." if len(bad) > 5 else ""
        text = f"{len(bad)} of {len(items)} images cannot be read and are left out: {named}{more}"
        print(f"warning: {text}", file=sys.stderr)
        classes[list(bad)] = -1
    return Files(images, classes, names, split_hash, pairs, splits)


def open_images(names, image_size, channels):
    """The images that --images names: two files or more, or one folder.

    Returns (paths [n], uint8 [n, image_size, image_size, channels]). A file of a folder that cannot
    be read is left out with a warning. Raises UserError where fewer than two images are left.
    """
    paths, found = [Path(name) for name in names], []
    if missing := [str(path) for path in paths if not path.exists()]:
        raise UserError(f"--images: no such file or folder: {', '.join(missing)}")
    if len(paths) == 1 and paths[0].is_dir():
        for path in sorted(p for p in paths[0].rglob("*") if p.suffix.lower() in SUFFIXES):
            try:
                found.append((str(path), read_image(path, image_size, channels)))
            except UserError as error:
                print(f"warning: left out: {error}", file=sys.stderr)
    elif len(paths) > 1:
        found = [(str(path), read_image(path, image_size, channels)) for path in paths]
    if len(found) < 2:
        wanted = "wanted are two files, or a folder of two images or more"
        raise UserError(f"--images={','.join(names)}: {wanted}")
    return [name for name, _ in found], np.stack([image for _, image in found])


def read_image(path, image_size, channels):
    """The image that --images names, uint8 [image_size, image_size, channels]; or UserError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd but readable files
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return decode(partial(Image.open, path), image_size, channels)
        except Exception as error:  # whatever a damaged file does to its decoder
            text = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"--images: {path} cannot be read: {text}") from None


def keep(shape):
    """An array for all images, in memory or in a file without a name that goes with the process."""
    if np.prod(shape, dtype=float) <= KEEP_BYTES:
        return np.empty(shape, np.uint8)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.uint8, "w+", shape=shape)


def decode(open_image, image_size, channels):
    """One image, uint8 [image_size, image_size, channels]: upright, squeezed to a square.

    `open_image` is a function without arguments that returns a Pillow image. What is transparent
    becomes white.
    """
    with open_image() as image:
        image = ImageOps.exif_transpose(image)
        if image.mode == "F":
            raise ValueError("of real numbers, whose range is not known")
        if image.mode.startswith("I"):  # 16 bits a pixel, which convert would clip at 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("L" if channels == 1 else "RGB")
        image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
        return np.asarray(image).reshape(image_size, image_size, channels)


def bad_set(path, message):
    """The UserError to raise about the set at data.path."""
    return UserError(f"data.path={path}: {message}")


def list_folder(path):
    """A folder root/class/**/image.

    As every function of LISTS it returns what `Files` is made of: items, of each image (name,
    function that opens the Pillow image); classes; their names; pairs; splits.
    """
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
    items = [(str(file), partial(Image.open, file)) for file in chain(*by_class.values())]
    classes = np.repeat(np.arange(len(by_class)), [len(paths) for paths in by_class.values()])
    return items, classes, tuple(by_class), None, None


def list_pairs(path):
    """A CSV file with columns image1, image2, label and perhaps split; paths are relative to it."""
    columns, rows = read_table(path)
    names = sorted({row[column] for row in rows for column in ("image1", "image2")})
    index = {name: i for i, name in enumerate(names)}
    items = [(name, partial(Image.open, Path(path).parent / name)) for name in names]
    pairs = [
        (index[row["image1"]], index[row["image2"]], LABELS[row["label"].lower()]) for row in rows
    ]
    splits = np.array([row["split"] for row in rows]) if "split" in columns else None
    return items, np.arange(len(names)), tuple(names), np.array(pairs, int), splits


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
        if row.get("split", "train") not in ("train", "validation", "test"):
            text = f"split {row['split']!r}; must be train, validation or test"
            raise bad_set(path, f"line {line}: {text}")
    return columns, [row for _, row in rows]


def list_tfds(path):
    """A prepared set of tensorflow_datasets, by name or folder: all of its splits together."""
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
        (f"example {i}", lambda i=i: Image.fromarray(np.squeeze(source[i]["image"])))
        for i in range(len(source))
    ]
    return items, classes, tuple(map(str, names)), None, None


LISTS = {"folder": list_folder, "pairs": list_pairs, "tfds": list_tfds}


def hash_pixels(images):
    """The split hash of each image, float64 [n] in [0, 1): equal pixels have equal ones.

    It looks like a uniform random number, and decides which split an image belongs to. Words of 8
    bytes are multiplied by odd factors and summed modulo 2**64; the sum's bits are then mixed.
    """
    flat = images.reshape(len(images), -1)
    if odd := flat.shape[1] % 8:
        flat = np.pad(flat, ((0, 0), (0, 8 - odd)))
    words = flat.view("<u8")
    mixed = (words * odd_factors(words.shape[1])).sum(axis=1, dtype=np.uint64)  # modulo 2**64
    mixed ^= mixed >> np.uint64(32)
    mixed *= np.uint64(0x9E3779B97F4A7C15)
    return (mixed >> np.uint64(11)) / 2.0**53


@lru_cache
def odd_factors(count):
    random = np.random.Generator(np.random.Philox(key=0))
    return random.integers(2**64, size=count, dtype=np.uint64) | np.uint64(1)
