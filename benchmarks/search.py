"""How long a search in a gallery of 100,000 images takes, and whether its order is right.

    python benchmarks/search.py --workdir=runs/folder --images=photos --gallery=/tmp/gallery

Draws the gallery from the images of a folder (turned and noisy copies) unless it is there, enrolls
it, and asks for one image twice. The order is compared with that of the pairs one by one, by the
whole network.
"""

import csv
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import scoring
import settings
from decoding import decode, form_of
from listings import find_images
from model import create_model

WORKDIR = flags.DEFINE_string("workdir", None, "A trained run.", required=True)
IMAGES = flags.DEFINE_string("images", None, "A folder of images to draw from.", required=True)
GALLERY = flags.DEFINE_string("gallery", None, "Its folder.", required=True)
COUNT = flags.DEFINE_integer("count", 100_000, "Images of the gallery.")
SIZE = flags.DEFINE_integer("size", 48, "Pixels: their height and width.")


def main(_):
    if not os.path.isdir(GALLERY.value):
        draw(Path(GALLERY.value))
    query = Path(IMAGES.value) / find_images(IMAGES.value)[0][0]
    command = [sys.executable, str(ROOT / "evaluate.py"), f"--workdir={WORKDIR.value}"]
    command += [f"--gallery={GALLERY.value}"]
    imports = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import evaluate"
    timed("imports alone", [sys.executable, "-c", imports])
    timed("enrolling", [*command, "--enroll"])
    for name in ("first query", "second query"):
        timed(name, [*command, f"--query={query}", "--nearest=1000"])
    compare(query)


def draw(folder):
    """Writes the gallery: COUNT images of SIZE pixels."""
    folder.mkdir()
    random, names = np.random.default_rng(0), find_images(IMAGES.value)[0]
    opened = [Image.open(Path(IMAGES.value) / name).convert("L") for name in names]
    shown = [image.resize((SIZE.value, SIZE.value)) for image in opened]
    for i in range(COUNT.value):
        image = shown[random.integers(len(shown))].rotate(random.uniform(-20, 20))
        noisy = np.asarray(image) + random.normal(0, 8, (SIZE.value, SIZE.value))
        Image.fromarray(np.uint8(noisy.clip(0, 255))).save(folder / f"{i:06}.png", compress_level=1)


def timed(name, command):
    """Runs a command: prints the seconds to its first line and to its end, and the memory."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        first = time.perf_counter() - began
        process.stdout.read()
    if process.returncode:
        sys.exit(f"{name} failed")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000
    end = time.perf_counter() - began
    print(f"{name}: first line {first:.2f} s, end {end:.2f} s; most memory so far {peak:,.0f} MB")


def compare(query):
    """Prints how far the order of matches.csv is from that of one by one."""
    config = settings.load_config(Path(WORKDIR.value))
    model, form = create_model(config), form_of(config.data)
    _, variables = scoring.load_variables(config, Path(WORKDIR.value), model, "best")
    with open(Path(WORKDIR.value) / "evaluation" / "matches.csv", newline="") as file:
        found = [*csv.DictReader(file)]
    one, logits = decode(lambda: Image.open(query), form)[0][None], []
    apply = jax.jit(model.apply)
    for row in found:
        other = decode(lambda path=row["image"]: Image.open(path), form)[0][None]
        logits.append(float(apply(variables, one, other)[0]))
    falls = np.diff(logits)
    print(f"{len(found)} nearest one by one: largest step against the order {falls.max():.1e}")


if __name__ == "__main__":
    app.run(main)
