"""Decodes one image file: upright, a square of the wanted size, in grey or colour."""

import warnings
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from errors import UserError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class Form(NamedTuple):
    """What an image becomes: uint8 [image_size, image_size, channels]; keys of config.data."""

    image_size: int  # pixels
    channels: int  # 1: grey, 3: colour


def form_of(data):
    """The Form of config.data."""
    return Form(*(data[key] for key in Form._fields))


def decode(open_image, form):
    """One image in a Form: upright, squeezed to a square.

    `open_image` is a function without arguments that returns a Pillow image. What is transparent
    becomes white.
    """
    image_size, channels = form
    with open_image() as image:
        image = ImageOps.exif_transpose(image)
        if image.mode == "F":
            raise ValueError("of real numbers, whose range is not known")
        if image.mode.startswith("I"):  # 16 bits a pixel, which convert would clip at 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("L" if channels == 1 else "RGB")
        image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
        return np.asarray(image).reshape(image_size, image_size, channels)


def read_image(path, form):
    """The image that --images names, in a Form; or UserError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd but readable files
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return decode(partial(Image.open, path), form)
        except Exception as error:  # whatever a damaged file does to its decoder
            text = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"--images: {path} cannot be read: {text}") from None
