"""The training step and the evaluation against PyTorch, or against other versions, in turns.

    pip install -r benchmarks/requirements.txt
    python benchmarks/step.py --config=configs/default.py --rounds=5 --steps=20
    python benchmarks/step.py --config=configs/light.py --config.batch_size=512
    python benchmarks/step.py --config=configs/light.py --python=.venv-3.13/bin/python

Two processes, of which one works at a time: A B A B. Both start with the same weights and must come
to the same loss, gradient norm and answers first. Batches lie ready on the device. Also the time
from the start of the process until it is ready for its first step, and the most memory that there
was, imports included.

With --python the second process is this project again, under another Python with its packages.

A resnet in PyTorch has the weights that meet nothing but padding, as torchvision's; --nowhole
leaves them out there too, as model.py does.

JAX's programs are kept where train.py keeps them. Call it twice and take the second: in a process
that has compiled a step takes a tenth longer, for compiling leaves memory in pieces.
"""

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import app, flags
from ml_collections import config_flags

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import data
import pretrained
import settings
from configs import default

CONFIG = config_flags.DEFINE_config_file("config", default.__file__, "What to train.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each.")
STEPS = flags.DEFINE_integer("steps", 20, "Steps a turn.")
COMPILED = flags.DEFINE_bool("compiled", False, "Whether PyTorch's network is compiled.")
KEPT = flags.DEFINE_bool("kept", True, "Whether glibc keeps freed memory for PyTorch too.")
WHOLE = flags.DEFINE_bool("whole", True, "Whether PyTorch has the weights that only meet padding.")
PYTHON = flags.DEFINE_string("python", None, "Another Python, instead of PyTorch.")
WORKER = flags.DEFINE_string("worker", None, "For the program itself.")
BATCHES = 8
# What runtime.keep_freed_memory sets.
KEEP = {"MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_MMAP_MAX_": "0", "MALLOC_ARENA_MAX": "1"}


def main(_):
    config = CONFIG.value
    settings.check(config)
    if config.model.head not in ("mlp", "cosine") or config.optimizer.name != "adam":
        sys.exit("measured are networks with the mlp or the cosine head, by adam")
    if WORKER.value:
        work(config, *WORKER.value.split(":"))
        return
    with tempfile.TemporaryDirectory() as folder:
        times, workers = {}, {}
        for name in ("ours", "theirs"):  # in this order: ours writes the weights
            began = time.perf_counter()
            workers[name] = start(name, folder)
            times["start", name] = [time.perf_counter() - began]
        first = {name: json.loads(ask(worker, "check")) for name, worker in workers.items()}
        check(first, config)
        times |= {(what, name): [] for what in ("steps", "evaluate") for name in workers}
        for turn in range(ROUNDS.value + 1):
            for (what, name), found in times.items():
                if what != "start":
                    found += [float(ask(workers[name], what))] if turn else []  # the first warms up
                    time.sleep(0.3)  # threads of the other one go to sleep
        memory = {name: int(ask(worker, "memory")) for name, worker in workers.items()}
        for worker in workers.values():
            worker.communicate()
    report(config, first, times, memory)


def report(config, first, times, memory):
    model, names = config.model, [first[name]["name"] for name in ("ours", "theirs")]
    print(
        f"{first['ours']['device']}, {model.encoder} with {model.head}, "
        f"{config.data.image_size} pixels, batch {config.batch_size}, {first['ours']['dtype']}; "
        f"{' against '.join(names)}{', compiled' if COMPILED.value else ''}"
        f"{', memory kept' if KEPT.value else ''}"
        f"{'' if WHOLE.value else ', without the weights that only meet padding'}"
    )
    for what, label, unit in (("start", "start", 1), ("steps", "step", STEPS.value),
                              ("evaluate", "evaluation", 1)):  # fmt: skip
        found = [1000 * statistics.median(times[what, name]) / unit for name in ("ours", "theirs")]
        print_row(label, "ms", *found)
    print_row("memory", "MB", *(memory[name] / 1e6 for name in ("ours", "theirs")))


def print_row(label, unit, ours, theirs):
    print(f"{label:<12} ours {ours:8.1f} {unit}   theirs {theirs:8.1f} {unit}   "
          f"theirs / ours {theirs / ours:.2f}")  # fmt: skip


def check(first, config):
    """Ends the program unless both compute the same.

    The gradient only to 1 %: a ReLU whose input is nearer to 0 than rounding passes its gradient in
    one and not in the other. In `default` one or two of layer4's do; its norm differs by 0.2 %.
    """
    bounds = {"loss": 1e-3, "gradient_norm": 1e-2, "answers": 1e-3}
    for key, bound in bounds.items():
        bound = bound if first["ours"]["dtype"] == "float32" else 1e-1
        ours, theirs = (np.array(first[name][key]) for name in ("ours", "theirs"))
        if not np.allclose(ours, theirs, rtol=bound, atol=bound):
            sys.exit(f"{key} differ: {ours} and {theirs}")


def start(name, folder):
    python = PYTHON.value if name == "theirs" and PYTHON.value else sys.executable
    command = [python, *sys.argv, f"--worker={name}:{folder}"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    worker = subprocess.Popen(command, env=os.environ | (KEEP if KEPT.value else {}), **pipes)
    ask(worker, "ready")
    return worker


def ask(worker, question):
    worker.stdin.write(question + "\n")
    worker.stdin.flush()
    return worker.stdout.readline()


def work(config, name, folder):
    """Answers the questions on stdin, a line each."""
    weights = Path(folder, f"weights-of-{name}.npz" if PYTHON.value else "weights.npz")
    prepare = with_jax if name == "ours" or PYTHON.value else with_torch
    about, step, evaluate, place = prepare(config, weights)
    batches = [place(data.make_batch(config, "train", i)) for i in range(BATCHES)]
    for question in sys.stdin:
        began = time.perf_counter()
        if question == "check\n":
            answers = np.float64(evaluate()[:5]).tolist()
            loss, norm = step(batches[0])
            print(json.dumps(about | {"answers": answers, "loss": loss, "gradient_norm": norm}))
        elif question == "memory\n":
            print(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1] + "000")
        elif question == "steps\n":
            for i in range(STEPS.value):
                found = step(batches[i % BATCHES], wait=i == STEPS.value - 1)
            assert np.isfinite(found).all()
            print(time.perf_counter() - began)
        elif question == "evaluate\n":
            evaluate()
            print(time.perf_counter() - began)
        else:
            print("ready")
        sys.stdout.flush()


def with_jax(config, weights):
    import jax
    from flax.traverse_util import flatten_dict

    import runtime
    import train
    import train_step
    from model import create_model
    from scoring import make_scorer

    runtime.prepare(None)
    runtime.keep_freed_memory()
    config = train.resolve(config)
    model, (optimizer, _) = create_model(config), train_step.make_optimizer(config)
    state = train_step.create_state(config, model, optimizer)
    named = {
        pretrained.torch_name(key): leaf for key, leaf in flatten_dict(state.variables).items()
    }
    np.savez(weights, **{name: to_torch(array) for name, array in named.items()})
    train_steps = train_step.make_train_steps(config, model, optimizer)
    compiled = train_step.compile_steps(config, train_steps, state)
    held = [train_step.replicate(state)]
    score = make_scorer(model)
    pairs = validation_pairs(config)

    def step(batch, wait=True):
        held[0], metrics = compiled(held[0], batch)
        if wait:
            return metrics["loss"].item() / config.batch_size, metrics["gradient_norm"].item()

    def place(batch):
        return train_step.to_devices([batch])

    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} cores"
    name = f"jax {jax.__version__} on Python {platform.python_version()}"
    about = {"name": name, "device": device, "dtype": config.model.dtype}
    return about, step, lambda: score(state.variables, pairs), place


def with_torch(config, weights):
    import torch
    import torch_siamese

    if config.model.dtype == "auto":
        config.model.dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    arrays = dict(np.load(weights))
    if WHOLE.value:
        arrays = {name: whole(name, array) for name, array in arrays.items()}
    train_step, gradient_norm, score, place = torch_siamese.prepare(config, arrays, COMPILED.value)
    pairs = validation_pairs(config)

    def step(batch, wait=True):
        loss = train_step(*batch)
        if wait:
            return loss.item(), gradient_norm().item()

    return {"name": f"torch {torch.__version__}"}, step, lambda: score(pairs), place


def validation_pairs(config):
    listed = data.enumerate_pairs(config.data, "validation", 10**6)
    return listed or data.sample_pairs(config, "validation", config.eval.num_pairs)


def to_torch(array):
    """Kernels [height, width, in, out] and [in, out] as PyTorch has them."""
    order = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim, range(array.ndim))
    return np.ascontiguousarray(array.transpose(order))


def whole(name, array):
    """Kernels that `model.taps` cut, 3x3 again."""
    if ".conv" not in name or array.shape[2] >= 3:
        return array
    missing = (1, 2 - array.shape[2])
    return np.pad(array, ((0, 0), (0, 0), missing, missing))


if __name__ == "__main__":
    app.run(main)
