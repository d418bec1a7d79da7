"""Settings of the process: JAX's compilation cache, freed memory, versions of the packages."""

import ctypes
import gc
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import warnings
import zlib
from functools import partial
from pathlib import Path

import jax
from absl import flags

import images
from errors import UserError
from settings import check_writable, write_json

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


def define_flags():
    text = "Folder of compiled programs and decoded images for the next start; --cache= keeps none."
    flags.DEFINE_string("cache", None, text)


def prepare(cache):
    """Sets up JAX and Python for a program: the log, --cache, the garbage collector."""
    # XLA takes its own tuning flag prefer-no-gather for an instruction that the processor lacks,
    # and would log a page for each program it loads (github.com/openxla/xla/issues/44565).
    # A level that the user sets stays: where there is none, JAX has set TensorFlow's to 1.
    if "JAX_LOGGING_LEVEL" not in os.environ and os.environ["TF_CPP_MIN_LOG_LEVEL"] == "1":
        jax.config.update("jax_logging_level", "CRITICAL")
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # TensorFlow logs pages, too
    base = cache_base(cache)
    images.cache = base and base / "images"
    if base is None:
        jax.config.update("jax_enable_compilation_cache", False)
    elif cache is not None or "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # JAX reads that
        jax.config.update("jax_compilation_cache_dir", str(base / machine()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        warnings.showwarning = partial(empty_cache, base / machine(), warnings.showwarning)
    gc.set_threshold(100_000)  # tracing makes a million objects: collecting took 10 %


def cache_base(option):
    """The folder that --cache names, or without it (None) one in the user's cache folder.

    None where nothing is kept: with "", or where the user's cache folder cannot be written to.
    """
    if option is not None:
        check_writable(Path(option).absolute(), f"--cache={option}")
        return Path(option).absolute() if option else None
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute()
        check_writable(base, "cache")
    except (RuntimeError, UserError):  # no home folder, or not writable
        return None
    return base / "same-or-different"


def machine():
    """A name for what a compiled program fits: version of jaxlib, cores, instruction set."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else platform.processor()
    known = sorted({line for line in text.splitlines() if re.match("flags|Features", line)})
    version = importlib.metadata.version("jaxlib")
    return f"jaxlib-{version}-{cores}-cores-{zlib.crc32(repr(known or text).encode()):08x}"


def empty_cache(folder, show, message, *where, **options):
    """Shows a warning; if it is about the compilation cache, empties that.

    A full disk or a killed process leaves a partial file there, which no later start can read.
    """
    show(message, *where, **options)
    if "persistent compilation cache" in str(message):
        for path in folder.glob("*-cache"):  # the names that JAX gives
            path.unlink(missing_ok=True)
        print(f"warning: emptied {folder}", file=sys.stderr)


def keep_freed_memory():
    """Makes glibc keep the memory that a training step frees, for the next step.

    Otherwise the kernel clears new pages in each step. ResNet18 at batch 32 has 140 MB of
    temporaries: 36,000 page faults, a fifth of the step's time on two cores.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_ARENA_MAX, 1)


def versions():
    """Versions and hardware of this process: {name: text}."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    devices = jax.devices()
    git = ("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty")
    found = subprocess.run(git, capture_output=True, text=True) if shutil.which("git") else None
    return {
        "commit": found.stdout.strip() if found and found.returncode == 0 else "unknown",
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    }


def read_versions(workdir):
    """A run's {first step as a text: versions from there on}; {} where the file is unreadable."""
    try:
        return json.loads((workdir / "versions.json").read_text())
    except (OSError, ValueError):
        return {}


def last_versions(workdir):
    """The versions that trained a run last, or the present ones where those are unknown."""
    return [versions(), *read_versions(workdir).values()][-1]


def note_versions(workdir, step):
    """Writes the versions that train a run from this step on; warns if they changed."""
    kept, now = read_versions(workdir), versions()
    before = [now, *kept.values()][-1]
    changed = [f"{k} was {before[k]}, is {v}" for k, v in now.items() if before.get(k, v) != v]
    if changed:
        text = "; ".join(changed)
        print(f"warning: begun with other versions, the bits may differ: {text}", file=sys.stderr)
    if changed or not kept:
        write_json(kept | {str(step): now}, workdir / "versions.json")
