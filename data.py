"""Pairs of synthetic pictures, drawn with NumPy alone.

    batch = make_batch(config, "train", step)

A batch is a pure function of (config, split, step): there is no iterator state to save, and any
batch of any run can be drawn again. An image is a row of latents (shape, size, row, column), from
which `render` draws it; `enumerate_images` lists every row that can occur, with its probability.
"""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

SPLITS = ("train", "validation", "test")


class Batch(NamedTuple):
    """Pairs of images; under pmap every field has a leading axis of devices."""

    image1: np.ndarray  # uint8 [batch, height, width, channels], 0 ... 255
    image2: np.ndarray  # the same
    label: np.ndarray  # float32 [batch], 1 if both show the same shape, else 0


class Latents(NamedTuple):
    """What there is to know of n images."""

    shape: np.ndarray  # int [n], index into config.data.shapes
    size: np.ndarray  # int [n], pixels: radius of a circle, half the side of a square
    row: np.ndarray  # int [n], pixels: of the centre
    column: np.ndarray  # int [n]


def make_batch(config, split, step):
    """Draws the batch of one step: independent images, each shape equally likely."""
    rng = random_generator(config.seed, split, step)
    latents = draw_latents(config.data, rng, 2 * config.batch_size)
    image1, image2 = np.split(render(config.data, latents), 2)
    shape1, shape2 = np.split(latents.shape, 2)
    return Batch(image1, image2, (shape1 == shape2).astype(np.float32))


def random_generator(seed, split, step):
    """One stream of random numbers per (seed, split, step).

    Philox is keyed by seed and split. The step is the top word of its counter: in a lower one the
    streams of neighbouring steps would overlap.
    """
    key = [seed, SPLITS.index(split)]
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, step]))


def draw_latents(data, rng, n):
    """Draws n rows: a shape, then a size and a centre uniform over what that shape allows."""
    shape = rng.integers(len(data.shapes), size=n)
    size = rng.integers(np.array(data.min_sizes)[shape], data.max_size)
    row, column = rng.integers(data.max_size, data.image_size - data.max_size, size=(2, n))
    return Latents(shape, size, row, column)


def enumerate_images(data):
    """Every image that can be drawn.

    Returns (images uint8 [n, height, width, channels], shapes int [n], probabilities float64 [n],
    which sum to 1).
    """
    centres = np.arange(data.max_size, data.image_size - data.max_size)
    grids = [
        np.stack(np.meshgrid(shape, np.arange(low, data.max_size), centres, centres, indexing="ij"))
        for shape, low in enumerate(data.min_sizes)
    ]
    rows = [grid.reshape(4, -1) for grid in grids]
    probabilities = [np.full(row.shape[1], 1 / len(rows) / row.shape[1]) for row in rows]
    latents = Latents(*np.concatenate(rows, axis=1))
    return render(data, latents), latents.shape, np.concatenate(probabilities)


def count_images(data):
    """The number of images that `enumerate_images` would return, without drawing them."""
    centres = (data.image_size - 2 * data.max_size) ** 2
    return sum((data.max_size - low) * centres for low in data.min_sizes)


def render(data, latents):
    """Draws latents: uint8 [n, image_size, image_size, 1], 0 the ground and 255 the shape."""
    pixels = np.arange(data.image_size, dtype=np.int32)
    size = latents.size.astype(np.int32)[:, None, None]
    down = pixels[:, None] - latents.row.astype(np.int32)[:, None, None]
    right = pixels[None, :] - latents.column.astype(np.int32)[:, None, None]
    inside = np.empty((len(size), data.image_size, data.image_size), bool)
    for index, name in enumerate(data.shapes):
        chosen = latents.shape == index
        inside[chosen] = SHAPES[name](down[chosen], right[chosen], size[chosen])
    return np.where(inside, np.uint8(255), np.uint8(0))[..., None]


# Which pixels a shape lights: of the offsets (down, right) from its centre and its size.
SHAPES = {
    "circle": lambda down, right, radius: down**2 + right**2 < radius**2,
    "square": lambda down, right, half: (
        (-half <= down) & (down < half) & (-half <= right) & (right < half)
    ),
}


def prefetch(function, steps, depth=2):
    """Yields function(step) of each step, computed by a background thread up to `depth` ahead.

    An error in the function is raised here, at the step it belongs to.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    pending = deque()
    try:
        for step in steps:
            pending.append(pool.submit(function, step))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
