"""Shapes as signed distances, the latents of an image, and the renderer of all of them (NumPy).

A shape is a function of coordinates in its own frame, where its centre is the origin, y points down
and nothing is turned. It returns the distance to the contour in pixels, negative inside; near the
contour this is exact but for rounded corners. One threshold of it draws the shape, a band of it the
outline, and how far it is below half a pixel is the share of a pixel that the shape covers.
"""

from functools import lru_cache, partial, reduce
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

IMAGES_AT_ONCE = 256  # rendered together: their temporaries stay in the cache of one core
DIAGONAL = 2**0.5  # of a pixel: over this distance anti-aliasing goes from background to foreground
# What each of the ten uniform numbers of `draw_latents` decides: "turn" whether, "angle" how far.
LATENT_NUMBERS = ("identity", "size", "row", "column", "turn", "angle", "mirror", "outline",
                  "foreground", "background")  # fmt: skip


class Latents(NamedTuple):
    """All that determines n images, but for noise."""

    shape: np.ndarray  # int [n], index into the names that `render` is given
    identity: np.ndarray  # int [n], which blob; nothing to other shapes
    size: np.ndarray  # float [n], pixels: see SHAPES
    row: np.ndarray  # float [n], pixels: of the centre
    column: np.ndarray  # float [n]
    angle: np.ndarray  # float [n], degrees clockwise about the centre
    mirror: np.ndarray  # bool [n], left and right exchanged, before the turn
    outline: np.ndarray  # bool [n], only the contour, drawn inside it
    foreground: np.ndarray  # int [n], grey level 0 ... 255
    background: np.ndarray  # int [n], grey level 0 ... 255

    def take(self, rows):
        """The Latents of some of the images: an index, slice or mask of numpy."""
        return Latents(*(field[rows] for field in self))


def draw_latents(data, u, class_ids):
    """Latents of n images from uniform numbers [n, 10] (LATENT_NUMBERS) and class ids, int [n]."""
    u_identity, u_size, u_row, u_column, u_turn, u_angle, u_mirror, u_outline, *u_grey = u.T
    any_blob = (u_identity * data.num_identities).astype(int)
    shape, identity = shape_and_identity(data, class_ids, any_blob)
    low, high = size_range(data)[:, shape]
    size = spread(data, u_size, low, high - (not data.continuous))
    angle = np.where(u_turn < data.p_rotation, (2 * u_angle - 1) * data.max_angle, 0)
    mirror, outline = u_mirror < data.p_mirror, u_outline < data.p_outline
    greys = data.foreground_greys, data.background_greys
    foreground, background = (
        (low + u * (high - low + 1)).astype(int)
        for u, (low, high) in zip(u_grey, greys, strict=True)
    )
    nowhere = np.zeros(len(u))
    latents = Latents(
        shape, identity, size, nowhere, nowhere, angle, mirror, outline, foreground, background
    )
    (top, left), (bottom, right) = centres(data, latents)
    return latents._replace(
        row=spread(data, u_row, top, bottom), column=spread(data, u_column, left, right)
    )


def shape_and_identity(data, class_ids, identity=0):
    """The index of the shape, and which blob: int [n] each, of class ids int [n].

    A class id is the index of a kind in data.shapes, or len(data.shapes) + i: the i-th blob, where
    each blob is a class of its own. Else a blob has the `identity` given.
    """
    blob = np.asarray(class_ids) - len(data.shapes)
    kind = data.shapes.index("blob") if "blob" in data.shapes else -1
    return np.where(blob < 0, class_ids, kind), np.where(blob < 0, identity, blob)


def spread(data, u, low, high):
    """Uniform between low and high: real numbers, or whole ones from the first to the last."""
    return low + (u * (high - low) if data.continuous else np.floor(u * (high - low + 1)))


def size_range(data):
    """Sizes of each shape, float64 [2, shapes]: from the first to below the second.

    With match_area the square root of the area is uniform over the range that all shapes have.
    """
    low, high = np.array(data.min_sizes, float), np.full(len(data.shapes), float(data.max_size))
    if data.match_area:
        roots = traits(data, lambda shape: shape.area**0.5)
        low, high = (low * roots).max() / roots, (high * roots).min() / roots
    return np.stack([low, high])


def traits(data, function):
    """A number of each of the config's shapes: float64 [shapes]."""
    return np.array([function(SHAPES[name]) for name in data.shapes])


def margin(data):
    """How far off the border every shape of every size is whole, in pixels; at least max_size."""
    largest = size_range(data)[1] - (not data.continuous)
    far = [radius(name) if data.p_rotation or name == "blob" else 1 for name in data.shapes]
    needed = largest * far - traits(data, lambda shape: shape.offset) - dark(data)
    return max(data.max_size, int(np.ceil(needed.max())))


def dark(data):
    """How far beyond the centres of the outermost pixels each shape may reach and be whole: pixels.

    One pixel; less by how far anti-aliasing goes, which is farthest at the tip of a corner.
    """
    return 1 - data.antialias * DIAGONAL / 2 / traits(data, lambda shape: np.sin(shape.tip))


def centres(data, latents):
    """The lowest and the highest coordinates of centres, float64 [2, n] each: row and column.

    With placement "inside" these are all around which the whole shape is inside the image. With
    match_area the room is that of the widest shape of this area, so that it tells nothing either.
    """
    if data.placement == "centre":
        return np.full((2, 2, len(latents.size)), (data.image_size - 1) // 2)
    if data.placement == "margin":
        low, high = margin(data), data.image_size - 1 - margin(data)
        low, high = (np.full((2, len(latents.size)), float(bound)) for bound in (low, high))
    else:
        if data.match_area:
            roots = traits(data, lambda shape: shape.area**0.5)
            widest = max(radius(name) / root for name, root in zip(data.shapes, roots, strict=True))
            farthest = latents.size * roots[latents.shape] * widest - dark(data).min()
            up = down = left = right = farthest
        else:
            up, down, left, right = reach(data.shapes, latents) - dark(data)[latents.shape]
        offset = traits(data, lambda shape: shape.offset)[latents.shape]
        low = np.stack([up, left]) - offset
        high = data.image_size - 1 - np.stack([down, right]) - offset
    if data.continuous:
        return low, high
    return np.ceil(low - 1e-6), np.floor(high + 1e-6)


def is_continuous(data):
    """Whether there is no list of all images: some latent is continuous or drawn, or noise is."""
    chances = data.p_rotation, data.p_mirror, data.p_outline % 1, data.noise, data.continuous
    return any(chances) or any(a < b for a, b in (data.foreground_greys, data.background_greys))


def list_latents(data, class_ids, most):
    """(Latents of every image of these classes, sorted by class; probabilities, float64 [n]).

    The probabilities are relative, within a shape or identity. For data that are not continuous;
    (None, None) where there are more than `most` images.
    """
    combinations = []
    for class_id in class_ids:
        shape, identity = map(int, shape_and_identity(data, class_id))
        any_blob = data.shapes[shape] == "blob" and class_id < len(data.shapes)
        identities = range(data.num_identities) if any_blob else [identity]
        sizes = np.arange(*size_range(data)[:, shape])
        combinations += [(shape, identity, size) for identity in identities for size in sizes]
        if len(combinations) > most:
            return None, None
    shape, identity, size = map(np.array, zip(*combinations, strict=True))
    zero, none = np.zeros(len(size)), np.zeros(len(size), bool)
    greys = data.foreground_greys, data.background_greys
    lowest = (np.full(len(size), low) for low, _ in greys)
    base = Latents(
        shape, identity, size, zero, zero, zero, none, none | (data.p_outline == 1), *lowest
    )
    (top, left), (bottom, right) = centres(data, base)
    rows, columns = (bottom - top + 1).astype(int), (right - left + 1).astype(int)
    counts = rows * columns
    if counts.sum() > most:
        return None, None
    of = np.repeat(np.arange(len(counts)), counts)
    down, along = np.divmod(np.arange(len(of)) - (np.cumsum(counts) - counts)[of], columns[of])
    latents = base.take(of)
    return latents._replace(row=top[of] + down, column=left[of] + along), 1 / counts[of]


def render(data, latents):
    """Draws latents as config.data says: uint8 [n, image_size, image_size, 1].

    Without antialias a pixel is lit where its centre is inside. Only a window around each shape is
    computed, the same for shapes of like size.
    """
    image_size = data.image_size
    background = latents.background.astype(np.uint8)
    images = np.repeat(background, image_size**2).reshape(-1, image_size, image_size)
    turned = bool(latents.angle.any() or latents.mirror.any())
    for index, name in enumerate(data.shapes):
        chosen = np.flatnonzero(latents.shape == index)
        chosen = chosen[np.argsort(latents.size[chosen], kind="stable")]
        ordered = latents.take(chosen)
        for start in range(0, len(chosen), IMAGES_AT_ONCE):
            some = slice(start, start + IMAGES_AT_ONCE)
            one = ordered.take(some)
            side = int(min(image_size, 2 * radius(name) * one.size[-1] + 6))  # 6 for soft edges
            top, left = (
                np.clip(np.rint(centre - side / 2), 0, image_size - side).astype(int)
                for centre in (one.row, one.column)
            )
            distance = measure(SHAPES[name], one, top, left, side, turned)
            levels = paint(SHAPES[name], one, distance, data)
            windows = sliding_window_view(images, (side, side), axis=(1, 2), writeable=True)
            windows[chosen[some], top, left] = levels
    return images[..., None]


def paint(shape, latents, distance, data):
    """Grey levels from signed distances, [n, height, width] of one kind of shape.

    A linear ramp of one pixel is the exact share of a pixel at level edges, but errs by 1 % of a
    small square's area at 45 degrees; smoothstep over the diagonal is within 0.3 % at any angle.
    """
    size, outline, foreground, background = (
        field.astype(np.float32)[:, None, None]
        for field in (latents.size, latents.outline, latents.foreground, latents.background)
    )
    if outline.any():
        inside = np.abs(distance + data.outline_width / 2) - data.outline_width / 2
        distance += outline * (inside - distance)
    contrast = foreground - background
    if not data.antialias:
        return background + (distance < 0) * contrast
    t = np.multiply(distance, np.float32(-1 / DIAGONAL), out=distance)
    t += np.float32(0.5) - np.float32(shape.inset / DIAGONAL) / size
    np.clip(t, 0, 1, out=t)
    levels = t * (-2 * contrast)
    levels += 3 * contrast
    levels *= t
    levels *= t
    levels += background
    return np.rint(levels, out=levels)


def measure(shape, latents, top, left, side, turned):
    """Signed distances in a window of each image, float32 [n, side, side]; one kind of shape.

    Offsets from the centre are rounded last, so that they do not depend on the window.
    """
    x, y = (
        (start[:, None] + np.arange(side) - (centre + shape.offset)[:, None]).astype(np.float32)
        for start, centre in ((left, latents.column), (top, latents.row))
    )
    x, y, size = x[:, None, :], y[:, :, None], latents.size.astype(np.float32)[:, None, None]
    if turned and shape.symmetry < ROUND:
        cos, sin, flip = (
            field.astype(np.float32)[:, None, None] for field in own_axes(shape, latents)
        )
        x, y = flip * cos * x + flip * sin * y, cos * y - sin * x
    return shape.distance(x, y, size, latents.identity)


def own_axes(shape, latents):
    """Cosine and sine of the angle, less full turns of the symmetry, and -1 where mirrored."""
    angle = np.radians(latents.angle % (360 / shape.symmetry))
    return np.cos(angle), np.sin(angle), np.where(latents.mirror, -1.0, 1.0)


def reach(names, latents):
    """How far shapes reach from their own centre: pixels float64 [4, n], up, down, left, right."""
    result = np.empty((4, len(latents.shape)))
    for index, name in enumerate(names):
        rows = latents.shape == index
        one = latents.take(rows)
        cos, sin, flip = own_axes(SHAPES[name], one)
        for side, (x, y) in enumerate([(0, -1), (0, 1), (-1, 0), (1, 0)]):
            own = flip * (cos * x + sin * y), cos * y - sin * x
            result[side, rows] = one.size * SHAPES[name].support(*own, one.identity)
    return result


@lru_cache
def radius(name):
    """How far a shape of size 1, or the farthest blob, reaches in any direction."""
    if name == "blob":
        return 1.5
    angle = np.radians(np.arange(0, 360, 0.01))
    return float(SHAPES[name].support(np.cos(angle), np.sin(angle), None).max())


class Shape(NamedTuple):
    """What there is to know of a kind of shape.

    distance(x, y, size, identity) returns the signed distance of points to the contour, in pixels,
    negative inside: float32 [n, height, width]. It takes coordinates in the shape's own frame, in
    pixels, float32 that broadcast to this shape; sizes, float32 [n, 1, 1]; identities, int [n].

    support(x, y, identity) returns how far the shape of size 1 reaches in the directions of the
    unit vectors (x, y), float64 [n].
    """

    distance: object
    support: object
    area: float  # of size 1
    symmetry: int  # turned by 360 degrees / symmetry it is itself
    # Pixels: a pixel at a sharp corner is covered less than its distance says. The ramp of `paint`
    # adds cot(a / 2) / 10 square pixels over a corner of angle a; to be moved inwards by
    # inset / size along the whole contour takes the sum of them off.
    inset: float = 0.0
    tip: float = np.pi / 2  # half the angle of its sharpest corner
    offset: float = 0.0  # pixels from the given centre to its own, down and right


def circle(x, y, size, _):
    rho = x * x + y * y
    np.sqrt(rho, out=rho)
    rho -= size
    return rho


def square(x, y, size, _):
    distance = np.maximum(np.abs(x), np.abs(y))
    distance -= size
    return distance


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


def blob_support(x, y, identity):
    a0, a, b = blob_coefficients(identity)
    angle = np.radians(np.arange(0, 360, 4))
    waves = HARMONICS[:, None] * angle
    radius = a0[:, None] + sum(
        np.outer(a[:, i], np.cos(wave)) + np.outer(b[:, i], np.sin(wave))
        for i, wave in enumerate(waves)
    )
    return (radius * (x[:, None] * np.cos(angle) + y[:, None] * np.sin(angle))).max(axis=1)


def corners_support(x, y, _, corners):
    """Of the convex hull of corners, [k, 2]. No matrix product: its bits depend on all rows."""
    return np.max([x * right + y * down for right, down in corners], axis=0)


def regular(corners):
    """All but the distance of a polygon with corners at distance 1, one of them up."""
    angle = 2 * np.pi * np.arange(corners) / corners
    support = partial(corners_support, corners=np.stack([np.sin(angle), -np.cos(angle)], axis=1))
    area = corners * np.sin(2 * np.pi / corners) / 2
    return support, area, corners, 1 / (20 * np.cos(np.pi / corners)), np.pi / 2 - np.pi / corners


def round_support(x, y, _):
    return np.ones_like(x)


# A star's inner corners lie at half the radius. TIP is half the angle of its points.
TIP = np.arctan2(0.5 * np.sin(np.pi / 5), 1 - 0.5 * np.cos(np.pi / 5))
SIDE = 0.5 * np.sin(np.pi / 5) / np.sin(TIP)
STAR_INSET = (1 / np.tan(TIP) - 1 / np.tan(TIP + np.pi / 5)) / (20 * SIDE)
ROUND = 360  # the symmetry of what no turn changes
SQUARE = [(x, y) for x in (-1, 1) for y in (-1, 1)]
CROSS = [(x, y / 3) for x, y in SQUARE] + [(x / 3, y) for x, y in SQUARE]
SHAPES = {
    "circle": Shape(circle, round_support, np.pi, ROUND),  # size: its radius
    # Half the side. The seed's covers 2 * size pixels: its own centre lies between four of them.
    "square": Shape(
        square, partial(corners_support, corners=SQUARE), 4.0, 4, tip=np.pi / 4, offset=-0.5
    ),
    "triangle": Shape(partial(polygon, corners=3), *regular(3)),  # radius of its corners
    "pentagon": Shape(partial(polygon, corners=5), *regular(5)),
    "star": Shape(star, regular(5)[0], 2.5 * np.sin(np.pi / 5), 5, STAR_INSET, TIP),
    "cross": Shape(  # half its length
        cross, partial(corners_support, corners=CROSS), 20 / 9, 4, tip=np.pi / 4
    ),
    "ellipse": Shape(ellipse, lambda x, y, _: np.sqrt(x**2 + (0.6 * y) ** 2), 0.6 * np.pi, 2),
    "ring": Shape(ring, round_support, 0.75 * np.pi, ROUND),  # its outer radius
    "blob": Shape(blob, blob_support, np.pi, 1),  # radius of the circle of the same area
}
