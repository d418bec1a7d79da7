"""Keeps decoded images in the user's cache folder, so that the next start need not decode them.

A set is a folder: a file of raw pixels, which is mapped, and one of notes about them. It gets its
name when it is whole. A process locks the set while it decodes; others, also on other hosts that
share the disk, wait and map its file.
"""

import fcntl
import os
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from errors import UserError

MOST_BYTES = 2**33  # of all sets; those used least recently go first, and the newest always stays
folder = None  # of the sets, a Path; None: each is in a temporary folder, and not kept


def fetch(key, digest, shape, fill):
    """The images of a set, kept or new: (uint8 [shape], notes {name: array}); raises UserError.

    key names the set and digest its content, in hexadecimal digits: of a key one digest is kept.
    fill(store) makes new ones. It calls store(index, pixels) for each image, from any thread, and
    returns the notes. The pixels are in a file, not in memory, and read as they are asked for.
    """
    try:
        if folder is not None:
            return keep(key, digest, shape, fill)
    except OSError as error:
        text = f"decoded images cannot be kept in {folder}: {error.strerror or error}"
        print(f"warning: {text}; going on without", file=sys.stderr)
    try:
        with TemporaryDirectory() as new:  # what is mapped lives on without a name
            return make(Path(new), shape, fill)
    except OSError as error:
        text = f"no room for decoded images in a temporary folder: {error.strerror or error}"
        raise UserError(f"{text}; TMPDIR=FOLDER names another") from None


def keep(key, digest, shape, fill):
    """As `fetch`, in the user's cache."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    place = folder / f"{key}-{digest}"
    with open(folder / f"{key}.lock", "w") as file:  # the lock ends with the process
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another process decodes these images: waiting for it", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            found = read(place, shape)
            os.utime(place)  # when it was used
        except Exception:  # it is missing, or whatever a damaged file does
            make_room(key, MOST_BYTES - np.prod(shape, dtype=float))
            with TemporaryDirectory(prefix=f"{key}-", dir=folder) as new:
                found = make(Path(new), shape, fill)
                os.rename(new, place)
    return found


def make(place, shape, fill):
    """Writes a set into a folder, and returns it as `fetch` does."""
    each = int(np.prod(shape[1:]))
    with open(place / "pixels", "wb") as file:
        file.truncate(each * shape[0])  # those that cannot be read stay black
        # Not through a map: on a full disk it would kill the process.
        notes = fill(lambda index, pixels: os.pwrite(file.fileno(), pixels.tobytes(), index * each))
        os.fsync(file.fileno())
    np.savez(place / "notes.npz", **notes)
    return read(place, shape)


def read(place, shape):
    """A set in a folder, mapped, as `fetch` returns it; raises an Exception where it is damaged."""
    with np.load(place / "notes.npz", allow_pickle=False) as file:
        notes = dict(file)
    return np.memmap(place / "pixels", np.uint8, "r", shape=shape), notes


def make_room(key, most):
    """Deletes the sets of a key, and those used least recently until at most so many bytes stay."""
    sets = filter(Path.is_dir, folder.glob("*-*"))
    for path in sorted(sets, key=os.path.getmtime, reverse=True):
        size = sum(file.stat().st_size for file in path.iterdir())
        if path.name.startswith(f"{key}-") or (most := most - size) < 0:
            shutil.rmtree(path, ignore_errors=True)
