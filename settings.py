"""The command line and the config: read, checked, saved with the run, compared on resume.

Imports neither JAX nor TensorFlow, so that a mistake is answered at once and leaves nothing behind.
Every mistake ends in `SystemExit` with one line: what was given, what is allowed, what to do.
"""

import fcntl
import json
import math
import os
import platform
import sys
from contextlib import contextmanager
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

import data
from configs import default

PARTIAL, LOCK = "config.json.partial", ".lock"  # files of a run's folder

# A resumed run may change these: the parameters do not depend on them, only which are kept.
NEUTRAL = ("log_every_steps", "eval_every_steps", "checkpoint.keep_latest", "checkpoint.keep_best")


def train_command():
    """Reads the command line of train.py: (config, workdir), both checked."""

    def define():
        config_flags.DEFINE_config_file("config", default.__file__, "What to train.")
        flags.DEFINE_string("workdir", None, "The run's folder; by default runs/<config's name>.")

    values = parse(define)
    path = Path(config_flags.get_config_filename(values["config"]))
    try:
        config = values.config.copy_and_resolve_references()
    except (AttributeError, OSError) as error:  # of a file without a config, when it is first used
        stop(f"--config={path}: {last_line(error)}; configs/ has examples")
    check(config, "--config.")
    workdir = named_workdir(values) or Path("runs", path.stem).absolute()
    check_workdir(config, workdir)
    return config, workdir


def evaluate_command():
    """Reads the command line of evaluate.py: (config of the run, workdir, step, split)."""

    def define():
        flags.DEFINE_string("workdir", None, "The run's folder; by default the newest under runs/.")
        flags.DEFINE_string("step", "best", "Which checkpoint: best, last or a step's number.")
        flags.DEFINE_enum("split", "test", data.SPLITS, "Whose pairs.")

    values = parse(define)
    workdir = named_workdir(values) or newest_run(Path("runs"))
    if not (values.step in ("best", "last") or values.step.isdecimal()):
        stop(f"--step={values.step}: best, last or the number of a step")
    return load_config(workdir), workdir, values.step, values.split


def parse(define):
    """Defines a program's flags and reads sys.argv."""
    values = flags.FLAGS
    app.define_help_flags()
    try:
        define()  # ml_collections reads its overrides from sys.argv in here
        for name in {"config", "workdir", "step", "split"} & set(values):
            values.register_key_flag_for_module(sys.argv[0], values[name])  # for --help
        rest = values(sys.argv)[1:]
    except flags.Error as error:
        stop(error)
    except Exception as error:  # whatever a config file may raise while it runs
        text = " ".join(str(error).split())
        if isinstance(error, (AttributeError, KeyError)) and "get_config" not in text:
            stop(f"unknown config key: {text} (configs/default.py has every key)")
        stop(f"--config: {type(error).__name__}: {last_line(error)}")
    if rest:
        stop(f"cannot read {' '.join(rest)!r}: options have the form --name=value (see --help)")
    if not values["verbosity"].present:
        logging.set_verbosity(logging.ERROR)  # Orbax and CLU log every step they take
    return values


def named_workdir(values):
    """The folder that --workdir names, None where it is not given."""
    if values.workdir is None:
        return None
    if not values.workdir.strip():
        stop("--workdir= is empty: name a folder or leave the option out")
    return Path(values.workdir).absolute()


def last_line(error):
    """The end of an error's text, which says what went wrong."""
    return (str(error).strip().splitlines() or ["no reason given"])[-1]


def stop(message):
    """Ends the program with one line on stderr and exit code 1."""
    raise SystemExit("error: " + " ".join(str(message).split()))


def check(config, where="config."):
    """Refuses a config with other keys than configs/default.py or values that make no sense.

    `where` is what stands before a key in the message.
    """
    values = flatten(config.to_dict())
    known = flatten(default.get_config().to_dict())
    for key in sorted(values.keys() ^ known.keys()):
        verdict = "is missing" if key in known else "is a key that nothing reads"
        stop(f"{where}{key} {verdict} (configs/default.py has every key)")
    for key, value in values.items():
        if type(value) is not type(known[key]):
            stop(f"{where}{key}={value!r}: must be of type {type(known[key]).__name__}")
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(n, (int, float)) and not 0 <= n < math.inf for n in numbers):
            stop(f"{where}{key}={value}: numbers must be finite and not negative")
    for key, allowed, text in rules(config):
        if not allowed:
            stop(f"{where}{key}={values[key]}: must be {text}")


def rules(config):
    """Yields (key, whether its value makes sense, which values do)."""
    images, model, optimizer = config.data, config.model, config.optimizer
    yield "seed", config.seed < 2**32, "below 2**32"
    for key in ("batch_size", "num_steps", "log_every_steps", "eval_every_steps"):
        yield key, config[key] >= 1, "at least 1"
    known = tuple(data.SHAPES)
    distinct = [name for name in known if name in images.shapes]
    fit = len(distinct) == len(images.shapes) >= 2
    yield "data.shapes", fit, f"two or more of {known}, each once"
    sizes_fit = all(isinstance(s, int) and 1 <= s < images.max_size for s in images.min_sizes)
    text = "one whole number of pixels per shape, from 1 to data.max_size - 1"
    yield "data.min_sizes", len(images.min_sizes) == len(images.shapes) and sizes_fit, text
    text = f"below half of data.image_size ({images.image_size}): no centre is left"
    yield "data.max_size", 2 * images.max_size < images.image_size, text
    yield "data.placement", images.placement in ("margin", "inside"), "margin or inside"
    yield "data.split", images.split in ("shared", "disjoint"), "shared or disjoint"
    stages = model.stage_sizes
    whole = all(isinstance(s, int) and s >= 1 for s in stages)
    yield "model.stage_sizes", len(stages) >= 1 and whole, "one whole number of blocks per stage"
    for key in ("width", "head_features"):
        yield f"model.{key}", model[key] >= 1, "at least 1"
    dtypes = ("auto", "float32", "bfloat16")
    yield "model.dtype", model.dtype in dtypes, f"one of {dtypes}"
    yield "optimizer.name", optimizer.name in ("adam", "sgd"), "adam or sgd"
    yield "optimizer.learning_rate", optimizer.learning_rate > 0, "above 0"
    text = f"at most optimizer.learning_rate ({optimizer.learning_rate})"
    lowers = optimizer.final_learning_rate <= optimizer.learning_rate
    yield "optimizer.final_learning_rate", lowers, text
    for key in ("momentum", "beta2"):
        yield f"optimizer.{key}", optimizer[key] < 1, "below 1"
    yield "optimizer.nominal_batch_size", optimizer.nominal_batch_size >= 1, "at least 1"
    steps = accumulated_steps(config)
    text = f"a multiple of the {steps} batches that optimizer.nominal_batch_size accumulates"
    yield "num_steps", config.num_steps % steps == 0, text
    yield "eval.threshold", 0 < config.eval.threshold < 1, "between 0 and 1"
    yield "eval.num_pairs", config.eval.num_pairs >= 1, "at least 1"
    yield "checkpoint.keep_latest", config.checkpoint.keep_latest >= 1, "at least 1"
    yield "checkpoint.keep_best", config.checkpoint.keep_best >= 1, "at least 1"


def accumulated_steps(config):
    """How many batches one update averages over: max(round(nominal / batch), 1)."""
    return max(round(config.optimizer.nominal_batch_size / config.batch_size), 1)


def check_workdir(config, workdir):
    """Refuses a folder that is not a run's, or whose run had another config.

    A compute type still to be resolved ("auto") agrees with any.
    """
    try:
        existing = next(p for p in (workdir, *workdir.parents) if p.exists() or p.is_symlink())
        usable = existing.is_dir() and os.access(existing, os.W_OK)
    except OSError as error:
        stop(f"--workdir={workdir}: {error.strerror}")
    if not usable:
        stop(f"--workdir={workdir}: {existing} is not a folder that can be written to")
    if not (workdir / "config.json").exists():
        if workdir.exists() and {path.name for path in workdir.iterdir()} - {PARTIAL, LOCK}:
            stop(f"--workdir={workdir}: holds files but no config.json of a run; name another one")
        return
    saved, given = flatten(load_config(workdir).to_dict()), flatten(config.to_dict())
    changed = [key for key in given if given[key] != saved[key] and key not in NEUTRAL]
    changed = [key for key in changed if (key, given[key]) != ("model.dtype", "auto")]
    if changed:
        texts = (f"{key} is {saved[key]} there, {given[key]} now" for key in changed)
        stop(f"--workdir={workdir} was trained with another config: {'; '.join(texts)}; "
             "name another --workdir or take the change back")  # fmt: skip


def save_config(config, workdir):
    """Writes config.json where it is not there already, whole or not at all."""
    text = json.dumps(config.to_dict(), indent=2) + "\n"
    path, partial = workdir / "config.json", workdir / PARTIAL
    if not path.exists() or path.read_text() != text:
        partial.write_text(text)
        partial.replace(path)


@contextmanager
def lock(workdir):
    """Keeps a second training out of a folder; the kernel gives it up when its holder dies."""
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / LOCK, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            stop(f"--workdir={workdir}: {file.read()} is training there; name another folder")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield


def load_config(workdir):
    """Reads the config that a run was trained with."""
    path = workdir / "config.json"
    if not path.is_file():
        stop(f"--workdir={workdir}: no run there (no config.json); train.py makes one")
    try:
        values = json.loads(path.read_text(), object_hook=tuples)
        config = ConfigDict(dict(values))
    except (ValueError, TypeError) as error:
        stop(f"{path} is no saved config: {error}")
    check(config, f"{path}: ")
    return config


def tuples(node):
    """JSON has no tuples: its lists come back as what the config held."""
    return {key: tuple(v) if isinstance(v, list) else v for key, v in node.items()}


def newest_run(folder):
    """The run under a folder that was trained on last: with the newest checkpoint or config."""
    runs = [path.parent.absolute() for path in folder.glob("*/config.json")]
    if not runs:
        stop(f"no run under {folder.absolute()}: train one (python train.py) or name its --workdir")

    def trained_at(run):
        paths = (run / "config.json", run / "checkpoints")
        return max(path.stat().st_mtime for path in paths if path.exists())

    return max(runs, key=trained_at)


def flatten(tree, prefix=""):
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    flat = {}
    for key, value in tree.items():
        nested = (
            flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
        flat |= nested
    return flat
