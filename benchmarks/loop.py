"""The training loop against the bare compiled step, in turns in one process.

    python benchmarks/loop.py --config=configs/default.py --rounds=5 --steps=40

Bare: one step a call, on batches that are ready on the device, waiting once at the end. Loop:
`train.train`, which draws and places the batches, reads the metrics and counts pairs per second, in
calls of `steps_per_execution` steps.
Call it twice and take the second, as of step.py. Checkpoints, in the folder for temporary files:
how long one keeps the loop waiting, and which part that is of the time between two.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags

sys.path.insert(0, str(Path(__file__).parent.parent))


import checkpoint
import data
import runtime
import settings
import train
import train_step
from configs import default
from model import create_model

CONFIG = config_flags.DEFINE_config_file("config", default.__file__, "What to train.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each.")
STEPS = flags.DEFINE_integer("steps", 40, "Steps a turn.")


def main(_):
    runtime.prepare(None)
    runtime.keep_freed_memory()
    config = CONFIG.value
    data.check_splits(config)
    config.num_steps = STEPS.value
    settings.check(config)
    config = train.resolve(config)
    model, (optimizer, _) = create_model(config), train_step.make_optimizer(config)
    state = train_step.create_state(config, model, optimizer)
    train_steps = train_step.make_train_steps(config, model, optimizer)
    batches = [train_step.to_devices([data.make_batch(config, "train", step)]) for step in range(8)]
    length = train.call_length(config, 0)
    program = train_step.compile_steps(config, train_steps, state, length)
    step = train_step.compile_steps(config, train_steps, state)
    bare, loop = [], []
    for turn in range(ROUNDS.value + 1):
        rates = time_bare(config, step, state, batches), time_loop(config, program, state)
        if turn:  # the first one warms up
            bare.append(rates[0])
            loop.append(rates[1])
    ratio = statistics.median(b / a for a, b in zip(bare, loop, strict=True))
    print(f"{jax.device_count()} x {jax.devices()[0].device_kind}, batch {config.batch_size}")
    print(
        f"bare {statistics.median(bare):,.0f} pairs/s, loop {statistics.median(loop):,.0f} pairs/s"
    )
    print(f"loop / bare: {ratio:.3f} (median of {ROUNDS.value} turns)")
    blocked = time_checkpoint(config, state)
    between = config.eval_every_steps * config.batch_size / statistics.median(loop)
    print(f"a checkpoint keeps it waiting for {1000 * blocked:.0f} ms, {blocked / between:.1%}")


def time_bare(config, step, state, batches):
    state = train_step.replicate(state)
    jax.block_until_ready(state)
    began = time.perf_counter()
    for index in range(STEPS.value):
        state, metrics = step(state, batches[index % len(batches)])
    jax.block_until_ready(metrics)
    return STEPS.value * config.batch_size / (time.perf_counter() - began)


def time_loop(config, program, state):
    done, seconds = 0, 0
    for until, _, metrics in train.train(config, program, state):
        seconds += (until - done) * config.batch_size / metrics["pairs_per_second"]
        done = until
    return done * config.batch_size / seconds


def time_checkpoint(config, state):
    """Seconds that the loop waits for a checkpoint while nothing else is being written: median."""
    state, times = train_step.replicate(state), []
    with (
        tempfile.TemporaryDirectory() as folder,
        checkpoint.Saver(Path(folder), **config.checkpoint) as saver,
    ):
        for step in range(ROUNDS.value + 1):
            began = time.perf_counter()
            host_state = train_step.to_host(state).replace(step=np.int32(step))
            saver.save(host_state, {"loss": 1.0})
            times.append(time.perf_counter() - began)
            saver.wait()
    return statistics.median(times[1:])  # the first one warms up


if __name__ == "__main__":
    app.run(main)
