from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.path import Path

import shapes

NAMES = tuple(shapes.SHAPES)


def latents(shape, **changes):
    """Images of one kind of shape, by default one: of size 9, in the middle of 33 pixels."""
    fields = {name: np.atleast_1d(value) for name, value in changes.items()}
    n = max((len(value) for value in fields.values()), default=1)
    values = {
        "shape": NAMES.index(shape), "identity": 0, "size": 9.0, "row": 16.0, "column": 16.0,
        "angle": 0.0,
    }  # fmt: skip
    return shapes.Latents(
        *(np.broadcast_to(np.asarray(fields.get(k, v)), n).copy() for k, v in values.items())
    )


def draw(one, side=33, antialias=True):
    data = SimpleNamespace(shapes=NAMES, image_size=side, antialias=antialias)
    return shapes.render(data, one)[..., 0]


def inside(name, identity, x, y):
    """Whether points of a shape of size 1 in its own frame are inside: from its definition."""
    rho, angle = np.hypot(x, y), np.arctan2(y, x)
    corners = {"triangle": 3, "pentagon": 5, "square": 4}
    if name in corners:
        n = corners[name]
        turn, radius = (np.pi / 4, 2**0.5) if name == "square" else (-np.pi / 2, 1)
        at = turn + 2 * np.pi * np.arange(n) / n
        polygon = radius * np.stack([np.cos(at), np.sin(at)], axis=1)
    elif name == "star":
        at = -np.pi / 2 + np.pi * np.arange(10) / 5
        polygon = np.where(np.arange(10) % 2, 0.5, 1)[:, None] * np.stack(
            [np.cos(at), np.sin(at)], axis=1
        )
    elif name == "cross":
        a = 1 / 3
        quarter = np.array([(1, -a), (1, a), (a, a)])
        turn = np.array([[0, 1], [-1, 0]])
        polygon = np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])
    else:
        a0, a, b = (c[0] for c in shapes.blob_coefficients(np.array([identity])))
        k = np.arange(2, 7)[:, None]
        blob = a0 + (a[:, None] * np.cos(k * angle.ravel())).sum(0)
        blob = (blob + (b[:, None] * np.sin(k * angle.ravel())).sum(0)).reshape(angle.shape)
        return {
            "circle": rho < 1,
            "ring": (0.5 < rho) & (rho < 1),
            "ellipse": x**2 + (y / 0.6) ** 2 < 1,
            "blob": rho < blob,
        }[name]
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    return (
        Path(np.concatenate([polygon, polygon[:1]]), closed=True)
        .contains_points(points)
        .reshape(x.shape)
    )


def literal(name, identity, size, row, column, angle, side, fine):
    """Shares of pixels covered, by fine x fine points each: an oracle for the renderer."""
    points = (np.arange(side * fine) + 0.5) / fine - 0.5
    offset = -0.5 if name == "square" else 0
    x, y = np.meshgrid(points - column - offset, points - row - offset)
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    x, y = (cos * x + sin * y) / size, (cos * y - sin * x) / size
    lit = inside(name, identity, x, y)
    return lit.reshape(side, fine, side, fine).mean(axis=(1, 3))


@pytest.mark.parametrize("name", NAMES)
def test_pixels_agree_with_the_definition_of_the_shape(name):
    random = np.random.default_rng(NAMES.index(name))
    for case in range(6):
        place = random.uniform(15, 17, 2)
        angle, size = random.uniform(-180, 180), random.uniform(5, 9)
        one = latents(
            name, identity=case, size=size, row=place[0], column=place[1], angle=angle
        )  # fmt: skip
        truth = (name, case, size, *place, angle, 33)
        hard = draw(one, antialias=False)[0]
        assert (hard == 255 * (literal(*truth, fine=1) > 0)).mean() > 0.998  # but for rounding
        soft = draw(one)[0] / 255
        shares = literal(*truth, fine=16)
        assert np.abs(soft - shares).max() < 0.35  # a pixel at a sharp corner
        assert np.abs(soft - shares).mean() < 0.005


@pytest.mark.parametrize("name", NAMES)
def test_the_rendered_area_is_the_analytic_one(name):
    """Within 1 %, for every angle and place, from radius 8 on."""
    random = np.random.default_rng(0)
    n = 400
    for size in (8.0, 9.3, 12.0):
        many = latents(
            name, size=size, angle=random.uniform(-180, 180, n), identity=np.arange(n),
            row=random.uniform(23, 24, n), column=random.uniform(23, 24, n),
        )  # fmt: skip
        area = draw(many, side=48).sum(axis=(1, 2), dtype=float) / 255
        assert area == pytest.approx(shapes.SHAPES[name].area * size**2, rel=0.01)


@pytest.mark.parametrize(
    "name, turn", [("square", 90), ("triangle", 120), ("pentagon", 72), ("star", 72), ("cross", 90),
                   ("ellipse", 180), ("circle", 17), ("ring", 17)]
)  # fmt: skip
def test_a_turn_of_the_symmetry_changes_nothing(name, turn):
    angles = np.arange(0.0, 360, turn)
    for antialias in (False, True):
        images = draw(latents(name, angle=angles, row=15.3, column=16.9), antialias=antialias)
        assert (images == images[0]).all()
        other = draw(latents(name, angle=turn / 2, row=15.3, column=16.9), antialias=antialias)
        assert (other[0] == images[0]).all() == (shapes.SHAPES[name].symmetry == 360)


def test_turns_are_those_of_arrays():
    """About a pixel's centre, where arrays turn exactly; clockwise."""
    for identity in range(5):
        plain = draw(latents("blob", identity=identity))[0].astype(int)
        turned = draw(latents("blob", identity=identity, angle=90.0))[0]
        assert np.abs(np.rot90(plain, -1) - turned).max() <= 1
        assert np.abs(plain - turned).max() > 200


@pytest.mark.parametrize("name", NAMES)
def test_a_shape_lies_within_its_radius_and_touches_it(name):
    random = np.random.default_rng(1)
    n = 400
    many = latents(
        name, identity=np.arange(n), size=random.uniform(6, 10, n), row=24.0, column=24.0,
        angle=random.uniform(-180, 180, n),
    )  # fmt: skip
    images = draw(many, side=49, antialias=False) > 0
    distance = np.hypot(*(np.mgrid[:49, :49] - 24 - shapes.SHAPES[name].offset))
    found = (images * distance).max(axis=(1, 2)) / many.size
    radius = shapes.SHAPES[name].radius
    assert (found <= radius + 1e-6).all()
    assert found.max() > (0.95 if name != "blob" else 0.8) * radius  # the farthest blob is rare


@pytest.mark.parametrize("name", [n for n in NAMES if n != "blob"])
def test_a_shape_that_is_not_turned_lies_within_its_size(name):
    one = latents(name, size=9.0)
    rows, columns = np.nonzero(draw(one, antialias=False)[0])
    places = np.concatenate([rows, columns]) - 16 - shapes.SHAPES[name].offset
    assert 8 <= np.abs(places).max() <= 9


def test_a_blob_is_a_function_of_its_identity_alone():
    few, many = (shapes.blob_coefficients(np.arange(n)) for n in (3, 1000))
    for one, other in zip(few, many, strict=True):
        assert (one == other[:3]).all()
    images = draw(latents("blob", identity=np.arange(200)))
    assert len(np.unique(images, axis=0)) == 200
