"""Decodes one image file: upright, a square of the wanted size, in grey or colour."""

from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

NO_PIXELS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}  # Pillow lists, and cannot decode them
WHITES = 2 ** np.array([8, 10, 12, 14, 16]) - 1  # the largest values that cameras and scanners give
PHOTOMETRIC = 262  # tag of TIFF
FITS = ("squeeze", "pad", "crop")


class Form(NamedTuple):
    """What an image becomes: keys of config.data."""

    image_size: int
    channels: int
    fit: str = "squeeze"
    white: int = 0  # the value of white in images of over 8 bits; 0: each image's own


def form_of(data):
    """The Form of config.data."""
    return Form(data.image_size, data.channels, data.fit, data.white)


@lru_cache
def suffixes():
    """The suffixes of the files that Pillow can read, in lower case: set of str."""
    known = Image.registered_extensions()  # loads all formats
    readable = {*Image.OPEN, "MPO"} - NO_PIXELS  # MPO, JPEGs in one file, is opened as JPEG
    return {suffix for suffix, name in known.items() if name in readable}


def decode(open_image, form):
    """One image in a Form: (pixels uint8 [image_size, image_size, channels], white).

    `open_image` is a function without arguments that returns a Pillow image. `white` is the value
    that became 255 in a grey image of over 8 bits, and 0 for others: of 16 bits a colour Pillow
    reads the upper 8.
    """
    with open_image() as image:
        image.draft(None, (2 * form.image_size,) * 2)  # a JPEG is read at a half or less, if large
        if image.mode == "F":
            raise ValueError("its values are real numbers, whose range is not known")
        tags, tile, white = getattr(image, "tag_v2", {}), str(getattr(image, "tile", "")), 0
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):
            values = np.asarray(image).astype(np.int32)
            image, white = to_8_bits(values, tags, int(form.white))
        elif ";16" in tile and np.asarray(image)[..., :3].max() < 64:
            raise ValueError("of its 16 bits a colour the upper 2 are empty: scale its values")
        if image.has_transparency_data:
            image = on_ground(image.convert("RGBA"))
        image = into_square(image.convert("L" if form.channels == 1 else "RGB"), form)
        return np.asarray(image).reshape(form.image_size, form.image_size, form.channels), white


def natural_form(sample):
    """(image size, channels) that suit images, from functions as `decode` takes; skips bad ones.

    Half of the median shorter side, a multiple of 16 from 32 to 64 pixels. Grey, unless the colours
    of some pixel differ by over 32 of 255.
    """
    sides, colored = [], False
    for open_image in sample:
        with suppress(Exception), open_image() as image:  # `images.load` names a damaged file
            sides.append(min(image.size))
            if image.mode[0] not in "1LI" and not colored:
                small = np.asarray(image.convert("RGB").resize((32, 32))).astype(int)
                colored = bool(np.ptp(small, axis=2).max() > 32)
    size = 16 * round(float(np.median(sides or [0])) / 32)
    return min(max(size, 32), 64), 3 if colored else 1


def to_8_bits(values, tags, white):
    """Values [h, w] of over 8 bits, with `white` as 255: (grey image, its white).

    White 0: the smallest of WHITES that no value exceeds. Raises ValueError.
    """
    low, high, most = int(values.min()), int(values.max()), white or int(WHITES[-1])
    if low < 0 or high > most:
        raise ValueError(f"its values are from {low:,} to {high:,}, not from 0 to {most:,}")
    white = white or int(WHITES[WHITES.searchsorted(high)])
    scaled = ((255 * values + white // 2) // white).astype(np.uint8)
    if tags.get(PHOTOMETRIC) == 0:  # 0 is white: Pillow inverts up to 8 bits only
        scaled = 255 - scaled
    return Image.fromarray(scaled), white


def on_ground(image):
    """An RGBA image on white, or on black where white leaves contrast below 32 grey levels."""
    grounds = (Image.new("RGBA", image.size, color) for color in ("white", "black"))
    flat = [Image.alpha_composite(ground, image).convert("RGB") for ground in grounds]
    contrast = [max(high - low for low, high in one.getextrema()) for one in flat]
    return flat[contrast[0] < min(32, contrast[1])]


def into_square(image, form):
    """An image with the sides of a Form; the ground of pad is the median of the image's border."""
    size, filter = (form.image_size, form.image_size), Image.Resampling.BILINEAR
    if form.fit == "crop":
        return ImageOps.fit(image, size, filter)
    if form.fit == "squeeze":
        return image.resize(size, filter)
    pixels = np.asarray(image).reshape(image.height, image.width, -1)
    edges = pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]
    ground = np.median(np.concatenate(edges), axis=0).astype(int)
    return ImageOps.pad(image, size, filter, tuple(ground.tolist()))


def reason(error):
    """Why an image cannot be read, in a few words."""
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split())[:100] or type(error).__name__
