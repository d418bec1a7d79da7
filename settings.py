"""The config of a run: its rules, how it is saved, and how it is compared on resume."""

import fcntl
import json
import os
import re
from contextlib import contextmanager
from pathlib import Path

from ml_collections import ConfigDict, FrozenConfigDict

import decoding
import images
import shapes
from configs import default
from errors import UserError

LOCK = ".lock"  # in a run's folder

# What each key may be, whatever the others are. `rules` says what goes together.
CHOICES = {
    "data.source": ("shapes", *images.LISTS),
    "data.same_as": ("class", "identity"),
    "data.split": ("shared", "disjoint", "classes", "groups"),
    "data.turned_classes": (1, 4, 8),
    "data.channels": (0, 1, 3),
    "data.fit": decoding.FITS,
    "data.placement": ("margin", "inside"),
    "model.encoder": ("resnet18", "resnet18_small", "cnn"),
    "model.views": (1, 3),
    "model.head": ("mlp", "cosine", "euclidean"),
    "model.loss": ("pairs", "all_pairs", "supcon"),
    "model.dtype": ("auto", "float32", "bfloat16"),
    "optimizer.name": ("adam", "adamw", "sgd"),
    "eval.best": ("loss", "eer", "roc_auc", "last"),
}
TINY = 1e-9  # above 0, or below 1 by this
RANGES = {  # keys: (smallest, largest); no machine can hold more than the large ones
    "seed": (0, 2**32 - 1),
    "num_steps log_every_steps eval_every_steps": (1, 2**31 - 1),
    "batch_size steps_per_execution optimizer.nominal_batch_size data.num_identities": (1, 10**6),
    "checkpoint.keep_latest checkpoint.keep_best eval.num_pairs": (1, 10**7),
    "model.width model.head_features": (1, 2**16),
    "data.image_size data.images_per_class data.max_size": (0, 4096),
    "data.white": (0, 65535),
    "data.p_same data.p_rotation data.overlaid_classes": (0, 1),
    "augment.p_flip augment.p_erase augment.p_unchanged": (0, 1),
    "optimizer.warmup augment.shift": (0, 0.5),
    "augment.scale augment.shear augment.contrast": (0, 2),
    "augment.blur": (0, 16),
    "optimizer.momentum optimizer.beta2": (0, 1 - TINY),
    "eval.threshold": (TINY, 1 - TINY),
    "optimizer.learning_rate model.margin": (TINY, 10**9),
}
OTHERS = (0, 255)  # the range of all other numbers

# A resumed run may change these keys: the trained parameters do not depend on them.
# Of weights and images their checksums are compared instead of their paths.
NEUTRAL = ("log_every_steps", "eval_every_steps", "checkpoint.keep_latest", "checkpoint.keep_best")
NEUTRAL += ("steps_per_execution", "model.pretrained", "data.path", "data.splits_of")


def check(config, where="config."):
    """Raises UserError, with `where` before the key, for a wrong key or value."""
    values = flatten(config.to_dict())
    known = flatten(default.get_config().to_dict())
    for key in sorted(values.keys() ^ known.keys()):
        verdict = "is missing" if key in known else "is a key that nothing reads"
        raise UserError(f"{where}{key} {verdict} (configs/default.py has every key)")
    for key, value in values.items():
        if type(value) is not type(known[key]):
            raise UserError(f"{where}{key}={value!r}: must be of type {type(known[key]).__name__}")
    for key, allowed, text in rules(config):
        if not allowed:
            raise UserError(f"{where}{key}={values[key]}: must be {text}")


def rules(config):
    """Yields (key, whether its value is allowed, text that says which values are)."""
    data, optimizer, values = config.data, config.optimizer, flatten(config.to_dict())
    drawn = data.source == "shapes"
    text = f"left out: it has no effect with data.source={data.source}"
    for key, value in (default.file_keys() if drawn else default.shape_keys()).items():
        yield f"data.{key}", data[key] == value, text
    for key, allowed in CHOICES.items():
        yield key, values[key] in allowed, f"one of {allowed}"
    ranges = {key: limits for keys, limits in RANGES.items() for key in keys.split()}
    for key, value in values.items():
        if isinstance(value, int | float):
            least, most = ranges.get(key, OTHERS)
            low = "above 0" if least == TINY else f"from {least}"
            high = "below 1" if most == 1 - TINY else f"{most:,}"
            yield key, least <= value <= most, f"{low} to {high}"
    yield from (shape_rules if drawn else file_rules)(data)
    yield from batch_rules(data, config.batch_size)
    yield from model_rules(config.model, data)
    others = [value for key, value in config.augment.items() if key != "p_unchanged"]
    fits = any(others) or config.augment.p_unchanged == 0
    yield "augment.p_unchanged", fits, "0 where nothing else changes images"
    fits = optimizer.final_learning_rate <= optimizer.learning_rate
    text = f"at most optimizer.learning_rate ({optimizer.learning_rate})"
    yield "optimizer.final_learning_rate", fits, text
    steps = accumulated_steps(config)
    text = f"a multiple of the {steps} batches that optimizer.nominal_batch_size accumulates"
    yield "num_steps", config.num_steps % steps == 0, text


def model_rules(model, data):
    """The part of `rules` about config.model."""
    fits = 1 <= len(model.stage_sizes) <= 8 and whole_numbers(model.stage_sizes, 100)
    text = "one to eight whole numbers, the blocks per stage, from 1 to 100"
    yield "model.stage_sizes", fits, text
    fits = data.source != "pairs" or model.loss == "pairs"
    yield "model.loss", fits, "pairs with data.source=pairs, whose images have no classes"
    fits = model.loss != "supcon" or (model.head == "cosine" and not model.frozen)
    text = "pairs or all_pairs; supcon needs model.head=cosine and model.frozen=False"
    yield "model.loss", fits, text
    fits = not model.pretrained or model.encoder == "resnet18" or is_run(model.pretrained)
    yield "model.pretrained", fits, "empty, or the folder of a run, unless a resnet18"
    fits = not model.frozen or model.head != "euclidean"
    yield "model.frozen", fits, "False without a head that learns"


def batch_rules(data, pairs):
    """The part of `rules` about batches of P classes with K images each."""
    k = data.images_per_class
    fits = k % 2 == 0 and 2 * pairs % max(k, 1) == 0 and 2 * k <= pairs
    text = f"0, or an even divisor of the {2 * pairs} images of a batch, at most a quarter"
    yield "data.images_per_class", fits, text
    fits = k == 0 or data.source != "pairs"
    yield "data.images_per_class", fits, "0 with data.source=pairs, whose images have no classes"
    for key, none in (("turned_classes", 1), ("overlaid_classes", 0)):
        text = f"{none} without data.images_per_class, which chooses classes"
        yield f"data.{key}", k > 0 or data[key] == none, text


def file_rules(data):
    """The part of `rules` for images from files."""
    text = "the folder of your images (folder), your list (pairs), or a prepared set (tfds)"
    yield "data.path", data.path != "", text
    shared = data.split == "shared"
    yield "data.splits_of", not (shared and data.splits_of), "empty with data.split=shared"
    yield "data.folds", data.folds != 1, "0 (none), or 2 and more"
    fits = not data.folds or not (shared or data.splits_of)
    yield "data.folds", fits, "0 with data.split=shared, or with data.splits_of"
    yield "data.fold", data.fold < max(data.folds, 1), f"below data.folds={data.folds}, or 0"
    yield "data.same_as", data.same_as == "class", "class, where images come from files"
    fits = data.class_level == 0 or data.source == "folder"
    yield "data.class_level", fits, "0 unless data.source=folder"
    yield "data.white", not 0 < data.white < 255, "0 (found from the set), or from 255 to 65535"
    fits = data.source != "pairs" or data.split in ("shared", "disjoint")
    yield "data.split", fits, "shared or disjoint: a list of pairs has no classes"


def shape_rules(data):
    """The part of `rules` for drawn shapes."""
    yield "data.path", data.path == "", "empty with data.source=shapes"
    yield "data.channels", data.channels == 1, "1 with data.source=shapes"
    identity = data.same_as == "identity"
    if identity:
        fits = "blob" in data.shapes and "blob" not in data.held_out_shapes
        yield "data.shapes", fits, "with blob among them, not held out, for data.same_as=identity"
        text = "at least 6 with data.same_as=identity"
        yield "data.num_identities", data.num_identities >= 6, text
    count = len([name for name in shapes.SHAPES if name in data.shapes])
    fits = count == len(data.shapes) >= 2 - identity
    yield "data.shapes", fits, f"two or more of {(*shapes.SHAPES,)}, each once"
    blobs = ("classes",) if identity and data.shapes == ("blob",) else ()
    text = "shared or disjoint, or of blobs alone; data.held_out_shapes keeps kinds out of training"
    yield "data.split", data.split in ("shared", "disjoint", *blobs), text
    held_out = len([name for name in data.shapes if name in data.held_out_shapes])
    fits = held_out == len(data.held_out_shapes) and (held_out == 0 or 2 <= held_out <= count - 2)
    yield "data.held_out_shapes", fits, "of data.shapes two or more, and two or more not"
    whole = whole_numbers(data.min_sizes, data.max_size - 1)
    text = "one whole number of pixels per shape, from 1 to data.max_size - 1"
    yield "data.min_sizes", whole and len(data.min_sizes) == len(data.shapes), text
    yield "data.match_area", data.continuous or not data.match_area, "False unless data.continuous"
    low, high = shapes.size_range(data)
    text = "larger: no area is left that all shapes of data.min_sizes have"
    yield "data.max_size", (low < high).all(), text
    needed = 2 * shapes.margin(data) + 1
    text = f"smaller: the farthest shape needs data.image_size={needed}"
    yield "data.max_size", needed <= data.image_size, text


def whole_numbers(values, most):
    """Whether all values are whole numbers from 1 to `most`."""
    return all(isinstance(value, int) and 1 <= value <= most for value in values)


def accumulated_steps(config):
    """How many batches one update averages over: max(round(nominal / batch), 1)."""
    return max(round(config.optimizer.nominal_batch_size / config.batch_size), 1)


def check_workdir(config, workdir):
    """Raises UserError if the folder is not a run's, or its run had another config."""
    check_writable(workdir, f"--workdir={workdir}")
    if not (workdir / "config.json").exists():
        names = {path.name for path in workdir.glob("*")}
        if names - {LOCK, "config.json.partial"}:  # a start that was killed leaves these
            text = "holds files but no config.json of a run; name another one"
            raise UserError(f"--workdir={workdir}: {text}")
        return
    saved, given = flatten(load_config(workdir).to_dict()), flatten(config.to_dict())
    # What is not resolved yet agrees with any.
    unresolved = {"data.white": 0, "data.image_size": 0, "data.channels": 0, "model.dtype": "auto"}
    if config.model.pretrained:
        unresolved["model.pretrained_sha256"] = ""
    texts = [
        f"{key} is {saved[key]} there, {value} now"
        for key, value in given.items()
        if key not in NEUTRAL and value not in (saved[key], unresolved.get(key, saved[key]))
    ]
    if texts:
        text = f"--workdir={workdir} was trained with another config: {'; '.join(texts)}"
        raise UserError(f"{text}; name another --workdir or take the change back")


def check_writable(folder, option):
    """Raises UserError if a folder cannot be written to, or does not exist and cannot be made."""
    try:
        existing = next(p for p in (folder, *folder.parents) if p.exists() or p.is_symlink())
        usable = existing.is_dir() and os.access(existing, os.W_OK)
    except OSError as error:
        raise UserError(f"{option}: {error.strerror}") from None
    if not usable:
        raise UserError(f"{option}: {existing} is not a folder that can be written to")


def save_config(config, workdir):
    """Writes config.json into a run's folder."""
    write_json(config.to_dict(), workdir / "config.json")


def write_json(values, path):
    """Writes values as JSON, as `write_file` does."""
    write_file(path, (json.dumps(values, indent=2, allow_nan=False) + "\n").encode())


def write_file(path, content):
    """Writes bytes into a file, whole or not at all; makes its folder; raises UserError."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


@contextmanager
def lock(workdir):
    """A context in which this process alone holds the folder; raises UserError if it cannot."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = open(workdir / LOCK, "a")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlocked when the process dies
    except BlockingIOError:
        text = "another process is training there; name another folder"
        raise UserError(f"--workdir={workdir}: {text}") from None
    except OSError as error:
        raise UserError(f"--workdir={workdir}: {error.strerror}") from None
    with file:
        yield


def tuples(node):
    """A JSON object with tuples for lists: a config has tuples, JSON does not."""
    return {key: tuple(v) if isinstance(v, list) else v for key, v in node.items()}


def load_config(workdir):
    """The ConfigDict that a run was trained with; raises UserError if there is none."""
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(f"--workdir={workdir}: no run there (no config.json); train.py makes one")
    try:
        config = ConfigDict(json.loads(path.read_text(), object_hook=tuples))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no saved config: {error}") from None
    check(config, f"{path} (of an older program? A new --workdir trains anew): ")
    return config


def is_run(name):
    """Whether weights are those of a run: its folder, or once resolved its checkpoints/STEP."""
    is_checkpoint = re.search(r"(^|/)checkpoints/\d+$", name)
    return is_checkpoint is not None or os.path.isfile(os.path.join(name, "config.json"))


def chosen_run(workdir):
    """The folder that --workdir names; without it the run under runs/ that began last."""
    if workdir:
        return Path(workdir).absolute()
    found = [*Path("runs").absolute().glob("*/config.json")]
    if not found:
        raise UserError("no run under runs/: train one (python train.py) or name its --workdir")
    return max(found, key=lambda path: path.stat().st_mtime).parent  # each start writes it


def frozen(config):
    """A config, or a group of its keys, as a hashable copy."""
    return config if isinstance(config, FrozenConfigDict) else FrozenConfigDict(config)


def flatten(tree, prefix=""):
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    flat = {}
    for key, value in tree.items():
        nested = isinstance(value, dict)
        flat |= flatten(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return flat
