"""Images from files: folders of classes, lists of pairs, prepared TensorFlow datasets.

Every image is decoded once, to uint8 [image_size, image_size, channels], and kept for the next
start (`kept_images`). Images of over 8 bits have one white for a whole set (`decoding`).
"""

import errno
import os
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from tqdm import tqdm

import decoding
import kept_images
from decoding import decode, form_of
from errors import UserError, first_five
from listings import file_item, find_images, list_folder, list_tfds
from pair_lists import list_pairs

PASSING = errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO  # of the machine, not of the file
LISTS = {"folder": list_folder, "pairs": list_pairs, "tfds": list_tfds}
SURVEYED = 100  # images that `resolve` looks at, at most


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
    white: int = 0  # the value that became 255 in images of over 8 bits; 0 where there are none


def load(data):
    """Reads the whole set that config.data names: Files; raises UserError where there is none.

    An image that cannot be read is left out, and named in the facts. The result is remembered by
    the keys that it depends on: no other key of config.data has the images decoded again.
    """
    return load_set(data.source, data.path, data.class_level, form_of(data))


def resolve(data):
    """Sets what config.data leaves to the images, as 0: image_size, channels, white."""
    if not (data.image_size and data.channels):
        items = list_set(data.source, data.path, data.class_level).items
        chosen = items[:: max(1, len(items) // SURVEYED)]
        size, channels = decoding.natural_form([item.open for item in chosen])
        data.image_size, data.channels = data.image_size or size, data.channels or channels
    data.white = data.white or load(data).white


@lru_cache(maxsize=1)
def list_set(source, path, class_level):
    """The Listing of a set; remembered from `resolve` to `load_set`, which then forgets it."""
    return LISTS[source](path, *([class_level] if source == "folder" else []))


@lru_cache(maxsize=2)
def load_set(source, path, class_level, form):
    if form.white:  # as resolved at the start of a run: the images are those that are kept
        files = load_set(source, path, class_level, form._replace(white=0))
        if files.white in (0, form.white):
            return files
    items, classes, class_names, *given, facts = list_set(source, path, class_level)
    list_set.cache_clear()
    code = Path(decoding.__file__).read_bytes(), Path(__file__).read_bytes(), PIL.__version__
    key = digest(source, path, class_level, form)
    content = digest(*code, [(item.name, item.stamp) for item in items])
    shape = (len(items), form.image_size, form.image_size, form.channels)
    images, notes = kept_images.fetch(key, content, shape, partial(decode_set, items, form))
    names, white = np.array([item.name for item in items]), int(notes["white"])
    classes, facts = classes.copy(), (*facts, *describe(names, notes))
    classes[notes["left_out"]] = -1
    return Files(images, names, classes, class_names, notes["split_hash"], *given, facts, white)


def digest(*parts):
    """A name for what the parts say, in hexadecimal digits."""
    return blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def decode_set(items, form, store):
    """Decodes all images, with one white: calls store(index, pixels) for each that can be read.

    Returns notes {name: array}: split_hash float64 [n], plain bool [n] of those of one colour,
    left_out int [k] and reasons str [k] of those that cannot be read, and white int.
    """
    n, bad = len(items), {}
    split_hash, whites, plain = np.zeros(n), np.zeros(n, int), np.zeros(n, bool)

    def read(index, form):
        try:
            pixels, whites[index] = decode(items[index].open, form)
        except Exception as error:  # whatever a damaged file does to its decoder
            if isinstance(error, MemoryError) or getattr(error, "errno", None) in PASSING:
                text = f"{items[index].name} cannot be read now: {decoding.reason(error)}"
                raise UserError(text) from None
            bad[index] = decoding.reason(error)
            return
        store(index, pixels)
        split_hash[index] = hash_pixels(pixels[None])[0]
        plain[index] = not np.ptp(pixels, axis=(0, 1)).any()

    def read_all(indices, form):
        shown = {"delay": 2, "disable": None, "leave": False, "unit": " images"}  # on terminals
        with ThreadPoolExecutor(os.cpu_count()) as pool, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd but readable files
            found = pool.map(partial(read, form=form), indices)
            list(tqdm(found, "decoding", len(indices), **shown))

    read_all(range(n), form)
    white = whites.max(initial=0)
    read_all(np.flatnonzero((0 < whites) & (whites < white)).tolist(), form._replace(white=white))
    notes = {"split_hash": split_hash, "plain": plain, "white": white}
    notes["left_out"] = np.array(sorted(bad), int)
    return notes | {"reasons": np.array([bad[index] for index in sorted(bad)], str)}


def describe(names, notes):
    """What is to be said about decoded images: list of str."""
    facts, white, plain = [], int(notes["white"]), names[notes["plain"]]
    both = zip(names[notes["left_out"]], notes["reasons"], strict=True)
    if bad := [f"{name} ({why})" for name, why in both]:
        text = f"{len(bad):,} of {len(names):,} images cannot be read and are left out"
        facts.append(f"{text}: {first_five(bad)}")
    if len(plain):
        facts.append(f"images of a single colour: {len(plain):,} ({first_five(plain)})")
    if white:
        bits = f"values of {white.bit_length()} bits: white is {white:,}"
        facts.append(f"images of over 8 bits have {bits}")
    return facts


def open_images(names, form):
    """The images that --images names: two files or more, or one folder.

    Returns (paths [n], uint8 [n, image_size, image_size, channels]). A file that cannot be read is
    left out with a warning. Raises UserError where fewer than two images are left.
    """
    paths, facts = [Path(name) for name in names], []
    if missing := [str(path) for path in paths if not os.path.exists(path)]:
        raise UserError(f"--images: no such file or folder: {', '.join(missing)}")
    if len(paths) == 1 and paths[0].is_dir():
        found, facts = find_images(paths[0])
        paths = [paths[0] / name for name in found]
    images = np.empty((len(paths), form.image_size, form.image_size, form.channels), np.uint8)
    items, texts = [file_item(str(path), path) for path in paths], np.array(paths, str)
    notes = decode_set(items, form, images.__setitem__)
    facts += describe(texts, notes)
    kept = np.delete(np.arange(len(paths)), notes["left_out"])
    if len(kept) < 2:
        wanted = "wanted are two files, or a folder of two images or more"
        raise UserError("; ".join([f"--images={','.join(names)}: {wanted}", *facts]))
    for fact in facts:
        print(f"warning: --images: {fact}", file=sys.stderr)
    return texts[kept].tolist(), images[kept]


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
