"""The command line and the config: read, checked, saved with the run, compared on resume.

Imports neither JAX nor TensorFlow, so that a mistake is answered at once and leaves nothing behind.
Every mistake ends in `SystemExit` with one line: what was given, what is allowed, what to do.
"""

import fcntl
import importlib.metadata
import json
import math
import os
import platform
import re
import signal
import sys
import warnings
import zlib
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

import data
import shapes
from configs import default

OPTIONS = {
    "config",
    "workdir",
    "step",
    "split",
    "threshold",
    "images",
    "robustness",
    "numpy",
    "output",
}
OPTIONS |= {"cache", "coordinator", "num_processes", "process_id"}
OPTIONS |= {"join_seconds", "heartbeat_seconds"}
PARTIAL, LOCK = "config.json.partial", ".lock"  # files of a run's folder

# From 1 to these: beyond them nothing could be meant but what no machine can hold.
MOST = dict.fromkeys(("num_steps", "log_every_steps", "eval_every_steps"), 2**31 - 1)
MOST |= {"steps_per_execution": 1000}
MOST |= dict.fromkeys(("batch_size", "optimizer.nominal_batch_size"), 2**20)
MOST |= dict.fromkeys(("checkpoint.keep_latest", "checkpoint.keep_best"), 2**20)
MOST |= {"eval.num_pairs": 10**7, "data.num_identities": 10**6, "data.image_size": 4096}
MOST |= {"model.width": 4096, "model.head_features": 2**16}

# A resumed run may change these: the parameters do not depend on them, only which are kept.
NEUTRAL = ("log_every_steps", "eval_every_steps", "checkpoint.keep_latest", "checkpoint.keep_best")
NEUTRAL += ("steps_per_execution",)
NEUTRAL += ("model.pretrained",)  # where the file lies; its checksum may not change


def train_command():
    """Reads the command line of train.py: (config, workdir), both checked."""

    def define():
        config_flags.DEFINE_config_file("config", default.__file__, "What to train.")
        flags.DEFINE_string("workdir", None, "The run's folder; by default runs/<config's name>.")
        define_cache()
        define_cluster()

    values = parse(define)
    keep_compiled(values.cache)
    config, name = named_config(values)
    workdir = named_workdir(f"runs/{name}" if values.workdir is None else values.workdir)
    check_workdir(config, workdir)
    if cluster() is None and (workdir / LOCK).exists():
        with lock(workdir):  # a training there is named before anything takes time
            pass
    open_splits(config)
    return config, workdir


def audit_command():
    """Reads the command line of data.py: (config, checked, and the path of the picture)."""

    def define():
        config_flags.DEFINE_config_file("config", default.__file__, "Whose data.")
        flags.DEFINE_string("output", None, "The picture; by default runs/<config's name>.png.")

    values = parse(define)
    config, name = named_config(values)
    path = Path("runs", f"{name}.png") if values.output is None else Path(values.output)
    if path.suffix != ".png" or path.is_dir():
        stop(f"--output={values.output}: must be the path of a .png file")
    check_writable(path.absolute().parent, f"--output={path}")
    open_splits(config)
    return config, path


def named_config(values):
    """The config that --config names, checked, and the name of its file."""
    path = Path(config_flags.get_config_filename(values["config"]))
    try:
        config = values.config.copy_and_resolve_references()
    except (AttributeError, OSError) as error:  # of a file without a config, when it is first used
        stop(f"--config={path}: {last_line(error)}; configs/ has examples")
    check(config, "--config.")
    if config.data.path and Path(config.data.path).exists():  # else it is the name of a set
        config.data.path = str(Path(config.data.path).absolute())
    return config, path.stem


def open_splits(config):
    """Opens each split's images, and refuses data of which no pairs can be made."""
    options, path = config.data, Path(config.data.path[:4096])
    if options.source == "folder" and not path.is_dir():
        stop(f"data.path={path}: must be a folder of classes with data.source=folder")
    if options.source == "pairs" and not path.is_file():
        stop(f"data.path={path}: must be a CSV file with data.source=pairs")
    for split in data.SPLITS:
        space = data.open_space(options.to_json(), split)
        if space.rows is None and space.pairs is None:
            data.sample_pairs(config, split, 64)  # ends the program where a class has no image
        elif options.source == "shapes" and options.same_as != "pixels":
            wanted, found = len(data.split_class_ids(options, split)), len(space.class_ids)
            if found < wanted:
                text = f"{split} has images of {found} of {wanted} classes only"
                stop(f"data.split={options.split}: {text}; more sizes or places are needed")


def evaluate_command():
    """Reads the command line of evaluate.py: ([(config, workdir) of each run], its options)."""

    def define():
        flags.DEFINE_list("workdir", None, "The run's folder, by default the newest under runs/; "
                          "of several, separated by commas, one table is made.")  # fmt: skip
        flags.DEFINE_string("step", "best", "Which checkpoint: best, last or a step's number.")
        flags.DEFINE_enum("split", "test", data.SPLITS, "Whose pairs.")
        flags.DEFINE_string("threshold", None, "Probability from which on to say same; accuracy or "
                            "far:RATE: fitted on validation and kept.")  # fmt: skip
        flags.DEFINE_list("images", None, "Two files to compare, or a folder: all with each other.")
        flags.DEFINE_bool("robustness", False, "Which nuisance breaks it: one more at each step.")
        define_cache()
        define_cluster()

    values = parse(define)
    keep_compiled(values.cache)
    cluster()
    workdirs = [named_workdir(name) for name in values.workdir or ()] or [newest_run(Path("runs"))]
    check_step(values.step)
    check_threshold(values.threshold)
    if len(workdirs) > 1 and (values.images or values.robustness or values.threshold):
        stop("--images, --robustness and --threshold are about one run: name one --workdir")
    runs = [(load_config(workdir), workdir) for workdir in workdirs]
    for folder in workdirs + ([workdirs[0].parent] if len(workdirs) > 1 else []):
        check_writable(folder, f"--workdir={folder}")
    pictures = values.images and open_pictures(values.images, runs[0][0].data)
    options = runs[0][0].data
    if values.robustness and (options.source != "shapes" or options.same_as == "pixels"):
        stop("--robustness: for runs about classes of drawn shapes, not files or pictures")
    for config, _ in runs:
        if not (pictures or values.robustness):
            open_splits(config)
    options = {name: values[name].value for name in ("step", "split", "threshold", "robustness")}
    return runs, SimpleNamespace(**options, pictures=pictures)


def export_command():
    """Reads the command line of export.py: (config of the run, workdir, step, numpy)."""

    def define():
        flags.DEFINE_string("workdir", None, "The run's folder; by default the newest under runs/.")
        flags.DEFINE_string("step", "best", "Which checkpoint: best, last or a step's number.")
        flags.DEFINE_bool("numpy", False, "Also arrays for NumPy alone, of a siamese cnn.")
        define_cache()

    values = parse(define)
    keep_compiled(values.cache)
    workdir = named_workdir(values.workdir) if values.workdir else newest_run(Path("runs"))
    check_step(values.step)
    config = load_config(workdir)
    kind = config.model.fusion, config.model.encoder
    if values.numpy and kind != ("siamese", "cnn"):
        stop(f"--numpy: for a siamese cnn, this is a {' '.join(kind)}; leave the option out")
    check_writable(workdir / "export", f"--workdir={workdir}")
    return config, workdir, values.step, values.numpy


def define_cluster():
    """Flags about several processes that work together."""
    flags.DEFINE_string("coordinator", None, "host:port of process 0, where several processes work "
                        "together; SLURM, Open MPI and Kubernetes name it themselves.")  # fmt: skip
    flags.DEFINE_integer("num_processes", None, "How many there are.")
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0 on.")
    flags.DEFINE_integer("join_seconds", 300, "How long they wait for each other at the start.")
    flags.DEFINE_integer("heartbeat_seconds", 100, "How long one may be silent before all end.")


def cluster():
    """How to join other processes: address (arguments of jax.distributed.initialize) and seconds.

    None where this process works alone.
    """
    values = flags.FLAGS
    names = ("coordinator", "num_processes", "process_id")
    missing = [name for name in names if values[name].value is None]
    for name, least in (("join_seconds", 1), ("heartbeat_seconds", 10), ("num_processes", 1)):
        if values[name].value is not None and values[name].value < least:
            stop(f"--{name}={values[name].value}: must be at least {least}")
    seconds = {name: values[name].value for name in ("join_seconds", "heartbeat_seconds")}
    if len(missing) == 3:
        return SimpleNamespace(address={}, **seconds) if managed(os.environ) else None
    if missing:
        stop(f"{', '.join(names)} belong together: --{', --'.join(missing)} missing")
    host, _, port = values.coordinator.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        stop(f"--coordinator={values.coordinator}: must be host:port, as in 10.0.0.1:4321")
    if not 0 <= values.process_id < values.num_processes:
        stop(f"--process_id={values.process_id}: must be from 0 to {values.num_processes - 1}")
    address = {"coordinator_address": values.coordinator, "num_processes": values.num_processes}
    address |= {"process_id": values.process_id, "cluster_detection_method": "deactivate"}
    return SimpleNamespace(address=address, **seconds)


def managed(environment):
    """Whether SLURM, Open MPI or Kubernetes started this as one of several processes.

    JAX's own detection would join in an interactive step of one process, too, with one GPU.
    """
    for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
        if environment.get(name, "1") != "1":
            return True
    indexed = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys()
    return indexed and find_spec("kubernetes") is not None  # which JAX asks the cluster with


def check_step(step):
    if not (step in ("best", "last") or step.isdecimal()):
        stop(f"--step={step}: best, last or the number of a step")


def check_threshold(rule):
    """Refuses a rule that is neither accuracy nor far:RATE nor a probability."""
    if rule in (None, "accuracy"):
        return
    try:
        number = float(rule.removeprefix("far:"))
    except ValueError:
        number = math.nan
    if not (0 <= number <= 1 if rule.startswith("far:") else 0 < number < 1):
        stop(f"--threshold={rule}: a number between 0 and 1, accuracy, or far:RATE as in far:0.01")


def open_pictures(names, options):
    """The images that --images names: (names, uint8 [n, image_size, image_size, channels])."""
    paths = [Path(name) for name in names]
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        stop(f"--images: no such file or folder: {', '.join(missing)}")
    found = []
    if len(paths) == 1 and paths[0].is_dir():
        for path in sorted(paths[0].rglob("*")):
            if path.suffix.lower() in data.images.SUFFIXES:
                try:
                    found.append((str(path), data.images.read_images([path], options)))
                except SystemExit as error:
                    print(f"warning: left out: {error}", file=sys.stderr)
    elif len(paths) > 1:
        found = [(str(path), data.images.read_images([path], options)) for path in paths]
    if len(found) < 2:
        stop(f"--images={','.join(names)}: wanted are two files, or a folder of two images or more")
    return [name for name, _ in found], np.concatenate([image for _, image in found])


def parse(define):
    """Defines a program's flags and reads sys.argv."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C without a page of text
    values = flags.FLAGS
    app.define_help_flags()
    try:
        define()  # ml_collections reads its overrides from sys.argv in here
        for name in OPTIONS & set(values):
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
        # Orbax and CLU log every step they take; what ends one is raised as well.
        logging.set_verbosity(logging.FATAL)
    return values


def define_cache():
    text = "Folder that keeps compiled programs for the next start; --cache= keeps none."
    flags.DEFINE_string("cache", None, text)


def keep_compiled(folder):
    """Has JAX, which reads these variables when it loads, keep compiled programs for later starts.

    By default in the user's cache folder, by version and machine: a program is good for the
    instructions and the number of threads that it was compiled for.
    """
    # XLA takes some of its own tuning (prefer-no-gather) for an instruction that the processor
    # lacks, and would log a page at each program it loads (github.com/openxla/xla/issues/44565).
    # TensorFlow heeds the same variable.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if folder is None and "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    base = Path(folder).absolute() if folder else None
    if folder:
        check_writable(base, f"--cache={base}")
    elif folder is None:
        with suppress(RuntimeError, SystemExit):  # no home, or none to write to
            caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute()
            check_writable(caches, "cache")
            base = caches / "same-or-different"
    if base is None:
        os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
        return
    folder = base / f"jaxlib-{importlib.metadata.version('jaxlib')}-{machine()}"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    warnings.showwarning = partial(empty_cache, folder, warnings.showwarning)


def machine():
    """A text that tells processors of other instructions or of another number of cores apart."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else platform.processor()
    known = sorted({line for line in text.splitlines() if re.match("flags|Features", line)})
    return f"{cores}-cores-{zlib.crc32(repr(known or text).encode()):08x}"


def empty_cache(folder, show, message, *where, **options):
    """Shows a warning; one of the cache empties it.

    A full disk or a kill leaves a part of a program, which could not be read at any later start.
    """
    if "persistent compilation cache" not in str(message):
        show(message, *where, **options)
        return
    for path in folder.glob("*-cache"):  # JAX's own
        with suppress(OSError):
            path.unlink()
    print(f"warning: {' '.join(str(message).split())[:200]}; emptied {folder}", file=sys.stderr)


def named_workdir(name):
    """The folder that --workdir names."""
    if not name.strip():
        stop("--workdir= is empty: name a folder or leave the option out")
    return Path(name).absolute()


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
    images, optimizer = config.data, config.optimizer
    yield "seed", config.seed < 2**32, "below 2**32"
    values = flatten(config.to_dict())
    for key, most in MOST.items():
        yield key, 1 <= values[key] <= most, f"from 1 to {most:,}"
    yield from data_rules(images)
    yield from model_rules(config.model, images)
    yield "optimizer.name", optimizer.name in ("adam", "sgd"), "adam or sgd"
    yield "optimizer.learning_rate", optimizer.learning_rate > 0, "above 0"
    text = f"at most optimizer.learning_rate ({optimizer.learning_rate})"
    lowers = optimizer.final_learning_rate <= optimizer.learning_rate
    yield "optimizer.final_learning_rate", lowers, text
    for key in ("momentum", "beta2"):
        yield f"optimizer.{key}", optimizer[key] < 1, "below 1"
    steps = accumulated_steps(config)
    text = f"a multiple of the {steps} batches that optimizer.nominal_batch_size accumulates"
    yield "num_steps", config.num_steps % steps == 0, text
    yield "eval.threshold", 0 < config.eval.threshold < 1, "between 0 and 1"


def model_rules(model, images):
    """The part of `rules` about config.model."""
    stages = model.stage_sizes
    whole = all(isinstance(s, int) and 1 <= s <= 100 for s in stages)
    text = "one to eight whole numbers, the blocks per stage, from 1 to 100"
    yield "model.stage_sizes", 1 <= len(stages) <= 8 and whole, text
    choices = {
        "fusion": ("siamese", "two_channel", "joint"),
        "encoder": ("resnet18", "resnet18_small", "cnn", "vit"),
        "head": ("mlp", "cosine", "euclidean"),
    }
    for key, allowed in choices.items():
        yield f"model.{key}", model[key] in allowed, f"one of {allowed}"
    joint, vit = model.fusion == "joint", model.encoder == "vit"
    yield "model.fusion", vit if joint else True, "siamese or stack unless model.encoder=vit"
    yield "model.fusion", not (vit and model.fusion == "two_channel"), "siamese or joint with a vit"
    yield "model.stage_sizes", len(stages) == 1 or not vit, "one number of blocks for a vit"
    fits = model.patch_size >= 1 and images.image_size % model.patch_size == 0
    yield "model.patch_size", fits or not vit, f"a divisor of data.image_size={images.image_size}"
    yield "model.width", model.width % 32 == 0 or not vit, "a multiple of 32 for a vit"
    fits = model.fusion == "siamese" and images.source != "pairs" and images.same_as != "pixels"
    text = "False unless siamese and of classes (not of pairs that are given, nor pictures)"
    yield "model.all_pairs_loss", fits or not model.all_pairs_loss, text
    fits = model.fusion == "siamese" or model.head == "mlp"
    yield "model.head", fits, "mlp where both images are seen together: there is no other"
    fits = model.encoder == "resnet18" and model.fusion == "siamese"
    yield "model.pretrained", fits or not model.pretrained, "empty unless a siamese resnet18"
    learns = model.fusion == "siamese" and model.head != "euclidean"
    yield "model.frozen", learns or not model.frozen, "False without a head that learns"
    yield "model.margin", model.margin > 0, "above 0"
    dtypes = ("auto", "float32", "bfloat16")
    yield "model.dtype", model.dtype in dtypes, f"one of {dtypes}"


def data_rules(images):
    """The part of `rules` about config.data."""
    sources = ("shapes", *data.images.LISTS)
    yield "data.source", images.source in sources, f"one of {sources}"
    yield "data.p_same", images.p_same <= 1, "from 0 to 1"
    splits = ("shared", "disjoint", "classes")
    yield "data.split", images.split in splits, f"one of {splits}"
    yield from (shape_rules if images.source == "shapes" else file_rules)(images)


def file_rules(images):
    yield "data.path", images.path != "", f"named with data.source={images.source}"
    yield "data.channels", images.channels in (1, 3), "1 or 3"
    yield "data.same_as", images.same_as == "class", "class, where images come from files"
    fits = images.source != "pairs" or images.split != "classes"
    yield "data.split", fits, "shared or disjoint: a list of pairs has no classes"


def shape_rules(images):
    known, meanings = tuple(shapes.SHAPES), ("class", "pixels", "identity")
    yield "data.path", images.path == "", "empty with data.source=shapes"
    yield "data.channels", images.channels == 1, "1 with data.source=shapes"
    yield "data.same_as", images.same_as in meanings, f"one of {meanings}"
    identity, picture = (images.same_as == name for name in ("identity", "pixels"))
    if identity:
        fits = "blob" in images.shapes and "blob" not in images.held_out_shapes
        yield "data.shapes", fits, "with blob among them, not held out, for data.same_as=identity"
    several = len([name for name in known if name in images.shapes])
    fit = several == len(images.shapes) >= 2 - identity
    yield "data.shapes", fit, f"two or more of {known}, each once"
    fits = images.split != "classes" or (identity and images.shapes == ("blob",))
    text = "shared or disjoint, or of blobs alone; data.held_out_shapes keeps kinds out of training"
    yield "data.split", fits, text
    held_out = images.held_out_shapes
    kept = several - len(held_out)
    fit = {*held_out} <= {*images.shapes} and (not held_out or min(kept, len(held_out)) >= 2)
    yield "data.held_out_shapes", fit, "of data.shapes two or more, and two or more not"
    fits = images.num_identities >= (6 if identity else 1)
    yield "data.num_identities", fits, "at least 6 with data.same_as=identity"
    whole = all(isinstance(s, int) and 1 <= s < images.max_size for s in images.min_sizes)
    text = "one whole number of pixels per shape, from 1 to data.max_size - 1"
    yield "data.min_sizes", len(images.min_sizes) == len(images.shapes) and whole, text
    fits = images.continuous and not images.p_outline if images.match_area else True
    yield "data.match_area", fits, "False unless data.continuous and data.p_outline=0"
    low, high = shapes.size_range(images)
    fits = bool((low < high).all())
    yield "data.max_size", fits, "larger: no area is left that all shapes of data.min_sizes have"
    needed = 2 * shapes.margin(images) + 1
    text = f"smaller: the farthest shape needs data.image_size={needed}"
    yield "data.max_size", needed <= images.image_size, text
    places = ("margin", "inside", "centre")
    yield "data.placement", images.placement in places, f"one of {places}"
    for key in ("p_rotation", "p_mirror", "p_outline"):
        yield f"data.{key}", images[key] <= 1, "from 0 to 1"
    yield "data.max_angle", images.max_angle <= 180, "from 0 to 180"
    yield "data.outline_width", images.outline_width > 0, "above 0"
    for key in ("foreground_greys", "background_greys"):
        levels = images[key]
        whole = len(levels) == 2 and all(isinstance(level, int) for level in levels)
        fits = whole and levels[0] <= levels[1] <= 255
        yield f"data.{key}", fits, "two whole numbers from 0 to 255, the lower first"
    yield "data.noise", not (picture and images.noise), "0 with data.same_as=pixels"
    fits = not picture or images.p_same > 0 or not shapes.is_continuous(images)
    yield "data.p_same", fits, "above 0: of independent pictures no two are the same here"


def accumulated_steps(config):
    """How many batches one update averages over: max(round(nominal / batch), 1)."""
    return max(round(config.optimizer.nominal_batch_size / config.batch_size), 1)


def check_workdir(config, workdir):
    """Refuses a folder that is not a run's, or whose run had another config.

    A compute type or checksum still to be found out ("auto", "") agrees with any.
    """
    check_writable(workdir, f"--workdir={workdir}")
    if not (workdir / "config.json").exists():
        if workdir.exists() and {path.name for path in workdir.iterdir()} - {PARTIAL, LOCK}:
            stop(f"--workdir={workdir}: holds files but no config.json of a run; name another one")
        return
    saved, given = flatten(load_config(workdir).to_dict()), flatten(config.to_dict())
    changed = [key for key in given if given[key] != saved[key] and key not in NEUTRAL]
    open_ = {("model.dtype", "auto")}
    open_ |= {("model.pretrained_sha256", "")} if config.model.pretrained else set()
    changed = [key for key in changed if (key, given[key]) not in open_]
    if changed:
        texts = (f"{key} is {saved[key]} there, {given[key]} now" for key in changed)
        stop(f"--workdir={workdir} was trained with another config: {'; '.join(texts)}; "
             "name another --workdir or take the change back")  # fmt: skip


def check_writable(folder, option):
    """Refuses a folder that is not there and cannot be made, or cannot be written to."""
    try:
        existing = next(p for p in (folder, *folder.parents) if p.exists() or p.is_symlink())
        usable = existing.is_dir() and os.access(existing, os.W_OK)
    except OSError as error:
        stop(f"{option}: {error.strerror}")
    if not usable:
        stop(f"{option}: {existing} is not a folder that can be written to")


def save_config(config, workdir):
    """Writes config.json where it is not there already, whole or not at all."""
    text = json.dumps(config.to_dict(), indent=2) + "\n"
    path, partial = workdir / "config.json", workdir / PARTIAL
    try:
        if not path.exists() or path.read_text() != text:
            partial.write_text(text)
            partial.replace(path)
    except OSError as error:
        stop(f"{path} cannot be written: {error.strerror}")


@contextmanager
def lock(workdir):
    """Keeps a second training out of a folder; the kernel gives it up when its holder dies."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = open(workdir / LOCK, "a+")
    except OSError as error:
        stop(f"--workdir={workdir}: {error.strerror}")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            stop(f"--workdir={workdir}: {file.read()} is training there; name another folder")
        file.truncate(0)
        with suppress(OSError):  # of a full disk: it is a name for others only
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
        config = ConfigDict({"steps_per_execution": 1} | values)  # of runs before there was the key
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
