"""Images from files: folders of classes, lists of pairs, prepared TensorFlow datasets.

Every image is decoded once, turned to config.data.image_size squared and config.data.channels, and
kept: in memory up to KEEP_BYTES, beyond in a temporary file that the system pages in.
"""

import csv
import json
import os
import sys
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
KEEP_BYTES = 2**30
PREPARE = (  # not `tfds build`, which needs Apache Beam
    'python -c "import tensorflow_datasets as tfds; '
    "tfds.builder('%s', file_format='array_record').download_and_prepare()\""
)
LABELS = {"1": 1, "same": 1, "true": 1, "0": 0, "different": 0, "false": 0}


class Files(NamedTuple):
    """All images of a set."""

    images: np.ndarray  # uint8 [n, height, width, channels]
    classes: np.ndarray  # int [n], -1 where the image cannot be read
    names: tuple  # of the classes; of a list of pairs every image is a class
    position: np.ndarray  # float64 [n], `hash_pixels`
    pairs: np.ndarray  # int [m, 3], two images and a label; None unless a list of pairs
    splits: np.ndarray  # str [m], of each pair; None where the list names none


def stop(data, message):
    """Ends the program with one line."""
    raise SystemExit(f"error: data.path={data.path}: {message}")


@lru_cache(maxsize=2)
def load(data_json):
    """Reads a whole set: Files. What cannot be read is named in a warning and left out."""
    data = SimpleNamespace(**json.loads(data_json))
    items, classes, names, pairs, splits = LISTS[data.source](data)
    images = keep((len(items), data.image_size, data.image_size, data.channels))
    position, bad = np.zeros(len(items)), {}

    def read(index):
        name, open_image = items[index]
        try:
            images[index] = decode(open_image, data)
        except Exception as error:  # whatever a damaged file does to its decoder
            bad[index] = f"{name} ({type(error).__name__})"
        else:
            position[index] = hash_pixels(images[index : index + 1])[0]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(read, range(len(items))))
    if bad:
        named = ", ".join(bad[index] for index in sorted(bad)[:5])
        more = ", ..." if len(bad) > 5 else ""
        text = f"{len(bad)} of {len(items)} images cannot be read and are left out: {named}{more}"
        print(f"warning: {text}", file=sys.stderr)
        classes[list(bad)] = -1
    return Files(images, classes, names, position, pairs, splits)


def read_images(paths, data):
    """Images of files, uint8 [n, height, width, channels]; ends the program at a bad one."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd but readable files
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for path in paths:
            try:
                found.append(decode(partial(Image.open, path), data))
            except Exception as error:  # whatever a damaged file does to its decoder
                text = " ".join(str(error).split()) or type(error).__name__
                raise SystemExit(f"error: --images: {path} cannot be read: {text}") from None
    return np.stack(found)


def keep(shape):
    """An array for all images, in memory or in a file without a name that goes with the process."""
    if np.prod(shape, dtype=float) <= KEEP_BYTES:
        return np.empty(shape, np.uint8)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.uint8, "w+", shape=shape)


def decode(open_image, data):
    """One image, uint8 [image_size, image_size, channels]: upright, squeezed to a square.

    What is transparent becomes white.
    """
    with open_image() as picture:
        picture = ImageOps.exif_transpose(picture)
        if picture.mode == "F":
            raise ValueError("of real numbers, whose range is not known")
        if picture.mode.startswith("I"):  # 16 bits a pixel, which convert would clip at 255
            picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        picture = picture.convert("L" if data.channels == 1 else "RGB")
        picture = picture.resize((data.image_size,) * 2, Image.Resampling.BILINEAR)
        return np.asarray(picture).reshape(data.image_size, data.image_size, data.channels)


def list_folder(data):
    """root/class/**/image: (name, function that opens it) of each image, classes, their names."""
    root = Path(data.path)
    by_class = {
        folder.name: sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        for folder in sorted(root.iterdir())
        if folder.is_dir()
    }
    by_class = {name: paths for name, paths in by_class.items() if paths}
    if not by_class:
        raise UserError(
            f"data.path={data.path}: "
            + f"no images there; wanted: class/image, one of {', '.join(SUFFIXES)}"
        )
    if alone := [name for name, paths in by_class.items() if len(paths) == 1]:
        text = "a pair of the same class takes two: give it another image or move it away"
        raise UserError(
            f"data.path={data.path}: " + f"class {', '.join(alone)} has one image; {text}"
        )
    items = [(str(path), partial(Image.open, path)) for path in chain(*by_class.values())]
    classes = np.repeat(np.arange(len(by_class)), [len(paths) for paths in by_class.values()])
    return items, classes, tuple(by_class), None, None


def list_pairs(data):
    """A CSV file with columns image1, image2, label and perhaps split; paths are relative to it."""
    with open(data.path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, skipinitialspace=True)
        try:
            columns = reader.fieldnames or []
            rows = [(reader.line_num, {k: (v or "").strip() for k, v in row.items() if k})
                    for row in reader]  # fmt: skip
        except (csv.Error, UnicodeDecodeError, AttributeError) as error:
            raise UserError(f"data.path={data.path}: " + f"is no CSV file: {error}") from None
    if missing := {"image1", "image2", "label"} - set(columns):
        raise UserError(
            f"data.path={data.path}: "
            + f"lacks the column {', '.join(sorted(missing))}; it has {columns}"
        )
    if not rows:
        raise UserError(
            f"data.path={data.path}: " + "no pairs there, only the names of the columns"
        )
    for line, row in rows:
        if row["label"].lower() not in LABELS:
            raise UserError(
                f"data.path={data.path}: "
                + f"line {line}: label {row['label']!r}; must be one of {', '.join(LABELS)}"
            )
        if not (row["image1"] and row["image2"]):
            raise UserError(
                f"data.path={data.path}: " + f"line {line}: the name of an image is missing"
            )
        if row.get("split", "train") not in ("train", "validation", "test"):
            raise UserError(
                f"data.path={data.path}: "
                + f"line {line}: split {row['split']!r}; must be train, validation or test"
            )
    rows = [row for _, row in rows]
    names = sorted({row[column] for row in rows for column in ("image1", "image2")})
    index = {name: i for i, name in enumerate(names)}
    items = [(name, partial(Image.open, Path(data.path).parent / name)) for name in names]
    pairs = [
        (index[row["image1"]], index[row["image2"]], LABELS[row["label"].lower()]) for row in rows
    ]
    splits = np.array([row["split"] for row in rows]) if "split" in columns else None
    pairs = np.array(pairs, int).reshape(-1, 3)
    return items, np.arange(len(names)), tuple(names), pairs, splits


def list_tfds(data):
    """A prepared set of tensorflow_datasets, by name or folder: all of its splits together."""
    import tensorflow_datasets as tfds  # its data sources read array_record without TensorFlow

    try:
        folder = Path(data.path).is_dir()
        builder = (tfds.builder_from_directory if folder else tfds.builder)(data.path)
    except Exception as error:
        raise UserError(
            f"data.path={data.path}: "
            + f"no set of tensorflow_datasets: {str(error).strip().splitlines()[0]}"
        ) from None
    features = builder.info.features
    if not {"image", "label"} <= set(features):
        raise UserError(
            f"data.path={data.path}: "
            + f"not a set of image and label: it has {', '.join(features)}"
        )
    splits = [name for name in builder.info.splits if name in ("train", "validation", "test")]
    try:
        source = builder.as_data_source(split="+".join(splits))
        labels = np.array([source[i]["label"] for i in range(len(source))])
    except Exception:
        raise UserError(
            f"data.path={data.path}: "
            + f"not prepared in array_record format; prepare it: {PREPARE % data.path}"
        ) from None
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
    """A number from 0 to 1 for each image, a function of its pixels that looks like chance."""
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
