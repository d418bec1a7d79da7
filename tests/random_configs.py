"""Random command lines, valid and not: train.py must take each, or answer in one line within 1 s.

    python tests/random_configs.py --count=2000

A command is read by a fork of this process, which has imported train.py. What
is refused must leave no workdir. So many of those taken, --train, are then trained for two steps
with a small batch, and must end with exit code 0 or one line.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from forks import in_fork

import command_line
import hosts
import settings
import train
from configs import default

ODD = ("nan", "inf", "-inf", "-1", "0", "1e400", "10**9", "9" * 30, "", " ", "ä✓", "None")
ODD += ("[]", "()", "(1,)", "1,2,3", "True", "adam", "../..", "a" * 5000, "1.5", "1e-300", "2", "7")
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("[a-z]*.py"))
WORDS = ("circle", "square", "star", "blob", "ring", "class", "identity", "cnn", "resnet18")
WORDS += ("cosine", "euclidean", "mlp", "disjoint", "classes", "shared", "inside", "sgd")
WORDS += ("float32", "bfloat16", "shapes", "tfds")


def random_value(chance, known):
    """A value for a key, as text: often of the right type, else anything."""
    kind = chance.random()
    if kind < 0.35:
        return chance.choice(ODD)
    if kind < 0.5:
        return chance.choice(WORDS)
    if isinstance(known, bool):
        return str(chance.random() < 0.5)
    if isinstance(known, int):
        return str(chance.choice((1, 2, 3, 4, 8, 16, 31, 32, 64, 100, 1000, 10**6, 10**12)))
    if isinstance(known, float):
        return str(chance.choice((0.0, 1e-5, 0.1, 0.5, 0.9, 1.0, 3.7, 180.0, 1e6, 1e30)))
    if isinstance(known, tuple):
        values = WORDS if known and isinstance(known[0], str) else (1, 2, 4, 10, 255, 10**9)
        return "({},)".format(
            ",".join(repr(chance.choice(values)) for _ in range(chance.randint(1, 4)))
        )
    return chance.choice(WORDS)


def random_command(chance):
    """The options of a command line."""
    name = chance.choice(CONFIGS) if chance.random() < 0.95 else chance.choice(ODD)
    known = settings.flatten(default.get_config().to_dict())
    options = [f"--config={ROOT}/configs/{name}.py"]
    for _ in range(chance.randint(0, 4)):
        key = chance.choice(sorted(known))
        value = random_value(chance, known[key])
        if chance.random() < 0.05:
            key = chance.choice(("data", "model.", key + "x", "ä", "__class__", "seed.x"))
        options.append(f"--config.{key}={value}")
    if chance.random() < 0.05:
        options.append(chance.choice(("--unknown", "stray", "--workdir=", "--config", "-")))
    return options


def answer(options, folder):
    """(exit code, what was printed, seconds) of train.py's first part."""

    def read(options):
        hosts.read_cluster(options)
        train.read_command(options)

    def start():
        sys.argv = [str(ROOT / "train.py"), f"--workdir={folder / 'run'}", *options]
        command_line.run(train.define_flags, read)

    code, output, errors, seconds = in_fork(start)  # a processor's: the machine may be busy
    return code, output + errors, seconds


def judge(code, text, seconds, workdir):
    """What is wrong with an answer, or None."""
    if workdir.exists():
        return "a workdir was left"
    if code == 0:
        return None
    lines = [line for line in text.splitlines() if not line.startswith(("warning: ", "fetching "))]
    if len(lines) != 1 or not lines[0].startswith("error: "):
        return "not one line"
    most = 3 if "tensorflow_datasets" in text else 1  # which takes a second to load
    return f"{seconds:.1f} s" if seconds > most else None


def train_briefly(options, folder):
    """What is wrong with two steps of training, or None."""
    small = ["batch_size=4", "optimizer.nominal_batch_size=4", "num_steps=2", "eval.num_pairs=8"]
    small += ["model.stage_sizes=(1,)", "model.width=32", "data.num_identities=10"]
    options = [*options, *(f"--config.{option}" for option in small), f"--workdir={folder / 'run'}"]
    command = [sys.executable, str(ROOT / "train.py"), *options]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    lines = [line for line in finished.stderr.splitlines() if not line.startswith("warning: ")]
    if finished.returncode == 0 or (len(lines) == 1 and lines[0].startswith("error: ")):
        return None
    return finished.stderr[-2000:] or f"exit code {finished.returncode}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--train", type=int, default=0)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32)
    arguments = parser.parse_args()
    chance, found, taken = random.Random(arguments.seed), Counter(), []
    os.environ |= {"HF_HUB_OFFLINE": "1"}
    print(f"seed {arguments.seed}", flush=True)
    longest = 0
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        for _ in range(arguments.count):
            options = random_command(chance)
            code, text, seconds = answer(options, Path(name))
            fault = judge(code, text, seconds, Path(name) / "run")
            if fault:
                print(f"{fault}: {options}\n{text[:1000]}", flush=True)
            found["faults" if fault else "taken" if code == 0 else "refused in one line"] += 1
            longest = max(longest, seconds * (code != 0))
            taken += [options] if code == 0 else []
        for options in chance.sample(taken, min(arguments.train, len(taken))):
            with tempfile.TemporaryDirectory() as folder:
                fault = train_briefly(options, Path(folder))
            if fault:
                print(f"{options}\n{fault}", flush=True)
            found["faults" if fault else "trained"] += 1
    print(", ".join(f"{count:,} {kind}" for kind, count in sorted(found.items())))
    print(f"longest refusal {longest:.2f} s")
    return 1 if found["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
