"""Weak and strong scaling over devices and processes of this machine, and what more would give.

    python benchmarks/scale.py --config=configs/light.py --shapes=1x1,1x2,2x1,4x1

A shape is processes x devices of each; the first is 1x1. Alone: a process for each device, all at
once, each with its part of the batch and none knowing of the others; what is more than that is
communication. Input: drawing and placing one batch, which the loop does beside the step. Message: a
sum of 64 numbers over the devices, with nothing else to do.
"""

import json
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

STEPS = 30


def main():
    values = [one for one in sys.argv[1:] if not one.startswith("--shapes=")]
    shapes = [one[9:] for one in sys.argv[1:] if one.startswith("--shapes=")] or ["1x1,1x2,2x1,4x1"]
    print(f"{'scaling':<8}{'shape':>6}{'batch':>7}{'ms/step':>9}{'pairs/s':>9}{'efficiency':>11}"
          f"{'alone ms':>10}{'communication':>15}{'input ms':>10}{'messages':>10}"
          f"{'message ms':>12}")  # fmt: skip
    first = None
    for kind in ("weak", "strong"):
        one = None
        for shape in shapes[0].split(","):
            processes, devices = map(int, shape.split("x"))
            count = processes * devices
            batch = 32 * count if kind == "weak" else 32
            found = start(processes, devices, batch, processes > 1, values)
            alone = start(count, 1, batch // count, False, values)
            rate = 1000 * batch / found["ms"]
            one, first = one or rate, first or found
            print(f"{kind:<8}{shape:>6}{batch:>7}{found['ms']:>9.1f}{rate:>9,.0f}"
                  f"{rate / one / count:>11.0%}{alone['ms']:>10.1f}"
                  f"{max(0, 1 - alone['ms'] / found['ms']):>15.0%}{found['input']:>10.1f}"
                  f"{found['messages']:>10}{found['message']:>12.2f}", flush=True)  # fmt: skip
    on_paper(first["ms"] / 1000, first["bytes"], found["messages"])


def on_paper(step, size, messages):
    """A ring moves 2 (n - 1) / n of the gradient over each link; a message waits besides."""
    print(f"\nOn paper: step {1000 * step:.1f} ms with 32 pairs a device, gradient {size:,} bytes, "
          f"{messages} messages a step (the gradient, metrics, BatchNorm)")  # fmt: skip
    for name, n, width, wait in (
        ("8 GPUs of one host, NVLink 300 GB/s, 10 us a message", 8, 300e9, 1e-5),
        ("32 hosts of one GPU, 100 Gbit/s, 50 us a message", 32, 12.5e9, 5e-5),
    ):
        ring, waits = 2 * (n - 1) / n * size / width, messages * wait
        total = step + ring + waits
        print(f"{name}: {1000 * step:.1f} + {2 * (n - 1)}/{n} x {size / 1e6:.1f} MB / "
              f"{width / 1e9:g} GB/s + {messages} x {1e6 * wait:.0f} us = {1000 * total:.1f} ms; "
              f"{n} x 32 pairs / step = {32 * n / total:,.0f} pairs/s, "
              f"{step / total:.0%} of {n} times one")  # fmt: skip


def start(processes, devices, batch, joined, values):
    """Runs so many of `worker` at once and returns what the slowest measured."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    sizes = [f"--config.{name}={batch}" for name in ("batch_size", "optimizer.nominal_batch_size")]
    options = [*sizes, "--workdir=unused"]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
    command = [sys.executable, __file__, "worker", *values, *options]
    running = []
    for i in range(processes):
        flags = [f"--coordinator={address}", f"--num_processes={processes}", f"--process_id={i}"]
        line = command + flags * joined
        running.append(subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, text=True))
    found = [re.search(r"\{.*\}", process.communicate()[0]) for process in running]
    return max((json.loads(one[0]) for one in found if one), key=lambda one: one["ms"])


def worker():
    """Prints the median milliseconds of a step and of its input, the gradient's bytes, messages."""
    import jax
    import numpy as np
    from jax import lax

    import command_line
    import hosts
    import runtime
    import train
    import train_step
    from model import AXIS, create_model, trained

    options = command_line.parse(train.define_flags)
    config, _ = command_line.read_config(options)
    runtime.prepare(options.cache)
    runtime.keep_freed_memory()
    with hosts.joined(hosts.read_cluster(options), {}):
        config = train.resolve(config)
        model, (optimizer, _) = create_model(config), train_step.make_optimizer(config)
        state = train_step.create_state(config, model, optimizer)
        train_steps = train_step.make_train_steps(config, model, optimizer)
        step = train_step.compile_steps(config, train_steps, state)
        gradient = jax.tree.leaves(trained(config, state.params))
        found = {"bytes": sum(leaf.nbytes for leaf in gradient)}
        found["messages"] = len(re.findall(r" all-reduce(?:-start)?\(", step.as_text()))
        state = train_step.replicate(state)
        times = {"ms": [], "input": []}
        for i in range(STEPS):
            began = time.perf_counter()
            batch = jax.block_until_ready(train_step.to_devices([train_step.own_part(config, i)]))
            drawn = time.perf_counter()
            state, metrics = step(state, batch)
            jax.block_until_ready(metrics)
            times["input"].append(1000 * (drawn - began))
            times["ms"].append(1000 * (time.perf_counter() - drawn))
        ones = np.ones((jax.local_device_count(), 64), np.float32)
        vector = train_step.on_devices(ones, jax.P(AXIS), jax.devices())
        add = jax.jit(jax.shard_map(partial(lax.psum, axis_name=AXIS), mesh=vector.sharding.mesh,
                                    in_specs=jax.P(AXIS), out_specs=jax.P()))  # fmt: skip
        times["message"] = []
        for _ in range(STEPS):
            began = time.perf_counter()
            jax.block_until_ready(add(vector))
            times["message"].append(1000 * (time.perf_counter() - began))
        found |= {name: statistics.median(values[5:]) for name, values in times.items()}
        print(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)  # as command_line.run


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        del sys.argv[1]
        worker()
    else:
        main()
