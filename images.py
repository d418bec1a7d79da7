"""Images from files: folders of classes, lists of pairs, prepared TensorFlow datasets.

Every image is decoded once, to uint8 [image_size, image_size, channels], and kept for the next
start in the user's cache: a folder for each set, with a file of raw pixels, which is mapped, and
one of notes. It gets its name when it is whole. A process locks the set while it decodes; others,
also on other hosts that share the disk, wait and map its file.
"""

import errno
import fcntl
import os
import shutil
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import PIL
from tqdm import tqdm

import decoding
from decoding import decode, form_of
from errors import UserError, first_five
from listings import file_item, find_images, list_folder, list_tfds
from pair_lists import list_pairs

PASSING = errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO  # of the machine, not of the file
LISTS = {"folder": list_folder, "pairs": list_pairs, "tfds": list_tfds}
SURVEYED = 100  # images that `resolve` looks at, at most
MOST_BYTES = 2**33  # of all kept sets; those used least recently go first, and the newest stays
cache = None  # the folder of kept sets, a Path; None: each is in a temporary folder, and not kept


def load(data):
    """The whole set that config.data names: listings.Files, remembered; raises UserError."""
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
    """The Files of a set, not decoded; remembered from `resolve` to `load_set`."""
    return LISTS[source](path, *([class_level] if source == "folder" else []))


@lru_cache(maxsize=2)
def load_set(source, path, class_level, form):
    if form.white:  # as resolved at the start of a run: the images are those that are kept
        files = load_set(source, path, class_level, form._replace(white=0))
        if files.white in (0, form.white):
            return files
    files = list_set(source, path, class_level)
    list_set.cache_clear()
    code = Path(decoding.__file__).read_bytes(), Path(__file__).read_bytes(), PIL.__version__
    key = digest(source, path, class_level, form)
    content = digest(*code, files.names.tolist(), [item.stamp for item in files.items])
    shape = (len(files.items), form.image_size, form.image_size, form.channels)
    fill = partial(decode_set, files.names, files.items, form)
    images, notes = fetch(key, content, shape, fill)
    is_read, facts = describe(files.names, notes)
    classes, facts = np.where(is_read, files.classes, -1), (*files.facts, *facts)
    files = files._replace(items=None, classes=classes, facts=facts, images=images)
    return files._replace(split_hash=notes["split_hash"], white=int(notes["white"]))


def digest(*parts):
    """A name for what the parts say, in hexadecimal digits."""
    return blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def decode_set(names, items, form, store):
    """Decodes all images, with one white: calls store(index, pixels) for each that can be read.

    Returns notes {name: array}: split_hash float64 [n]; reasons str [n], why an image cannot be
    read, or ""; white int.
    """
    n = len(items)
    split_hash, whites, reasons = np.zeros(n), np.zeros(n, int), [""] * n

    def read(index, form):
        try:
            pixels, whites[index] = decode(items[index].open, form)
        except Exception as error:  # whatever a damaged file does to its decoder
            reasons[index] = why = decoding.reason(error)
            if isinstance(error, MemoryError) or getattr(error, "errno", None) in PASSING:
                raise UserError(f"{names[index]} cannot be read now: {why}") from None
            return
        store(index, pixels)
        split_hash[index] = hash_pixels(pixels[None])[0]

    def read_all(indices, form):
        shown = {"delay": 2, "disable": None, "leave": False, "unit": " images"}  # on terminals
        with ThreadPoolExecutor(os.cpu_count()) as pool, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd but readable files
            found = pool.map(partial(read, form=form), indices)
            list(tqdm(found, "decoding", len(indices), **shown))

    read_all(range(n), form)
    white = whites.max(initial=0)
    read_all(np.flatnonzero((0 < whites) & (whites < white)).tolist(), form._replace(white=white))
    return {"split_hash": split_hash, "reasons": np.array(reasons, str), "white": white}


def describe(names, notes):
    """(Which images could be read, bool [n]; what is to be said about them, list of str)."""
    facts, white, is_read = [], int(notes["white"]), notes["reasons"] == ""
    if not is_read.all():
        both = zip(names[~is_read], notes["reasons"][~is_read], strict=True)
        text = f"{(~is_read).sum():,} of {len(names):,} images cannot be read and are left out"
        facts.append(f"{text}: {first_five([f'{name} ({why})' for name, why in both])}")
    if white:
        text = f"images of over 8 bits have values of {white.bit_length()} bits"
        facts.append(f"{text}: white is {white:,}")
    return is_read, facts


def fetch(key, content, shape, fill):
    """The images of a set, kept or new: (uint8 [shape], mapped; notes {name: array}).

    key names the set, and content what is in it: of a key one content is kept. fill(store) makes
    new ones: it calls store(index, pixels) for each image, from any thread, and returns the notes.
    """
    try:
        if cache is not None:
            return keep(key, content, shape, fill)
    except OSError as error:
        text = f"decoded images cannot be kept in {cache}: {error.strerror or error}"
        print(f"warning: {text}; going on without", file=sys.stderr)
    return make_unnamed(shape, fill)


def make_unnamed(shape, fill):
    """As `fetch`, of images that nobody keeps; raises UserError where there is no room for them."""
    try:
        with TemporaryDirectory() as new:  # what is mapped lives on without a name
            return make_set(Path(new), shape, fill)
    except OSError as error:
        text = f"no room for decoded images in a temporary folder: {error.strerror or error}"
        raise UserError(f"{text}; TMPDIR=FOLDER names another") from None


def keep(key, content, shape, fill):
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    place = cache / f"{key}-{content}"
    with open(cache / f"{key}.lock", "w") as file:  # the lock ends with the process
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another process decodes these images: waiting for it", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            found = read_set(place, shape)
            os.utime(place)  # when it was used
        except Exception:  # it is missing, or whatever a damaged file does
            make_room(key, MOST_BYTES - np.prod(shape, dtype=float))
            with TemporaryDirectory(prefix=f"{key}-", dir=cache) as new:
                found = make_set(Path(new), shape, fill)
                os.rename(new, place)
    return found


def make_set(place, shape, fill):
    each = int(np.prod(shape[1:]))
    with open(place / "pixels", "wb") as file:
        file.truncate(each * shape[0])  # those that cannot be read stay black
        # Not through a map: on a full disk it would kill the process.
        notes = fill(lambda index, pixels: os.pwrite(file.fileno(), pixels.tobytes(), index * each))
        os.fsync(file.fileno())
    np.savez(place / "notes.npz", **notes)
    return read_set(place, shape)


def read_set(place, shape):
    with np.load(place / "notes.npz", allow_pickle=False) as file:
        notes = dict(file)
    return np.memmap(place / "pixels", np.uint8, "r", shape=shape), notes


def make_room(key, most):
    """Deletes the sets of a key, and those used least recently until at most so many bytes stay."""
    sets = filter(Path.is_dir, cache.glob("*-*"))
    for path in sorted(sets, key=os.path.getmtime, reverse=True):
        size = sum(file.stat().st_size for file in path.iterdir())
        if path.name.startswith(f"{key}-") or (most := most - size) < 0:
            shutil.rmtree(path, ignore_errors=True)


def open_images(names, form):
    """The images that --images names, which can be read: (paths [n], uint8 [n, h, w, channels]).

    Two files or more, or one folder; raises UserError where fewer than two can be read.
    """
    paths, facts = list_paths(names[0]) if len(names) == 1 else (names, [])
    images = np.empty((len(paths), form.image_size, form.image_size, form.channels), np.uint8)
    items, paths = [file_item(path) for path in paths], np.array(paths, str)
    notes = decode_set(paths, items, form, images.__setitem__)
    kept, more = describe(paths, notes)
    facts += more
    if kept.sum() < 2:
        wanted = "wanted are two files, or a folder of two images or more"
        raise UserError("; ".join([f"--images={','.join(names)}: {wanted}", *facts]))
    for fact in facts:
        print(f"warning: --images: {fact}", file=sys.stderr)
    return paths[kept].tolist(), images[kept]


def list_paths(path):
    """The paths of the images of a folder, or the path of a file alone; what was skipped there."""
    if not os.path.isdir(path):
        return [path], []
    names, facts = find_images(path)
    return [os.path.join(path, name) for name in names], facts


def hash_pixels(images):
    """The split hash of each image, float64 [n] in [0, 1): equal pixels have equal ones.

    It looks like a uniform random number. Words of 8 bytes are multiplied by odd factors and summed
    modulo 2**64; the sum's bits are then mixed.
    """
    flat = images.reshape(len(images), -1)
    if odd := flat.shape[1] % 8:
        flat = np.pad(flat, ((0, 0), (0, 8 - odd)))
    words, random = flat.view("<u8"), np.random.Generator(np.random.Philox(key=0))
    factors = random.integers(2**64, size=words.shape[1], dtype=np.uint64) | np.uint64(1)
    mixed = (words * factors).sum(axis=1, dtype=np.uint64)  # modulo 2**64
    mixed ^= mixed >> np.uint64(32)
    mixed *= np.uint64(0x9E3779B97F4A7C15)
    return (mixed >> np.uint64(11)) / 2.0**53
