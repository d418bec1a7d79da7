"""Images from files: folders of classes, lists of pairs, prepared TensorFlow datasets.

Every image is decoded once, to uint8 [image_size, image_size, channels], and kept: in memory up to
KEEP_BYTES, beyond in a temporary file that the system pages in.
"""

import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from decoding import SUFFIXES, decode, form_of, read_image
from errors import UserError
from listings import list_folder, list_tfds
from pair_lists import list_pairs

KEEP_BYTES = 2**30
LISTS = {"folder": list_folder, "pairs": list_pairs, "tfds": list_tfds}


class Files(NamedTuple):
    """All n images of a set of files."""

    images: np.ndarray  # uint8 [n, height, width, channels]
    names: np.ndarray  # str [n], of the images: see listings.Item
    classes: np.ndarray  # int [n], index into `class_names`; -1 where the image is left out
    class_names: tuple  # of str; of a list of pairs every image is a class
    split_hash: np.ndarray  # float64 [n], see `hash_pixels`
    image_splits: np.ndarray  # int8 [n], see listings.Listing; or None
    pairs: np.ndarray  # int [m, 3], two images and a label; None unless a list of pairs
    pair_splits: np.ndarray  # int8 [m], see listings.Listing; or None
    facts: tuple  # of str, a line each: what was understood, skipped and left out, and why


def load(data):
    """Reads the whole set that config.data names: Files.

    An image that cannot be read is named in a warning and left out. Raises UserError where the set
    cannot be listed. The result is remembered by the keys that it depends on: no other key of
    config.data has the images decoded again.
    """
    return load_set(data.source, data.path, form_of(data))


@lru_cache(maxsize=2)
def load_set(source, path, form):
    listing = LISTS[source](path)
    items, classes = listing.items, listing.classes.copy()
    images = keep((len(items), form.image_size, form.image_size, form.channels))
    split_hash, bad = np.zeros(len(items)), {}

    def read(index):
        try:
            images[index] = decode(items[index].open, form)
        except Exception as error:  # whatever a damaged file does to its decoder
            bad[index] = f"{items[index].name} ({type(error).__name__})"
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
    names = np.array([item.name for item in items])
    found = images, names, classes, listing.class_names, split_hash
    return Files(*found, listing.image_splits, listing.pairs, listing.pair_splits, listing.facts)


def open_images(names, form):
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
                found.append((str(path), read_image(path, form)))
            except UserError as error:
                print(f"warning: left out: {error}", file=sys.stderr)
    elif len(paths) > 1:
        found = [(str(path), read_image(path, form)) for path in paths]
    if len(found) < 2:
        wanted = "wanted are two files, or a folder of two images or more"
        raise UserError(f"--images={','.join(names)}: {wanted}")
    return [name for name, _ in found], np.stack([image for _, image in found])


def keep(shape):
    """An array for all images, in memory or in a file without a name that goes with the process."""
    if np.prod(shape, dtype=float) <= KEEP_BYTES:
        return np.empty(shape, np.uint8)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.uint8, "w+", shape=shape)


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
