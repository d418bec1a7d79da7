"""Shapes as signed distances, the latents of an image, and the renderer of all of them (NumPy).

A shape is a function of coordinates in its own frame, where its centre is the origin, y points down
and nothing is turned. It returns the distance to the contour in pixels, negative inside; near the
contour this is exact but for rounded corners. One threshold of it draws the shape, and how far it
is below half a pixel is the share of a pixel that the shape covers.
"""

from functools import lru_cache, partial, reduce
from typing import NamedTuple

import numpy as np

IMAGES_AT_ONCE = 64  # rendered together: their temporaries stay in the cache of one core
DIAGONAL = 2**0.5  # of a pixel: over this distance anti-aliasing goes from background to foreground
# What each uniform number of `draw_latents` decides: "turn" whether, "angle" how far.
LATENT_NUMBERS = ("identity", "size", "row", "column", "turn", "angle")


class Latents(NamedTuple):
    """All that determines n images."""

    shape: np.ndarray  # int [n], index into the names that `render` is given
    identity: np.ndarray  # int [n], which blob; nothing to other shapes
    size: np.ndarray  # float [n], pixels: see SHAPES
    row: np.ndarray  # float [n], pixels: of the centre
    column: np.ndarray  # float [n]
    angle: np.ndarray  # float [n], degrees clockwise about the centre


def draw_latents(data, u, class_ids):
    """Latents of n images from uniform numbers [n, 6] (LATENT_NUMBERS) and class ids, int [n].

    A class id is the index of a kind in data.shapes, or len(data.shapes) + i: the i-th blob, where
    each blob is a class of its own. Else any blob is drawn.
    """
    u_identity, u_size, u_row, u_column, u_turn, u_angle = u.T
    blob, any_blob = class_ids - len(data.shapes), (u_identity * data.num_identities).astype(int)
    shape = np.where(blob < 0, class_ids, [*data.shapes, "blob"].index("blob"))
    identity = np.where(blob < 0, any_blob, blob)
    low, high = size_range(data)[:, shape]
    size = spread(data, u_size, low, high - (not data.continuous))
    angle = np.where(u_turn < data.p_rotation, (2 * u_angle - 1) * 180, 0)
    row, column = (spread(data, u, *centres(data, shape, size)) for u in (u_row, u_column))
    return Latents(shape, identity, size, row, column, angle)


def spread(data, u, low, high):
    """Uniform between low and high: real numbers, or whole ones from the first to the last."""
    return low + (u * (high - low) if data.continuous else np.floor(u * (high - low + 1)))


def traits(data):
    """What SHAPES says of the config's shapes: a Shape of arrays [shapes]."""
    return Shape(*map(np.array, zip(*(SHAPES[name] for name in data.shapes), strict=True)))


def size_range(data):
    """Sizes of each shape, float64 [2, shapes]: from the first to below the second.

    With match_area the square root of the area is uniform over the range that all shapes have.
    """
    low, high = np.array(data.min_sizes, float), np.full(len(data.shapes), float(data.max_size))
    if data.match_area:
        roots = traits(data).area ** 0.5
        low, high = (low * roots).max() / roots, (high * roots).min() / roots
    return np.stack([low, high])


def reach(data):
    """(How far each shape of size 1 reaches, what of this in pixels need not be in the image).

    float64 [shapes] each. Along the axes shapes reach their size, but for blobs and what turns. The
    second is one pixel, the space beyond the centres of the outermost ones, less by how far
    anti-aliasing goes, which is farthest at the tip of a corner.
    """
    far = [SHAPES[name].radius if data.p_rotation or name == "blob" else 1 for name in data.shapes]
    return np.array(far), 1 - data.antialias * DIAGONAL / 2 / np.sin(traits(data).tip)


def margin(data):
    """How far off the border every shape of every size is whole, in pixels; at least max_size."""
    far, dark = reach(data)
    needed = (size_range(data)[1] - (not data.continuous)) * far - traits(data).offset - dark
    return max(data.max_size, int(np.ceil(needed.max())))


def centres(data, shape, size):
    """The lowest and the highest row and column of the centre: float64 [n] each.

    With placement "inside" these are all around which the whole shape is inside the image. With
    match_area the room is that of the widest shape of this area, so that it tells nothing either.
    """
    if data.placement == "margin":
        low, high = margin(data), data.image_size - 1 - margin(data)
        return np.full(len(size), float(low)), np.full(len(size), float(high))
    far, dark = reach(data)
    if data.match_area:
        roots = traits(data).area ** 0.5
        room = size * roots[shape] * (far / roots).max() - dark.min()
    else:
        room = size * far[shape] - dark[shape]
    offset = traits(data).offset[shape]
    low, high = room - offset, data.image_size - 1 - room - offset
    return (low, high) if data.continuous else (np.ceil(low - 1e-6), np.floor(high + 1e-6))


def list_latents(data, kinds, most):
    """(Latents of every image of these kinds of shape, in turn; probabilities, float64 [n]).

    The probabilities are relative, within a kind. None where there are more than `most` images, or
    no list: shapes turn, sizes are real numbers, or there are blobs.
    """
    if data.continuous or data.p_rotation or "blob" in data.shapes:
        return None
    sizes = [np.arange(*size_range(data)[:, kind]) for kind in kinds]
    shape, size = np.repeat(kinds, [*map(len, sizes)]), np.concatenate(sizes)
    low, high = centres(data, shape, size)
    places = (high - low + 1).astype(int)  # along one axis
    counts = places**2
    if counts.sum() > most:
        return None
    of = np.repeat(np.arange(len(counts)), counts)
    row, column = np.divmod(np.arange(len(of)) - (np.cumsum(counts) - counts)[of], places[of])
    none = np.zeros(len(of), int)
    latents = Latents(shape[of], none, size[of], low[of] + row, low[of] + column, none)
    return latents, 1 / counts[of]


def render(data, latents):
    """Draws latents as config.data says, white on black: uint8 [n, image_size, image_size, 1]."""
    images = np.empty((len(latents.size), data.image_size, data.image_size), np.uint8)
    for index, name in enumerate(data.shapes):
        chosen = np.flatnonzero(latents.shape == index)
        for start in range(0, len(chosen), IMAGES_AT_ONCE):
            some = chosen[start : start + IMAGES_AT_ONCE]
            one = Latents(*(field[some] for field in latents))
            distance = measure(SHAPES[name], one, data.image_size)
            images[some] = paint(SHAPES[name], one.size, distance, data.antialias)
    return images[..., None]


def paint(shape, size, distance, antialias):
    """Grey levels [n, height, width] from the signed distances of one kind of shape.

    A linear ramp of one pixel is the exact share of a pixel at level edges, but errs by 1 % of a
    small square's area at 45 degrees; smoothstep over the diagonal is within 0.3 % at any angle.
    """
    if not antialias:
        return 255 * (distance < 0)
    middle = np.float32(0.5) - np.float32(shape.inset / DIAGONAL) / size.astype(np.float32)
    t = np.clip(distance * np.float32(-1 / DIAGONAL) + middle[:, None, None], 0, 1)
    return np.rint((765 - 510 * t) * t * t)


def measure(shape, latents, side):
    """Signed distances of the pixels of images of one shape: float32 [n, side, side]."""
    centre = np.stack([latents.row, latents.column])[..., None] + shape.offset
    y, x = (np.arange(side) - centre).astype(np.float32)
    x, y, size = x[:, None, :], y[:, :, None], latents.size.astype(np.float32)[:, None, None]
    if shape.symmetry < ROUND and latents.angle.any():
        angle = np.radians(latents.angle % (360 / shape.symmetry))  # less full turns of it
        cos, sin = (f(angle).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
        x, y = cos * x + sin * y, cos * y - sin * x
    return shape.distance(x, y, size, latents.identity)


class Shape(NamedTuple):
    """What there is to know of a kind of shape.

    distance(x, y, size, identity) returns the signed distance of points to the contour, in pixels,
    negative inside: float32 [n, height, width]. It takes coordinates in the shape's own frame, in
    pixels, float32 that broadcast to this shape; sizes, float32 [n, 1, 1]; identities, int [n].
    """

    distance: object
    radius: float  # how far size 1 reaches in any direction
    area: float  # of size 1
    symmetry: int  # turned by 360 degrees / symmetry it is itself
    # Pixels: a pixel at a sharp corner is covered less than its distance says. The ramp of `paint`
    # adds cot(a / 2) / 10 square pixels over a corner of angle a; to be moved inwards by
    # inset / size along the whole contour takes the sum of them off.
    inset: float = 0.0
    tip: float = np.pi / 2  # half the angle of its sharpest corner
    offset: float = 0.0  # pixels from the given centre to its own, down and right


def circle(x, y, size, _):
    return np.sqrt(x * x + y * y) - size


def square(x, y, size, _):
    return np.maximum(np.abs(x), np.abs(y)) - size


def ring(x, y, size, _):
    return np.abs(np.sqrt(x * x + y * y) - 0.75 * size) - 0.25 * size


def cross(x, y, size, _):
    x, y = np.abs(x), np.abs(y)
    return np.maximum(np.maximum(x, y) - size, np.minimum(x, y) - size / 3)


def ellipse(x, y, size, _, ratio=0.6):
    """To first order: the value of the implicit function over the length of its gradient."""
    xx, yy = x * x, y * y
    k1 = np.sqrt(xx + yy / ratio**2)
    k2 = np.sqrt(xx + yy / ratio**4)
    return k1 * (k1 - size) / np.maximum(k2, 1e-6)


def polygon(x, y, size, _, corners):
    """Regular, one corner up: the farthest of the lines through its sides."""
    return farthest(x, y, 180 / corners, corners) - size * np.float32(np.cos(np.pi / corners))


def star(x, y, size, _):
    """Five points, one up: the line of a side, folded to the nearest point's axis."""
    along = farthest(x, y, 0, 5)
    across = np.sqrt(np.maximum(x * x + y * y - along * along, 0))
    return np.float32(np.sin(TIP)) * (along - size) + np.float32(np.cos(TIP)) * across


def farthest(x, y, first, count):
    """The largest coordinate along `count` directions around the centre, the first in degrees."""
    angles = np.radians(first + 360 / count * np.arange(count))
    axes = np.stack([np.sin(angles), -np.cos(angles)], axis=1).astype(np.float32)
    return reduce(np.maximum, (x * right + y * down for right, down in axes))


HARMONICS = np.arange(2, 7)  # of a blob's contour; the first would only shift it


def blob(x, y, size, identity):
    """r = size * (a0 + sum of a_k cos(k angle) + b_k sin(k angle)): drawn from its identity."""
    a0, a, b = (c[..., None, None] for c in blob_coefficients(identity))
    rho = np.sqrt(x * x + y * y) + np.float32(1e-6)
    c1, s1 = x / rho, y / rho
    c, s = c1, s1
    radius, slope = a0, np.float32(0)
    for i, k in enumerate(HARMONICS):
        c, s = c * c1 - s * s1, s * c1 + c * s1  # cosine and sine of k times the angle
        radius = radius + a[:, i] * c + b[:, i] * s
        slope = slope + np.float32(k) * (b[:, i] * c - a[:, i] * s)
    return (rho - size * radius) / np.sqrt(1 + (slope / radius) ** 2)


def blob_coefficients(identity):
    """float32 a0 [n], a [n, harmonics], b [n, harmonics] of the blobs with these identities."""
    return tuple(c[identity] for c in all_blobs(1 << int(identity.max(initial=0)).bit_length()))


@lru_cache(maxsize=2)
def all_blobs(count):
    """The coefficients of the first `count` blobs; each is the same whatever the count.

    Amplitudes share out 0.5, so radii lie between 1/2 and 3/2 before all areas are made pi.
    """
    random = np.random.Generator(np.random.Philox(key=1)).random((count, 2, len(HARMONICS)))
    amplitude = -np.log1p(-random[:, 0]) / HARMONICS  # lower harmonics are the stronger ones
    amplitude *= 0.5 / amplitude.sum(axis=1, keepdims=True)
    a0 = 1 / np.sqrt(1 + (amplitude**2).sum(axis=1) / 2)
    phase = 2 * np.pi * random[:, 1]
    a, b = (a0[:, None] * amplitude * wave(phase) for wave in (np.cos, np.sin))
    return a0.astype(np.float32), a.astype(np.float32), b.astype(np.float32)


def regular(corners):
    """A regular polygon with corners at distance 1, one of them up."""
    half = np.pi / corners
    area, inset = corners * np.sin(2 * half) / 2, 1 / (20 * np.cos(half))
    return Shape(partial(polygon, corners=corners), 1, area, corners, inset, np.pi / 2 - half)


# A star's inner corners lie at half the radius. TIP is half the angle of its points.
TIP = np.arctan2(0.5 * np.sin(np.pi / 5), 1 - 0.5 * np.cos(np.pi / 5))
SIDE = 0.5 * np.sin(np.pi / 5) / np.sin(TIP)
STAR_INSET = (1 / np.tan(TIP) - 1 / np.tan(TIP + np.pi / 5)) / (20 * SIDE)
ROUND = 360  # the symmetry of what no turn changes
SHAPES = {
    "circle": Shape(circle, 1, np.pi, ROUND),  # size: its radius
    # Half the side. The seed's covers 2 * size pixels: its own centre lies between four of them.
    "square": Shape(square, 2**0.5, 4, 4, tip=np.pi / 4, offset=-0.5),
    "triangle": regular(3),  # radius of its corners
    "pentagon": regular(5),
    "star": Shape(star, 1, 2.5 * np.sin(np.pi / 5), 5, STAR_INSET, TIP),
    "cross": Shape(cross, 10**0.5 / 3, 20 / 9, 4, tip=np.pi / 4),  # half its length
    "ellipse": Shape(ellipse, 1, 0.6 * np.pi, 2),
    "ring": Shape(ring, 1, 0.75 * np.pi, ROUND),  # its outer radius
    "blob": Shape(blob, 1.5, np.pi, 1),  # radius of the circle of the same area
}
