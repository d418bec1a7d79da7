"""Keeps decoded images in the user's cache folder, so that the next start need not decode them.

A set is one file of raw pixels, which is mapped, and one of notes about them (.npz). Both are there
whole or not at all. A process locks the set while it decodes; others, also on other hosts that
share the disk, wait and map its file. Hosts that share no disk decode the whole set each.
"""

import contextlib
import fcntl
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

MEMORY_BYTES = 2**30  # of one set, where none is kept; a larger one is in a temporary file
MOST_BYTES = 2**33  # of all sets that are kept; those that were used least recently go first
folder = None  # of the sets, a Path; None: none is kept


def keep_in(path):
    """Keeps sets in a folder from now on, or none if it is None."""
    global folder
    folder = path


def fetch(key, digest, shape, fill):
    """The images of a set, kept or new: (uint8 [shape], notes {name: array}).

    key names the set and digest its content, in hexadecimal digits: of a key one digest is kept.
    fill(store) makes new ones. It calls store(index, pixels) for each image, from any thread, and
    returns the notes.
    """
    size = int(np.prod(shape, dtype=float))
    if folder is None or not 0 < size <= MOST_BYTES:
        return make(shape, fill)
    stem = folder / f"{key}-{digest}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (found := read(stem, shape)) is None:
            with locked(folder / f"{key}.lock"):
                if (found := read(stem, shape)) is None:
                    drop(folder.glob(f"{key}-*"))
                    drop_oldest(MOST_BYTES - size)
                    found = write(stem, shape, fill)
        return found
    except OSError as error:
        text = f"decoded images cannot be kept in {folder}: {error.strerror or error}"
        print(f"warning: {text}; going on without", file=sys.stderr)
        return make(shape, fill)


def make(shape, fill):
    """Images that are not kept, in memory or in a file without a name that ends with the process"""
    if np.prod(shape, dtype=float) > MEMORY_BYTES:
        with contextlib.suppress(OSError), tempfile.TemporaryFile() as file:  # a full disk: memory
            notes = fill_file(file, shape, fill)
            return np.memmap(file, np.uint8, "r", shape=shape), notes
    images = np.zeros(shape, np.uint8)  # those that cannot be read stay black
    return images, fill(images.__setitem__)


def fill_file(file, shape, fill):
    """Writes the images of fill into a file; returns the notes; raises OSError on a full disk."""
    each = int(np.prod(shape[1:]))
    if hasattr(os, "posix_fallocate"):  # a disk that is too small shows at once
        os.posix_fallocate(file.fileno(), 0, each * shape[0])
    file.truncate(each * shape[0])
    # Not through a map: its pages would count as memory, and a full disk would kill the process.
    return fill(lambda index, pixels: os.pwrite(file.fileno(), pixels.tobytes(), index * each))


def write(stem, shape, fill):
    """Makes a set and keeps it: as `fetch` returns it; raises OSError."""
    partial = Path(f"{stem}.partial")
    try:
        with open(partial, "w+b") as file:
            notes = fill_file(file, shape, fill)
            os.fsync(file.fileno())
        partial.replace(f"{stem}.raw")
        with open(partial, "wb") as file:
            np.savez(file, **notes)
        partial.replace(f"{stem}.npz")  # last: without notes there is no set
    finally:
        partial.unlink(missing_ok=True)
    if (found := read(stem, shape)) is None:
        raise OSError("they cannot be read again")
    return found


def read(stem, shape):
    """A set that is kept, mapped, as `fetch` returns it; None where it is missing or damaged."""
    try:
        with np.load(f"{stem}.npz", allow_pickle=False) as file:
            notes = dict(file)
        os.utime(f"{stem}.raw")  # when it was used
        return np.memmap(f"{stem}.raw", np.uint8, "r", shape=shape), notes
    except Exception:  # whatever a damaged file does
        return None


@contextlib.contextmanager
def locked(path):
    """A context in which this process alone holds a lock; says so if it has to wait."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlocked when the process dies
        except BlockingIOError:
            print("another process decodes these images: waiting for it", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def drop_oldest(most):
    """Deletes the sets that were used least recently until the rest has at most so many bytes."""
    sizes = {}
    for pattern in ("*.raw", "*.partial"):  # which a killed process leaves
        for path in folder.glob(pattern):
            with contextlib.suppress(OSError):
                sizes[path] = path.stat().st_mtime_ns, path.stat().st_size
    total = sum(size for _, size in sizes.values())
    for path in sorted(sizes, key=sizes.get):
        if total > most:
            total -= sizes[path][1]
            drop([path.with_suffix(".npz"), path])


def drop(paths):
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()
