"""For every test: four CPU devices, no rank promotion, warnings are errors (pyproject.toml)."""

import atexit
import fcntl
import functools
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import pretrained
import settings
from configs import default
from model import create_model, variable_shapes

CACHE = {  # of compiled programs, for tests and the programs that they start
    "jax_compilation_cache_dir": tempfile.mkdtemp(),
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}
atexit.register(shutil.rmtree, CACHE["jax_compilation_cache_dir"])
ENVIRONMENT = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
ENVIRONMENT |= {name.upper(): str(value) for name, value in CACHE.items()}
ENVIRONMENT["XDG_CACHE_HOME"] = CACHE["jax_compilation_cache_dir"]  # of decoded images
del ENVIRONMENT["TF_CPP_MIN_LOG_LEVEL"]  # which JAX has set in here
ROOT = Path(__file__).parent.parent

with warnings.catch_warnings():  # that PySocks is missing, perhaps in a thread of a later test
    warnings.simplefilter("ignore")
    import requests  # noqa: F401  of TensorFlow

for name, value in CACHE.items():
    jax.config.update(name, value)
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")  # a GPU would use TF32

TINY = {
    "batch_size": 8,
    "optimizer.learning_rate": 1e-3,
    "optimizer.nominal_batch_size": 8,
    "num_steps": 8,
    "log_every_steps": 2,
    "eval_every_steps": 4,
    "steps_per_execution": 2,
    "model.stage_sizes": (1,),
    "model.width": 4,
    "model.head_features": 8,
    "model.dtype": "float32",
}


def tiny_config():
    """The default config with a network that compiles and trains in seconds."""
    config = default.get_config()
    config.update_from_flattened_dict(TINY)
    return config


@pytest.fixture
def tiny():
    return tiny_config()


@pytest.fixture
def strict_dtype_promotion():
    """Numbers of two types in one operation are an error: none is converted unnoticed."""
    with jax.numpy_dtype_promotion("strict"):
        yield


def run(program, *options, cwd=None, devices=1, environment=None):
    """Runs a program of the project as a user would; returns the finished process."""
    command = [sys.executable, str(ROOT / program), *options]
    environment = ENVIRONMENT | {"JAX_NUM_CPU_DEVICES": str(devices)} | (environment or {})
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@functools.cache
def forks():
    """The process that `run_fork` asks; it ends with this one, when its input does."""
    command = [sys.executable, "-W", "ignore", str(ROOT / "tests" / "forks.py")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    server = subprocess.Popen(command, env=ENVIRONMENT, **pipes)
    atexit.register(server.communicate)
    return server


def run_fork(program, *options, cwd="/"):
    """As `run`, without the start of Python: for programs that refuse to do something."""
    forks().stdin.write(json.dumps([program, options, str(cwd)]) + "\n")
    forks().stdin.flush()
    return subprocess.CompletedProcess(program, *json.loads(forks().stdout.readline()))


def assert_same_gradient(opt_state, other):
    """That after one step of Adam two optimizer states hold the same gradient, in other sums.

    The first moment is the gradient, scaled. A kernel's is a sum of 16 images x 256 pixels. Summed
    in another order, n float32 numbers differ by about sqrt(n) / 2 ** 24 of their size; four such
    sums follow one another, BatchNorm's mean and variance on the way there and back.
    """
    bound = 4 * (16 * 256) ** 0.5 / 2**24
    moments = (jax.tree.leaves(state[1][0].mu) for state in (opt_state, other))
    for one, two in zip(*moments, strict=True):
        assert np.abs(one - two).max() <= bound * np.abs(one).max() + 1e-12


def tiny_options(**changes):
    """TINY as command-line options."""
    values = TINY | {key.replace("__", "."): value for key, value in changes.items()}
    return [f"--config.{key}={value}" for key, value in values.items()]


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory):
    """A run of train.py from beginning to end: (workdir, what it printed). Workers share it."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    workdir, printed = folder / "whole" / "run", folder / "whole.txt"
    with open(folder / "whole.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the first that comes trains, the others wait
        if not printed.exists():
            finished = run("train.py", f"--workdir={workdir}", *tiny_options())
            assert finished.returncode == 0, finished.stderr
            printed.write_text(finished.stdout)
    return workdir, printed.read_text()


def photo(random, hue):
    """A picture like a photograph: smooth, colourful, noisy; its class is its hue."""
    y, x = np.mgrid[:40, :56] / 40
    waves = np.sin(3 * x * random.uniform(0.5, 2)) + np.cos(3 * y * random.uniform(0.5, 2))
    colors = 128 + 60 * np.sin(2 * np.pi * (hue + np.arange(3)) / 3)
    pixels = colors + 25 * waves[..., None] + random.normal(0, 8, (40, 56, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def write_photos(root, classes, count):
    """Writes so many classes of so many photos each into a folder; returns it."""
    random = np.random.default_rng(0)
    for k in range(classes):
        (root / f"class{k}").mkdir()
        for i in range(count):
            photo(random, k / 2).save(root / f"class{k}" / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of six classes with forty images each, one of them twice, and a list of pairs."""
    root = write_photos(tmp_path_factory.mktemp("photos"), 6, 40)
    (root / "class0" / "copy.png").write_bytes((root / "class0" / "4.png").read_bytes())
    names = [f"class{k}/{i}.png" for k in range(6) for i in range(0, 40, 4)]
    lines = [f"{a},{b},{int(a[:6] == b[:6])}" for a in names for b in names]
    (root / "given.csv").write_text("\n".join(["image1,image2,label", *lines]))
    return root


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A set of tensorflow_datasets with two splits, prepared in array_record."""
    import tensorflow_datasets as tfds

    class Toy(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(names=[f"hue{k}" for k in range(6)]),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, _):
            return {"train": self._generate_examples(40), "test": self._generate_examples(20)}

        def _generate_examples(self, count):
            random = np.random.default_rng(count)
            for i in range(count):
                file = io.BytesIO()
                photo(random, i % 6 / 2).save(file, "PNG")
                yield i, {"image": file.getvalue(), "label": i % 6}

    folder = tmp_path_factory.mktemp("tfds")
    Toy(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder / "toy" / "1.0.0"


def encoder_shapes(config):
    shapes = variable_shapes(create_model(config), config)
    return {kind: tree["encoder"] for kind, tree in shapes.items()}


def tiny_file(path, seed):
    """A file that fits the encoder of `tiny_config`."""
    variables = encoder_shapes(tiny_config())
    rng = np.random.default_rng(seed)
    arrays = {}
    for kind, tree in variables.items():
        for key, leaf in settings.flatten(tree).items():
            array = rng.uniform(0.1, 1, leaf.shape).astype(np.float32)
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
            name = pretrained.torch_name((kind, *key.split(".")))
            arrays[name] = np.ascontiguousarray(array)
    save_file(arrays, path)
    return arrays
