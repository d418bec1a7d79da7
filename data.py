"""Pairs of images, same or different: drawn from shapes or read from files; without JAX.

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
from spaces import ListedImages, open_split
from splits import split_facts

# Beyond the attempts of `spaces`: random numbers of their own.
GROUP_ATTEMPT, PARTNER_ATTEMPT = 2**33, 2**35


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
    count = config.batch_size // hosts
    uniform = partial(uniforms, config.seed, split, step, host * count, count)
    space = open_split(config.data, split)
    if config.data.images_per_class:
        own = group_places(config)[:, host * count : (host + 1) * count]
        groups = group_classes(config, split, step, space)
        return group_batch(config.data, space, uniform, *(of_group[own] for of_group in groups))
    pairs, classes = space.draw(partial(uniform, 0)), np.full((2, count), -1)
    if pairs.class_ids is not None:
        ids = pairs.class_ids[np.stack([pairs.first, pairs.second])]
        classes = space.class_ids.searchsorted(ids)
    both = pairs.images[pairs.first], pairs.images[pairs.second]
    return Batch(*both, pairs.label.astype(np.float32), classes.T.astype(np.int32))


def group_batch(data, space, uniform, classes, partners, numbers):
    """A Batch whose images are of these classes, int [2, pairs] each: see `group_classes`."""

    def show(classes, start):
        pairs = space.draw(partial(uniform, start), (*classes // data.turned_classes,))
        both = pairs.images[pairs.first], pairs.images[pairs.second]
        for shown, turns in zip(both, classes % data.turned_classes, strict=True):
            turn(shown, turns)
        return both

    both = show(classes, 0)
    if data.overlaid_classes:
        others = show(np.maximum(partners, 0), PARTNER_ATTEMPT)
        for shown, other, chosen in zip(both, others, partners >= 0, strict=True):
            shown[chosen] = overlay(shown[chosen], other[chosen])
    same = (numbers[0] == numbers[1]).astype(np.float32)
    return Batch(*both, same, numbers.T.astype(np.int32))


def group_places(config):
    """Which of the P groups of a batch, each of one class, each image is of: int [2, pairs].

    P x K batches (Hermans et al. 2017, arXiv:1703.07737), K = data.images_per_class. Each K / 2
    pairs in a row begin with one group. In every second pair both images are of it; in the others
    image 2 is of another group, so that half of the pairs are "different".
    """
    pairs = config.data.images_per_class // 2  # that begin with one group
    first = np.arange(config.batch_size) // pairs
    second = first.copy()
    second[1::2] = np.roll(first[1::2], pairs)
    return np.stack([first, second])


def group_classes(config, split, step, space):
    """The class of each group of a batch: three int [P]: turned classes, partners and numbers.

    A turned class is a local class times data.turned_classes plus how it is turned; none comes
    twice unless P is larger. The first groups, a share of data.overlaid_classes, show one laid over
    a partner, which makes a further class; the others have the partner -1.
    """
    count = 2 * config.batch_size // config.data.images_per_class
    turned = config.data.turned_classes * len(space.class_ids)
    uniform = partial(uniforms, config.seed, split, step, 0, -(-turned // 4))

    def shuffled(start):
        numbers = [uniform(start + i, 4).ravel()[:turned] for i in range(-(-count // turned))]
        return np.argsort(numbers).ravel()[:count]

    classes, partners = shuffled(GROUP_ATTEMPT), shuffled(2 * GROUP_ATTEMPT)
    overlaid = np.arange(count) < round(config.data.overlaid_classes * count)
    both = np.sort([classes, partners], axis=0)
    _, number = np.unique(both, axis=1, return_inverse=True)  # a over b is the class of b over a
    numbers = np.where(overlaid, turned + number.ravel(), classes)
    return classes, np.where(overlaid, partners, -1), numbers


def overlay(images, others):
    """Two images [n, side, side, channels] in one: of each pixel the one that stands out more.

    That is the one whose colour is farther from the mean of its image: ink of both, on any ground.
    """

    def distance(shown):
        return np.abs(shown - shown.mean(axis=(1, 2), keepdims=True)).sum(axis=3, keepdims=True)

    return np.where(distance(images) >= distance(others), images, others)


def turn(shown, turns):
    """Turns each of images [n, side, side, channels] by quarters; 4 to 7: its mirror image."""
    for number in np.unique(turns[turns > 0]):
        chosen = turns == number
        picked = shown[chosen][:, :, :: -1 if number >= 4 else 1]
        shown[chosen] = np.rot90(picked, number % 4, axes=(1, 2))


def uniforms(seed, split, step, first, count, start, width, attempt=0):
    """Uniform numbers [count, width] for the pairs from `first` on; width a multiple of 4.

    Those of each start + attempt are others. Philox is keyed by seed and split. The step is the top
    word of its counter: in a lower one the streams of neighbouring steps would overlap. One count
    of it makes four numbers.
    """
    key, counter = [seed, SPLITS.index(split)], [first * width // 4, start + attempt, 0, step]
    random = np.random.Generator(np.random.Philox(key=key, counter=counter))
    return random.random((count, width))


def enumerate_images(data, split):
    """All images of a split, as `ListedImages.enumerate_images`; None where they are not listed."""
    space = open_split(data, split)
    return space.enumerate_images() if isinstance(space, ListedImages) else None


def enumerate_pairs(data, split, most):
    """Every pair that a split can draw: Pairs, or None if they are over `most` or not listed.

    Each two images come once, with the probability of both orders; given pairs as they are.
    """
    return open_split(data, split).enumerate_pairs(most)


def sample_pairs(config, split, count):
    """So many pairs as a step would draw, each image once: Pairs of equal weight."""
    uniform = partial(uniforms, config.seed, split, 0, 0, count, 0)
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
    data, source = config.data, config.data.source
    wanted = {"folder": "folder of images in folders", "pairs": "CSV file or pairs.txt"}.get(source)
    if wanted and not (os.path.isdir if source == "folder" else os.path.isfile)(data.path):
        text = f"is no {wanted}; have your images moved? name their place by --config.data.path="
        raise bad_set(data.path, f"{text}PATH")
    if source != "shapes":
        images.resolve(data)
    try:
        for split in SPLITS:
            sample_pairs(config, split, 64)
    except UserError:
        if source != "shapes":  # which may be why
            for fact in images.load(data).facts:
                print(f"warning: {fact}", file=sys.stderr)
        raise


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
