"""Pairs of synthetic pictures, drawn with NumPy alone.

    batch = make_batch(config, "train", step)

A batch is a pure function of (config, split, step): there is no iterator state to save, and any
batch of any run can be drawn again. An image is a row of latents (shape, size, row, column). The
rows that can occur can be listed, each with its probability: `enumerate_images` draws all of them,
`make_batch` some.
"""

import json
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

SPLITS = ("train", "validation", "test")
SHARES = (0.8, 0.1, 0.1)  # of the images, where the splits are disjoint
TABLE_BYTES = 2**28  # a space whose images fit is drawn once, and batches are looked up in it


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


class Space(NamedTuple):
    """The images of a split, sorted by shape."""

    images: np.ndarray  # uint8 [n, height, width, channels]
    shapes: np.ndarray  # int [n], index into config.data.shapes
    probabilities: np.ndarray  # float64 [n], of each image given its shape
    cumulative: np.ndarray  # float64 [n], their sums, each shape's from its index to the next
    first: np.ndarray  # int [shapes + 1], where the images of each shape begin


def make_batch(config, split, step):
    """Draws the batch of one step: independent images, each shape equally likely."""
    rng = random_generator(config.seed, split, step)
    shapes = rng.integers(len(config.data.shapes), size=2 * config.batch_size)
    if space := list_images(config.data.to_json(), split):
        images = look_up(space, rng, shapes)
    else:
        images = draw_until_inside(config.data, split, rng, shapes)
    image1, image2 = np.split(images, 2)
    shape1, shape2 = np.split(shapes, 2)
    return Batch(image1, image2, (shape1 == shape2).astype(np.float32))


def random_generator(seed, split, step):
    """One stream of random numbers per (seed, split, step).

    Philox is keyed by seed and split. The step is the top word of its counter: in a lower one the
    streams of neighbouring steps would overlap.
    """
    key = [seed, SPLITS.index(split)]
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, step]))


def look_up(space, rng, shapes):
    """Draws images of these shapes from the list of all images of a split."""
    rows = np.searchsorted(space.cumulative, shapes + rng.random(len(shapes)), "right")
    return space.images[np.minimum(rows, space.first[shapes + 1] - 1)]  # a sum may fall short of 1


def draw_until_inside(data, split, rng, shapes):
    """Draws images of these shapes anew, until each is one of the split's."""
    images = np.empty((len(shapes), data.image_size, data.image_size, 1), np.uint8)
    missing = np.arange(len(shapes))
    while len(missing):
        images[missing] = render(data, draw_latents(data, rng, shapes[missing]))
        missing = missing[~in_split(data, split, images[missing])]
    return images


def draw_latents(data, rng, shapes):
    """A size uniform over what the shape allows, then a centre uniform over what the size does."""
    sizes = rng.integers(np.array(data.min_sizes)[shapes], data.max_size)
    lowest, highest = centres(data, shapes, sizes)
    row, column = rng.integers(lowest, highest + 1, size=(2, len(shapes)))
    return Latents(shapes, sizes, row, column)


def centres(data, shapes, sizes):
    """The lowest and the highest coordinate of a centre, in pixels, on either axis."""
    if data.placement == "margin":
        return data.max_size, data.image_size - data.max_size - 1
    # A circle lights the pixels up to size - 1 on both sides of its centre, a square one more
    # above and to the left.
    above = np.where(np.array(data.shapes)[shapes] == "square", sizes, sizes - 1)
    return above, data.image_size - sizes


def enumerate_images(data, split):
    """Every image that a split can draw.

    Returns (images uint8 [n, height, width, channels], shapes int [n], probabilities float64 [n],
    which sum to 1), or None where the images of all splits take more than TABLE_BYTES.
    """
    space = list_images(data.to_json(), split)
    return space and (space.images, space.shapes, space.probabilities / len(data.shapes))


def count_images(data):
    """How many images there are in all splits together, without drawing them."""
    sizes = [np.arange(low, data.max_size) for low in data.min_sizes]
    shapes = np.repeat(np.arange(len(sizes)), [len(s) for s in sizes])
    lowest, highest = centres(data, shapes, np.concatenate(sizes))
    return int(np.sum(np.broadcast_to(highest - lowest + 1, len(shapes)) ** 2))


@lru_cache(maxsize=8)
def list_images(data_json, split):
    """Lists a Space, None where it takes more than TABLE_BYTES.

    Remembered, because every batch is looked up in it.
    """
    data = SimpleNamespace(**json.loads(data_json))
    if count_images(data) * data.image_size**2 > TABLE_BYTES:
        return None
    grids = [
        latent_grid(data, shape, size)
        for shape, low in enumerate(data.min_sizes)
        for size in range(low, data.max_size)
    ]
    shapes, *_ = latents = Latents(*np.concatenate(grids, axis=1))
    probabilities = np.concatenate([np.full(grid.shape[1], 1 / grid.shape[1]) for grid in grids])
    images = render(data, latents)
    kept = in_split(data, split, images)
    images, shapes, probabilities = images[kept], shapes[kept], probabilities[kept]
    probabilities /= np.bincount(shapes, probabilities)[shapes]
    first = np.searchsorted(shapes, np.arange(len(data.shapes) + 1))
    sums = np.cumsum(probabilities)
    cumulative = shapes + sums - np.concatenate([[0], sums])[first[shapes]]
    return Space(images, shapes, probabilities, cumulative, first)


def latent_grid(data, shape, size):
    """Rows of Latents, int [4, n]: one shape of one size at each of its centres."""
    lowest, highest = (int(c) for c in centres(data, np.array(shape), np.array(size)))
    axis = np.arange(lowest, highest + 1)
    row, column = np.meshgrid(axis, axis, indexing="ij")
    return np.stack(
        [np.full(row.size, shape), np.full(row.size, size), row.ravel(), column.ravel()]
    )


def in_split(data, split, images):
    """Which images belong to a split: bool [n].

    Where splits are disjoint a hash of the pixels decides, so that equal images, however they came
    about, are on the same side.
    """
    if data.split == "shared":
        return np.ones(len(images), bool)
    bounds = np.cumsum((0, *SHARES))[SPLITS.index(split) :][:2]
    position = hash_pixels(images)
    return (bounds[0] <= position) & (position < bounds[1])


def hash_pixels(images):
    """A number from 0 to 1 for each image, a function of its pixels that looks like chance."""
    flat = images.reshape(len(images), -1)
    words = np.pad(flat, ((0, 0), (0, -flat.shape[1] % 8))).view("<u8")
    factors = np.random.Generator(np.random.Philox(key=0)).integers(
        2**64, size=words.shape[1], dtype=np.uint64
    )
    mixed = (words * (factors | np.uint64(1))).sum(axis=1, dtype=np.uint64)  # modulo 2**64
    mixed ^= mixed >> np.uint64(32)
    mixed *= np.uint64(0x9E3779B97F4A7C15)
    return (mixed >> np.uint64(11)) / 2.0**53


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
