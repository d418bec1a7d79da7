"""Turns an image file into what encoder.stablehlo takes; needs NumPy and Pillow.

`python export.py` puts it beside the artefacts: it reads export.json there.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

RULES = json.loads(Path(__file__).with_name("export.json").read_text())["prepare"]


def prepare(path):
    """An image file -> uint8 [size, size, channels]: grey, or red, green and blue."""
    size, bilinear = (RULES["size"],) * 2, Image.Resampling.BILINEAR  # antialiased, if it shrinks
    with Image.open(path) as image:
        image.draft(None, (2 * RULES["size"],) * 2)  # a large JPEG is read at a half or less
        inverted = getattr(image, "tag_v2", {}).get(262) == 0  # a TIFF whose 0 is white
        deep = ";16" in str(getattr(image, "tile", ""))  # of 16 bits a colour the upper 8 are read
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError(f"{path}: its values are real numbers, whose range is not known")
    if image.mode.startswith("I"):  # grey, of over 8 bits
        values = np.asarray(image).astype(np.int64)
        whites = [RULES["white"]] if RULES["white"] else RULES["whites"]
        white = next((w for w in whites if w >= values.max()), None)
        if white is None or values.min() < 0:
            raise ValueError(f"{path}: its values are not from 0 to {whites[-1]:,}")
        values = (255 * values + white // 2) // white
        image = Image.fromarray(np.uint8(255 - values if inverted else values))
    elif deep and np.asarray(image)[..., :3].max() < 64:
        raise ValueError(f"{path}: of its 16 bits a colour the upper 2 are empty: scale its values")
    if image.has_transparency_data:
        image = on_ground(image.convert("RGBA"))
    image = image.convert(RULES["mode"])
    if RULES["fit"] == "squeeze":
        image = image.resize(size, bilinear)
    elif RULES["fit"] == "crop":
        image = ImageOps.fit(image, size, bilinear)
    else:  # pad, with the median of the image's border
        pixels = np.asarray(image).reshape(image.height, image.width, -1)
        edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        ground = tuple(np.median(edges, axis=0).astype(int).tolist())
        image = ImageOps.pad(image, size, bilinear, ground)
    return np.asarray(image).reshape(*size, -1)


def on_ground(image):
    """A transparent image on white, or on black where white leaves nearly no contrast."""
    flat, contrast = [], []
    for color in ("white", "black"):
        ground = Image.new("RGBA", image.size, color)
        flat.append(Image.alpha_composite(ground, image).convert("RGB"))
        contrast.append(max(high - low for low, high in flat[-1].getextrema()))
    return flat[contrast[0] < min(32, contrast[1])]
