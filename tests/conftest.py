"""For every test: four CPU devices, no rank promotion, warnings are errors (pyproject.toml)."""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import pytest

from configs import default

CACHE = {  # of compiled programs, for tests and the programs that they start
    "jax_compilation_cache_dir": tempfile.mkdtemp(),
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}
atexit.register(shutil.rmtree, CACHE["jax_compilation_cache_dir"])
ENVIRONMENT = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
ENVIRONMENT |= {name.upper(): str(value) for name, value in CACHE.items()}
ROOT = Path(__file__).parent.parent

for name, value in CACHE.items():
    jax.config.update(name, value)
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")

TINY = {
    "batch_size": 8,
    "optimizer.nominal_batch_size": 8,
    "num_steps": 8,
    "log_every_steps": 2,
    "eval_every_steps": 4,
    "model.stage_sizes": (1, 1),
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


def run(program, *options, cwd=None, devices=1):
    """Runs a program of the project as a user would; returns the finished process."""
    command = [sys.executable, str(ROOT / program), *options]
    environment = ENVIRONMENT | {"JAX_NUM_CPU_DEVICES": str(devices)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def tiny_options(**changes):
    """TINY as command-line options."""
    values = TINY | {key.replace("__", "."): value for key, value in changes.items()}
    return [f"--config.{key}={value}" for key, value in values.items()]


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory):
    """A run of train.py from beginning to end: (workdir, what it printed)."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    finished = run("train.py", f"--workdir={workdir}", *tiny_options())
    assert finished.returncode == 0, finished.stderr
    return workdir, finished.stdout
