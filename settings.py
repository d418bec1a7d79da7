"""The config of a run: its rules, how it is saved, and how it is compared on resume."""

import fcntl
import json
import math
import os
import platform
from contextlib import contextmanager, suppress
from pathlib import Path

from ml_collections import ConfigDict, FrozenConfigDict

import decoding
import images
import shapes
from configs import default
from errors import UserError

PARTIAL, LOCK = "config.json.partial", ".lock"  # files of a run's folder

# The largest value of each of these keys; the smallest is 1. No machine can hold more.
MOST = dict.fromkeys(("num_steps", "log_every_steps", "eval_every_steps"), 2**31 - 1)
MOST |= {"steps_per_execution": 1000}
MOST |= dict.fromkeys(("batch_size", "optimizer.nominal_batch_size"), 2**20)
MOST |= dict.fromkeys(("checkpoint.keep_latest", "checkpoint.keep_best"), 2**20)
MOST |= {"eval.num_pairs": 10**7, "data.num_identities": 10**6, "data.image_size": 4096}
MOST |= {"model.width": 4096, "model.head_features": 2**16}

# A resumed run may change these keys: the trained parameters do not depend on them.
NEUTRAL = ("log_every_steps", "eval_every_steps", "checkpoint.keep_latest", "checkpoint.keep_best")
NEUTRAL += ("steps_per_execution", "model.pretrained")  # the weights' path, not their checksum
NEUTRAL += ("data.path", "data.splits_of")  # the run's fingerprint compares the data themselves


def named_workdir(name):
    """The folder that --workdir names, as an absolute Path."""
    if not name.strip():
        raise UserError("--workdir= is empty: name a folder or leave the option out")
    return Path(name).absolute()


def check(config, where="config."):
    """Raises UserError if a key is not in configs/default.py or missing, or a value is not allowed.

    where: the text before the key in the message.
    """
    values = flatten(config.to_dict())
    known = flatten(default.get_config().to_dict())
    for key in sorted(values.keys() ^ known.keys()):
        verdict = "is missing" if key in known else "is a key that nothing reads"
        raise UserError(f"{where}{key} {verdict} (configs/default.py has every key)")
    for key, value in values.items():
        if type(value) is not type(known[key]):
            raise UserError(f"{where}{key}={value!r}: must be of type {type(known[key]).__name__}")
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(n, (int, float)) and not 0 <= n < math.inf for n in numbers):
            raise UserError(f"{where}{key}={value}: numbers must be finite and not negative")
    for key, allowed, text in rules(config):
        if not allowed:
            raise UserError(f"{where}{key}={values[key]}: must be {text}")


def rules(config):
    """Yields (key, whether its value is allowed, text that says which values are)."""
    data, optimizer = config.data, config.optimizer
    yield "seed", config.seed < 2**32, "below 2**32"
    values = flatten(config.to_dict())
    found = () if data.image_size or data.source == "shapes" else ("data.image_size",)
    for key, most in MOST.items():
        yield key, 1 <= values[key] <= most or key in found, f"from 1 to {most:,}"
    yield from data_rules(data)
    yield from batch_rules(data, config.batch_size)
    yield from augment_rules(config.augment, data)
    yield from model_rules(config.model, data)
    yield "optimizer.name", optimizer.name in ("adam", "adamw", "sgd"), "adam, adamw or sgd"
    yield "optimizer.learning_rate", optimizer.learning_rate > 0, "above 0"
    text = f"at most optimizer.learning_rate ({optimizer.learning_rate})"
    fits = optimizer.final_learning_rate <= optimizer.learning_rate
    yield "optimizer.final_learning_rate", fits, text
    for key in ("momentum", "beta2"):
        yield f"optimizer.{key}", optimizer[key] < 1, "below 1"
    steps = accumulated_steps(config)
    text = f"a multiple of the {steps} batches that optimizer.nominal_batch_size accumulates"
    yield "num_steps", config.num_steps % steps == 0, text
    best = ("loss", "eer", "roc_auc")
    yield "eval.best", config.eval.best in best, f"one of {best}"
    yield "optimizer.warmup", optimizer.warmup <= 0.5, "from 0 to 0.5"
    yield "eval.threshold", 0 < config.eval.threshold < 1, "between 0 and 1"


def model_rules(model, data):
    """The part of `rules` about config.model."""
    stages = model.stage_sizes
    whole = all(isinstance(s, int) and 1 <= s <= 100 for s in stages)
    text = "one to eight whole numbers, the blocks per stage, from 1 to 100"
    yield "model.stage_sizes", 1 <= len(stages) <= 8 and whole, text
    choices = {
        "encoder": ("resnet18", "resnet18_small", "cnn"),
        "head": ("mlp", "cosine", "euclidean"),
        "loss": ("pairs", "all_pairs", "multi_similarity", "supcon"),
    }
    for key, allowed in choices.items():
        yield f"model.{key}", model[key] in allowed, f"one of {allowed}"
    fits = data.source != "pairs" and data.same_as != "pixels"
    text = "pairs unless of classes (not of pairs that are given, nor pixels)"
    yield "model.loss", fits or model.loss == "pairs", text
    fits = model.head == "cosine" and not model.frozen
    text = "pairs or all_pairs unless model.head=cosine, with an encoder that is trained"
    yield "model.loss", fits or model.loss in ("pairs", "all_pairs"), text
    fits = model.encoder == "resnet18"
    yield "model.pretrained", fits or not model.pretrained, "empty unless a resnet18"
    learns = model.head != "euclidean"
    yield "model.frozen", learns or not model.frozen, "False without a head that learns"
    yield "model.margin", model.margin > 0, "above 0"
    dtypes = ("auto", "float32", "bfloat16")
    yield "model.dtype", model.dtype in dtypes, f"one of {dtypes}"


def data_rules(data):
    """The part of `rules` about config.data."""
    sources = ("shapes", *images.LISTS)
    yield "data.source", data.source in sources, f"one of {sources}"
    yield "data.p_same", data.p_same <= 1, "from 0 to 1"
    splits = ("shared", "disjoint", "classes", "groups")
    yield "data.split", data.split in splits, f"one of {splits}"
    drawn = data.source == "shapes"
    yield from (shape_rules if drawn else file_rules)(data)
    text = f"left out: it has no effect with data.source={data.source}"
    for key, value in (default.file_keys() if drawn else default.shape_keys()).items():
        yield f"data.{key}", data[key] == value, text


def batch_rules(data, pairs):
    """The part of `rules` about batches of P classes with K images each."""
    k, of_classes = data.images_per_class, data.source != "pairs" and data.same_as != "pixels"
    fits = k % 2 == 0 and 2 * pairs % max(k, 1) == 0 and k <= pairs
    text = f"0, or an even divisor of the {2 * pairs} images of a batch, at most half of them"
    yield "data.images_per_class", fits, text
    text = "0 unless of classes (not of pairs that are given, nor pixels)"
    yield "data.images_per_class", of_classes or not k, text
    yield "data.turned_classes", data.turned_classes in (1, 4, 8), "1, 4 or 8"
    fits = data.turned_classes == 1 or k > 0
    yield "data.turned_classes", fits, "1 without data.images_per_class, which chooses classes"


def file_rules(data):
    """The part of `data_rules` for images from files."""
    wanted = {"folder": "the folder of your images", "pairs": "the file that lists your pairs"}
    wanted = wanted.get(data.source, "the name or folder of a prepared set")
    yield "data.path", data.path != "", f"{wanted}, with data.source={data.source}"
    fits = data.split != "shared" or not data.splits_of
    yield "data.splits_of", fits, "empty with data.split=shared, which has no splits to keep"
    yield "data.folds", data.folds == 0 or 2 <= data.folds <= 100, "0 (none), or from 2 to 100"
    fits = not data.folds or (data.split != "shared" and not data.splits_of)
    text = "0 with data.split=shared, whose splits are alike, and with data.splits_of"
    yield "data.folds", fits, text
    yield "data.fold", data.fold < max(data.folds, 1), f"below data.folds={data.folds}, or 0"
    yield "data.channels", data.channels in (0, 1, 3), "1, 3, or 0 (found from the images)"
    yield "data.same_as", data.same_as == "class", "class, where images come from files"
    fits = data.source == "folder" or data.class_level == 0
    yield "data.class_level", fits, "0 unless data.source=folder: only folders have levels"
    yield "data.fit", data.fit in decoding.FITS, f"one of {decoding.FITS}"
    fits = data.white == 0 or 255 <= data.white <= 65535
    yield "data.white", fits, "0 (found from the set), or a value from 255 to 65535"
    fits = data.source != "pairs" or data.split in ("shared", "disjoint")
    yield "data.split", fits, "shared or disjoint: a list of pairs has no classes"


def shape_rules(data):
    """The part of `data_rules` for drawn shapes."""
    known, meanings = tuple(shapes.SHAPES), ("class", "pixels", "identity")
    yield "data.path", data.path == "", "empty with data.source=shapes"
    yield "data.channels", data.channels == 1, "1 with data.source=shapes"
    yield "data.same_as", data.same_as in meanings, f"one of {meanings}"
    if identity := data.same_as == "identity":
        fits = "blob" in data.shapes and "blob" not in data.held_out_shapes
        yield "data.shapes", fits, "with blob among them, not held out, for data.same_as=identity"
    distinct = len([name for name in known if name in data.shapes])
    fits = distinct == len(data.shapes) >= 2 - identity
    yield "data.shapes", fits, f"two or more of {known}, each once"
    fits = data.split == "classes" and identity and data.shapes == ("blob",)
    fits |= data.split in ("shared", "disjoint")
    text = "shared or disjoint, or of blobs alone; data.held_out_shapes keeps kinds out of training"
    yield "data.split", fits, text
    held_out = data.held_out_shapes
    trained = distinct - len(held_out)
    fits = {*held_out} <= {*data.shapes} and (not held_out or min(trained, len(held_out)) >= 2)
    yield "data.held_out_shapes", fits, "of data.shapes two or more, and two or more not"
    fits = data.num_identities >= (6 if identity else 1)
    yield "data.num_identities", fits, "at least 6 with data.same_as=identity"
    whole = all(isinstance(s, int) and 1 <= s < data.max_size for s in data.min_sizes)
    text = "one whole number of pixels per shape, from 1 to data.max_size - 1"
    yield "data.min_sizes", len(data.min_sizes) == len(data.shapes) and whole, text
    yield "data.match_area", data.continuous or not data.match_area, "False unless data.continuous"
    yield "data.p_rotation", data.p_rotation <= 1, "from 0 to 1"
    low, high = shapes.size_range(data)
    fits = bool((low < high).all())
    yield "data.max_size", fits, "larger: no area is left that all shapes of data.min_sizes have"
    needed = 2 * shapes.margin(data) + 1
    text = f"smaller: the farthest shape needs data.image_size={needed}"
    yield "data.max_size", needed <= data.image_size, text
    places = ("margin", "inside")
    yield "data.placement", data.placement in places, f"one of {places}"


def augment_rules(augment, data):
    """The part of `rules` about config.augment."""
    most = {"rotation": 180, "scale": 2, "shear": 2, "shift": 0.5, "elastic": 0.2, "p_flip": 1}
    most |= {"blur": 16, "contrast": 2, "brightness": 255, "noise": 255, "p_erase": 1}
    for key, value in augment.items():
        yield f"augment.{key}", value <= most[key], f"from 0 to {most[key]}"
        fits = value == 0 or data.same_as != "pixels"
        yield f"augment.{key}", fits, "0 with data.same_as=pixels: equal pixels are the label"


def accumulated_steps(config):
    """How many batches one update averages over: max(round(nominal / batch), 1)."""
    return max(round(config.optimizer.nominal_batch_size / config.batch_size), 1)


def check_workdir(config, workdir):
    """Raises UserError if the folder is not a run's, or its run had another config.

    What is not resolved yet (model.dtype="auto", a checksum "", data.white=0, ...) agrees with any.
    """
    check_writable(workdir, f"--workdir={workdir}")
    if not (workdir / "config.json").exists():
        if workdir.exists() and {path.name for path in workdir.iterdir()} - {PARTIAL, LOCK}:
            raise UserError(
                f"--workdir={workdir}: holds files but no config.json of a run; name another one"
            )
        return
    saved, given = flatten(load_config(workdir).to_dict()), flatten(config.to_dict())
    changed = [key for key in given if given[key] != saved[key] and key not in NEUTRAL]
    unresolved = {("model.dtype", "auto"), ("data.white", 0)}
    unresolved |= {("data.image_size", 0), ("data.channels", 0)}
    unresolved |= {("model.pretrained_sha256", "")} if config.model.pretrained else set()
    changed = [key for key in changed if (key, given[key]) not in unresolved]
    if changed:
        texts = (f"{key} is {saved[key]} there, {given[key]} now" for key in changed)
        raise UserError(
            f"--workdir={workdir} was trained with another config: {'; '.join(texts)}; "
            "name another --workdir or take the change back"
        )


def check_writable(folder, option):
    """Raises UserError if a folder cannot be written to, or does not exist and cannot be made."""
    try:
        existing = next(p for p in (folder, *folder.parents) if p.exists() or p.is_symlink())
        usable = existing.is_dir() and os.access(existing, os.W_OK)
    except OSError as error:
        raise UserError(f"{option}: {error.strerror}") from None
    if not usable:
        raise UserError(f"{option}: {existing} is not a folder that can be written to")


def check_step(step):
    """Raises UserError unless --step is best, last or a number."""
    if not (step in ("best", "last") or step.isdecimal()):
        raise UserError(f"--step={step}: best, last or the number of a step")


def save_config(config, workdir):
    """Writes config.json, whole or not at all, unless it has this content already."""
    text = json.dumps(config.to_dict(), indent=2) + "\n"
    path, partial = workdir / "config.json", workdir / PARTIAL
    try:
        if not path.exists() or path.read_text() != text:
            partial.write_text(text)
            partial.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


@contextmanager
def lock(workdir):
    """A context in which this process alone holds the folder; raises UserError if it cannot."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = open(workdir / LOCK, "a+")
    except OSError as error:
        raise UserError(f"--workdir={workdir}: {error.strerror}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlocked when the process dies
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"--workdir={workdir}: {file.read()} is training there; name another folder"
            ) from None
        file.truncate(0)
        with suppress(OSError):  # a full disk; the text only names the holder
            file.write(f"process {os.getpid()} on {platform.node()}")
            file.flush()
        yield


def load_config(workdir):
    """The ConfigDict that a run was trained with; raises UserError if there is none."""
    path = workdir / "config.json"
    if not path.is_file():
        raise UserError(f"--workdir={workdir}: no run there (no config.json); train.py makes one")
    try:
        values = json.loads(path.read_text(), object_hook=tuples)
        config = ConfigDict(values)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no saved config: {error}") from None
    check(config, f"{path}: ")
    return config


def tuples(node):
    """A JSON object with tuples for lists: a config has tuples, JSON does not."""
    return {key: tuple(v) if isinstance(v, list) else v for key, v in node.items()}


def newest_run(folder):
    """The run under a folder that was trained last: with the newest checkpoint or config."""
    runs = [path.parent.absolute() for path in folder.glob("*/config.json")]
    if not runs:
        raise UserError(
            f"no run under {folder.absolute()}: train one (python train.py) or name its --workdir"
        )

    def trained_at(run):
        paths = (run / "config.json", run / "checkpoints")
        return max(path.stat().st_mtime for path in paths if path.exists())

    return max(runs, key=trained_at)


def frozen(config):
    """A config, or a group of its keys, as a hashable copy: a possible key of a cache."""
    return config if isinstance(config, FrozenConfigDict) else FrozenConfigDict(config)


def flatten(tree, prefix=""):
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
