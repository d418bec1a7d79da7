"""Random changes of the training images, computed inside the training step.

    images = augment(config.augment, config.seed, step, places, images)

What becomes of an image depends only on (seed, step, its place in the batch): not on the number of
devices or processes, nor on a resume. What is off costs nothing.
"""

from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from model import AXIS

GEOMETRIC = ("rotation", "scale", "shear", "shift", "p_flip")

# The random numbers of each image: all uniform from -1 to 1, float32 [n, 1, 1, 1].
NAMES = "angle scale_y scale_x shear shift_y shift_x flip blur contrast brightness noise"
Numbers = namedtuple("Numbers", f"{NAMES} erase area ratio top left unchanged")


def augment_batch(config, step, batch):
    """A step's Batch, or the part of it on this device of the axis AXIS, with changed images."""
    if not any(config.augment.values()):
        return batch
    pairs = len(batch.label)
    places = 2 * (lax.axis_index(AXIS) * pairs + jnp.arange(pairs))
    places = jnp.concatenate([places, places + 1])
    images = jnp.concatenate([batch.image1, batch.image2])
    images = augment(config.augment, config.seed, step, places, images)
    # A barrier: else XLA may compute all this once more for each tap of the first convolution.
    image1, image2 = jnp.split(lax.optimization_barrier(images), 2)
    return batch._replace(image1=image1, image2=image2)


def augment(options, seed, step, places, images):
    """Changes each image at random: uint8 [n, height, width, channels] -> the same.

    options: config.augment, frozen. seed: int. step: int32 []. places: int32 [n], the place of each
    image in the batch of all devices (2 * pair + side).
    """
    originals, (_, height, width, channels) = images, images.shape
    count, pixels = len(Numbers._fields), height * width * channels if options.noise else 0
    u, noise = jnp.split(draw(seed, step, places, count + pixels), [count], axis=1)
    u = Numbers(*u.T[..., None, None, None])
    if any(options[key] for key in GEOMETRIC):
        images = resample(images, *coordinates(options, u, height, width))
    images = images.astype(jnp.float32)
    if options.blur:
        images = blur(images, options.blur * (u.blur + 1) / 2)
    if options.contrast or options.brightness:
        mean = images.mean(axis=(1, 2), keepdims=True)
        images = (images - mean) * jnp.exp(options.contrast * u.contrast) + mean
        images += options.brightness * u.brightness
    if options.noise:
        normal = 2**0.5 * lax.erf_inv(noise).reshape(images.shape)
        images += options.noise * (u.noise + 1) / 2 * normal
    if options.p_erase:
        images = erase(options, u, images)
    changed = jnp.round(images.clip(0, 255)).astype(jnp.uint8)
    return jnp.where(u.unchanged < 2 * options.p_unchanged - 1, originals, changed)


def draw(seed, step, places, count):
    """So many numbers for each image, uniform from -1 to 1, both excluded: float32 [n, count]."""
    of_step = jax.random.fold_in(jax.random.key(seed), step)
    lowest = np.nextafter(np.float32(-1), np.float32(0))

    def of_image(place):
        return jax.random.uniform(jax.random.fold_in(of_step, place), (count,), minval=lowest)

    return jax.vmap(of_image)(places)


def coordinates(options, u, height, width):
    """Where each pixel of the new images is in the old ones: row, column, float32 [n, h, w, 1].

    An affine map about the centre. All factors are rounded to so few bits that sums are exact, up
    to 256 pixels: the size of a batch changes no bit.
    """
    angle = np.float32(np.deg2rad(options.rotation)) * u.angle
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    y, x = jnp.exp(options.scale * u.scale_y), jnp.exp(options.scale * u.scale_x)
    x = jnp.where(u.flip < 2 * options.p_flip - 1, -x, x)
    lean = options.shear * u.shear * y
    start_y = (height - 1) / 2 + height * options.shift * u.shift_y
    start_x = (width - 1) / 2 + width * options.shift * u.shift_x
    of_y = (start_y, cos * y - sin * lean, -sin * x)
    of_x = (start_x, sin * y + cos * lean, cos * x)
    down, right = (np.arange(side, dtype=np.float32) - (side - 1) / 2 for side in (height, width))
    down, right = down[None, :, None, None], right[None, None, :, None]

    def place(factors):
        start, per_row, per_column = (jnp.round(4096 * factor) / 4096 for factor in factors)
        return start + per_row * down + per_column * right

    return place(of_y), place(of_x)


def resample(images, y, x):
    """Bilinear interpolation of images at rows y and columns x, float32 [n, h, w, 1]: uint8.

    Outside of an image the nearest pixel of its border counts. Places are whole numbers of 1/256
    pixel: then all sums are exact, and equal however a compiler orders them. A pixel and its three
    neighbours are the bytes of one number: one gather instead of four.
    """
    n, height, width, channels = images.shape
    y, x = jnp.round(256 * y) / 256, jnp.round(256 * x) / 256
    y, x = y.clip(0, height - 1), x.clip(0, width - 1)
    row, column = y.astype(jnp.int32), x.astype(jnp.int32)
    down, right = y - row.astype(jnp.float32), x - column.astype(jnp.float32)
    padded = jnp.pad(images, ((0, 0), (0, 1), (0, 1), (0, 0)), "edge").astype(jnp.uint32)
    above, below = padded[:, :-1], padded[:, 1:]
    packed = (
        above[:, :, :-1] | above[:, :, 1:] << 8 | below[:, :, :-1] << 16 | below[:, :, 1:] << 24
    )
    place = (jnp.arange(n)[:, None, None, None] * height + row) * width + column
    packed = jnp.take(packed.reshape(-1, channels), place.squeeze(-1), axis=0, mode="clip")
    four = [(packed >> shift & 255).astype(jnp.float32) for shift in (0, 8, 16, 24)]
    above, below = (left + right * (other - left) for left, other in (four[:2], four[2:]))
    return jnp.round(above + down * (below - above)).astype(jnp.uint8)


def blur(images, sigma):
    """A Gaussian blur with a sigma [n, 1, 1, 1] of each image; only pixels inside have weight.

    Weights are whole numbers of 1/256 and have a sum of 1: all sums are exact.
    """

    def weights(side):
        squares = (np.arange(side)[:, None] - np.arange(side)).astype(np.float32)[None] ** 2
        found = jnp.exp(-squares / (2 * sigma.reshape(-1, 1, 1) ** 2 + 1e-6))
        found = jnp.round(256 * found / found.sum(axis=2, keepdims=True)) / 256
        return found + (1 - found.sum(axis=2, keepdims=True)) * np.eye(side, dtype=np.float32)[None]

    height, width = images.shape[1:3]
    images = jnp.einsum("nij,njkc->nikc", weights(height), images, precision="highest")
    return jnp.einsum("nij,nkjc->nkic", weights(width), images, precision="highest")


def erase(options, u, images):
    """Fills a rectangle with the mean colour (Zhong et al. 2020, arXiv:1708.04896), in some images.

    It has 0.02 to 0.2 of the area; its height is 0.3 to 3.3 of its width, on a log scale.
    """
    area, ratio = 0.11 + 0.09 * u.area, jnp.exp(np.log(3.3).astype(np.float32) * u.ratio)
    inside = u.erase < 2 * options.p_erase - 1
    sides = (u.top, area * ratio), (u.left, area / ratio)
    for axis, (start, square) in enumerate(sides, start=1):
        length = jnp.sqrt(square)
        start = (1 - length) * (start + 1) / 2
        count = images.shape[axis]
        middles = (np.arange(count, dtype=np.float32) + 0.5) / count  # of the pixels
        middles = np.expand_dims(middles, [i for i in range(4) if i != axis])
        inside &= (start <= middles) & (middles < start + length)
    return jnp.where(inside, images.mean(axis=(1, 2), keepdims=True), images)
