"""How many pairs a second each config draws, on one core and on all.

    python benchmarks/data.py --batch_size=4096 --rounds=5

Beside them the limit, a plain copy of the same bytes, and where this began: the founding data drawn
by a loop over every pixel. All in turns in one process; medians. The table is what a listed space
keeps in memory; beside it no more than 2 * workers + 2 batches are held at a time.
"""

import importlib
import os
import random
import statistics
import sys
import time
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
from absl import app, flags

sys.path[0] = str(Path(__file__).parent.parent)  # in place of benchmarks/, which has a data.py too

import data
import runtime

BATCH_SIZE = flags.DEFINE_integer("batch_size", 4096, "Pairs a batch.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each.")
CONFIGS = ("default", "everywhere", "rotation", "heldout", "unseen", "identity")
SECONDS = 0.5  # a turn


def main(_):
    runtime.keep_freed_memory()
    workers = os.cpu_count()
    rates = {"pixel loop": [], "copy": []}
    for _ in range(ROUNDS.value):
        rates["pixel loop"].append(per_second(loop_over_pixels, 1))
    batch = data.make_batch(config_of("default"), "train", 0)
    for _ in range(ROUNDS.value):
        rates["copy"].append(per_second(lambda: [x.copy() for x in batch], BATCH_SIZE.value))
    for name, one in rates.items():
        print(f"{name:<12}{statistics.median(one):>12,.0f} pairs/s")
    print(f"{'config':<12}{'one core':>12}{f'{workers} cores':>12}{'/ copy':>8}{'table, MB':>11}")
    for name in CONFIGS:
        one, every = measure(config_of(name), workers)
        listed = data.enumerate_images(config_of(name).data, "train")
        size = 0 if listed is None else listed[0].nbytes / 1e6
        share = one / statistics.median(rates["copy"])
        print(f"{name:<12}{one:>12,.0f}{every:>12,.0f}{share:>8.3f}{size:>11.1f}")


def config_of(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    config.batch_size = BATCH_SIZE.value
    return config


def measure(config, workers):
    """Pairs per second, medians: (in this thread, by threads as train.py draws them)."""

    def draw(step):
        return data.make_batch(config, "train", step)

    one, every, steps = [], [], count()
    for _ in range(ROUNDS.value):
        one.append(per_second(lambda: draw(next(steps)), BATCH_SIZE.value))
        ahead = data.prefetch(draw, count(), workers)
        for _ in range(3 * workers):  # more than was drawn before the clock starts
            next(ahead)
        every.append(per_second(partial(next, ahead), BATCH_SIZE.value))
        ahead.close()
    return statistics.median(one), statistics.median(every)


def per_second(function, pairs):
    function()
    began, calls = time.perf_counter(), 0
    while (seconds := time.perf_counter() - began) < SECONDS:
        function()
        calls += 1
    return calls * pairs / seconds


def loop_over_pixels():
    """A pair of the founding data, pixel by pixel."""
    images, shapes = [], []
    for _ in range(2):
        image = np.zeros((32, 32, 1), np.uint8)
        shape = random.choice(("circle", "square"))
        size = random.randrange(4 if shape == "circle" else 2, 15)
        row, column = random.randrange(15, 17), random.randrange(15, 17)
        for i in range(32):
            for j in range(32):
                if shape == "circle":
                    lit = (i - row) ** 2 + (j - column) ** 2 < size**2
                else:
                    lit = -size <= i - row < size and -size <= j - column < size
                if lit:
                    image[i, j] = 255
        images.append(image)
        shapes.append(shape)
    return *images, shapes[0] == shapes[1]


if __name__ == "__main__":
    app.run(main)
