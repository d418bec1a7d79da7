"""Pairs of images, same or different: drawn from shapes or read from files, with NumPy alone.

    batch = make_batch(config, "train", step)
    python audit.py --config=configs/everywhere.py    # what the data are and what gives them away

A batch is a pure function of (config, split, step): there is no iterator state to save, and any
batch of any run can be drawn again. What a split is drawn from is in `spaces`. A pair is two
classes and then an image of each.
"""

import os
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np

import fingerprint
import images
from errors import UserError, bad_set
from listings import SPLITS
from spaces import ListedImages, Pairs, open_split  # noqa: F401  Pairs: for other files
from splits import split_facts

GROUP_ATTEMPT = 2**33  # beyond those of `spaces`: random numbers of their own


class Batch(NamedTuple):
    """Pairs of images; under pmap fields have leading axes, of devices and of steps."""

    image1: np.ndarray  # uint8 [batch, height, width, channels], 0 ... 255
    image2: np.ndarray  # the same
    label: np.ndarray  # float32 [batch], 1 if both show the same, else 0
    local_classes: np.ndarray  # int32 [batch, 2], see `spaces`; -1 where pairs are given


def make_batch(config, split, step, host=0, hosts=1):
    """Draws the batch of a step: Batch of config.batch_size pairs.

    Of several hosts each draws its own part; the parts in a row are the batch of one host. Raises
    UserError where the split has no such image or pair: `check_splits` finds that at the start. In
    a thread of `prefetch` the error is raised later, to whoever asks for the batch.
    """
    count, turns = config.batch_size // hosts, config.data.turned_classes
    uniform = partial(uniforms, config.seed, split, step, host * count, count)
    space = open_split(config.data, split)
    if config.data.images_per_class:
        classes = group_classes(config, split, step, turns * len(space.class_ids))
        classes = classes[:, host * count : (host + 1) * count]
        pairs = space.draw(uniform, tuple(classes // turns))
        label = classes[0] == classes[1]
    else:
        pairs = space.draw(uniform)
        label, classes = pairs.label, np.full((2, count), -1)
        if pairs.class_ids is not None:
            ids = pairs.class_ids[np.stack([pairs.first, pairs.second])]
            classes = space.class_ids.searchsorted(ids)
    both = pairs.images[pairs.first], pairs.images[pairs.second]
    for shown, of_shown in zip(both, classes, strict=True):
        turn(shown, of_shown % turns)
    return Batch(*both, label.astype(np.float32), classes.T.astype(np.int32))


def group_classes(config, split, step, number):
    """The classes of a batch of P classes with K = data.images_per_class images: int [2, pairs].

    P x K batches (Hermans et al. 2017, arXiv:1703.07737): no class comes twice unless P > number.
    Each K / 2 pairs in a row begin with one class. In every second pair both images have it; in the
    others image 2 is moved on to the next class, so that half of the pairs are "different".
    """
    pairs = config.data.images_per_class // 2  # that begin with one class
    uniform = partial(uniforms, config.seed, split, step, 0, -(-number // 4), 4)
    rounds = -(-config.batch_size // (pairs * number))
    order = [np.argsort(uniform(GROUP_ATTEMPT + i).ravel()[:number]) for i in range(rounds)]
    class1 = np.repeat(np.concatenate(order), pairs)[: config.batch_size]
    class2 = class1.copy()
    class2[1::2] = np.roll(class1[1::2], pairs)
    return np.stack([class1, class2])


def turn(shown, turns):
    """Turns each of images [n, side, side, channels] by quarters; 4 to 7: its mirror image."""
    for number in np.unique(turns[turns > 0]):
        chosen = turns == number
        picked = shown[chosen][:, :, :: -1 if number >= 4 else 1]
        shown[chosen] = np.rot90(picked, number % 4, axes=(1, 2))


def uniforms(seed, split, step, first, count, width, attempt=0):
    """Uniform numbers [count, width] for the pairs from `first` on; width a multiple of 4.

    Philox is keyed by seed and split. The step is the top word of its counter: in a lower one the
    streams of neighbouring steps would overlap. One count of it makes four numbers.
    """
    key, counter = [seed, SPLITS.index(split)], [first * width // 4, attempt, 0, step]
    random = np.random.Generator(np.random.Philox(key=key, counter=counter))
    return random.random((count, width))


def enumerate_images(data, split):
    """All images of a split, as `ListedImages.enumerate_images`; None where they are not listed."""
    space = open_split(data, split)
    return space.enumerate_images() if isinstance(space, ListedImages) else None


def enumerate_pairs(data, split, most, ordered=True):
    """Every pair that a split can draw: Pairs, or None if they are over `most` or not listed.

    Ordered, or each two images once, with the probability of both orders (given ones as they are).
    """
    return open_split(data, split).enumerate_pairs(most, ordered)


def sample_pairs(config, split, count):
    """So many pairs as a step would draw, each image once: Pairs of equal weight."""
    uniform = partial(uniforms, config.seed, split, 0, 0, count)
    return open_split(config.data, split).draw(uniform).compact()


def class_names(data, class_ids):
    """What classes are called: str [k]."""
    if data.source == "shapes":
        kinds = len(data.shapes)
        return np.array([f"blob {i - kinds}" if i >= kinds else data.shapes[i] for i in class_ids])
    return np.array(images.load(data).class_names)[class_ids]


def check_splits(config):
    """Draws from each split; raises UserError where no pairs can be made of its images.

    It first sets what config.data leaves to the images (`images.resolve`).
    """
    data = config.data
    if data.source != "shapes":
        check_path(data.source, data.path)
        images.resolve(data)
    try:
        for split in SPLITS:
            sample_pairs(config, split, 64)
    except UserError:
        if data.source != "shapes":  # which may be why
            for fact in images.load(data).facts:
                print(f"warning: {fact}", file=sys.stderr)
        raise


def check_path(source, path):
    """Raises UserError where the path is not of the kind that the source reads."""
    wanted = {"folder": "folder of images in folders", "pairs": "CSV file or pairs.txt"}.get(source)
    if wanted and not (os.path.isdir if source == "folder" else os.path.isfile)(path):
        text = f"is no {wanted}; have your images moved? name their place by --config.data.path="
        raise bad_set(path, f"{text}PATH")


def prefetch(function, items, workers=2):
    """Yields function(item) of each item, computed by threads up to two each ahead, in order.

    NumPy lets the threads run side by side. An error in the function is raised here, at the item it
    belongs to.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="prefetch")
    pending = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def describe(config):
    """What was understood of a set of files, and what was left out: list of str, a line each."""
    if config.data.source == "shapes":
        return []
    size, kind = config.data.image_size, "grey" if config.data.channels == 1 else "in colour"
    facts = [*images.load(config.data).facts, f"images become {kind}, {size} x {size} pixels"]
    facts += split_facts(config.data)
    return facts + fingerprint.news(config.data)
