"""The PyTorch program of `pictures.py`: what one would write for a folder of pictures today.

    python benchmarks/torch_pictures.py --train=TRAIN --test=TEST --out=FOLDER --seconds=60,180

Folders are [GROUP/]CLASS/IMAGE. The network: four blocks of 3x3 convolution, BatchNorm, ReLU and
max-pooling with 64 channels, as in Snell et al., "Prototypical Networks for Few-shot Learning"
(2017). Batches and losses are pytorch-metric-learning's. Fast settings for CPU: all images are
decoded once; bfloat16 autocast, channels last, Adam in one kernel. Random affine changes are one
grid_sample for a batch: torchvision's v2 draws one change for a whole batch, and image by image
it is slower.

At each of --seconds since the start of the process, imports and decoding included, it writes
FOLDER/SECONDS.npz: the test images' names and embeddings, the steps, and the exact time. The clock
stands still meanwhile. Embeddings are compared by their Euclidean distance.
"""

import time

BEGAN = time.perf_counter()

import argparse
import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pytorch_metric_learning import losses, miners, samplers
from torch import nn

BATCH, CLASSES = 128, 32  # images of a step, and at most of so many classes


def main():
    options = parse()
    torch.manual_seed(options.seed)
    np.random.seed(options.seed)  # noqa: NPY002, MPerClassSampler draws from there
    torch.set_num_threads(os.cpu_count())
    images, labels, names, test = load(options)
    network = make_network(images.shape[1], options.size).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, fused=True)
    batches, loss_of, paused, steps = sample(labels), RECIPES[options.recipe](), 0.0, 0
    for seconds in options.seconds:
        while time.perf_counter() - BEGAN - paused < seconds:
            rows = next(batches)
            chosen = change(images[rows], options.photos)
            train_step(network, optimizer, loss_of, chosen, labels[rows], options.bfloat16)
            steps += 1
        end = time.perf_counter()
        found = {"names": names, "embeddings": encode(network, test, options), "steps": steps}
        np.savez(options.out / f"{seconds}.npz", wall=end - BEGAN - paused, **found)
        print(f"{seconds} s: {steps:,} steps", flush=True)
        paused += time.perf_counter() - end


def load(options):
    """(images [n, c, size, size], labels [n], names of test images, test images as images)."""
    names, images = read(options.train, options.size)
    labels = np.unique([os.path.dirname(name) for name in names], return_inverse=True)[1]
    if options.turns:  # of each class as further classes
        labels = np.concatenate([labels + quarter * (labels.max() + 1) for quarter in range(4)])
        images = np.concatenate([np.rot90(images, quarter, (1, 2)) for quarter in range(4)])
    names, test = read(options.test, options.size, images.shape[-1])
    mean, std = images.mean() / 255, images.std() / 255
    images, test = (to_tensor(part, mean, std) for part in (images, test))
    return images, torch.from_numpy(labels), names, test


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=lambda text: sorted(map(int, text.split(","))))
    parser.add_argument("--recipe", choices=RECIPES, default="multi-similarity")
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument("--turns", action="store_true", help="quarter turns as further classes")
    parser.add_argument("--photos", action="store_true", help="mirrored, other light")
    parser.add_argument("--bfloat16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def read(root, size, channels=None):
    """(names from root, sorted; uint8 [n, size, size, channels]); 3 channels if any has colour."""
    paths = sorted(path for path in root.rglob("*") if path.is_file())

    def decode(path):
        image = Image.open(path)
        image = image if image.mode == "RGB" else image.convert("L")
        return image.resize((size, size), Image.BILINEAR)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(decode, paths))
    channels = channels or max(len(image.getbands()) for image in found)
    found = [np.asarray(image.convert("L" if channels == 1 else "RGB")) for image in found]
    names = [path.relative_to(root).as_posix() for path in paths]
    return names, np.stack(found).reshape(len(paths), size, size, channels)


def to_tensor(images, mean, std):
    images = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
    return (images.float() / 255 - mean) / std


def make_network(channels, size):
    layers = []
    for inputs in (channels, 64, 64, 64):
        layers += [nn.Conv2d(inputs, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    flat = 64 * (size // 16) ** 2
    last = [] if flat == 256 else [nn.Linear(flat, 256)]
    return nn.Sequential(*layers, nn.Flatten(), *last)


def sample(labels):
    """Yields the rows of each batch, without end: BATCH images, equally many of each class."""
    classes = min(CLASSES, len(labels.unique()))
    each = BATCH // classes
    sampler = samplers.MPerClassSampler(labels, each, each * classes, 100 * each * classes)
    while True:
        yield from torch.tensor(list(sampler)).split(each * classes)


def change(images, photos):
    """Each image turned, sheared, scaled and shifted at random; photos also mirrored and lit."""
    n = len(images)

    def uniform(most, *shape):
        return (2 * torch.rand(n, *shape) - 1) * most

    angle, shear, scale = math.radians(15) * uniform(1), uniform(0.15), uniform(0.2, 2).exp()
    if photos:
        scale[:, 0] *= uniform(1).sign()
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack([cos, shear * cos - sin, sin, shear * sin + cos], 1).view(n, 2, 2)
    theta = torch.cat([turn * scale[:, None], uniform(0.2, 2, 1)], 2)  # 0.2 of half of the side
    grid = F.affine_grid(theta, images.shape, align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    if photos:  # contrast and brightness
        images = images * uniform(0.3, 1, 1, 1).exp() + uniform(0.3, 1, 1, 1)
    return images


def train_step(network, optimizer, loss_of, images, labels, bfloat16):
    network.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        embeddings = network(images.contiguous(memory_format=torch.channels_last))
    loss = loss_of(embeddings.float(), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def multi_similarity():
    loss, miner = losses.MultiSimilarityLoss(), miners.MultiSimilarityMiner()
    return lambda embeddings, labels: loss(embeddings, labels, miner(embeddings, labels))


def triplet():
    loss = losses.TripletMarginLoss(margin=0.2)
    miner = miners.TripletMarginMiner(margin=0.2, type_of_triplets="semihard")
    return lambda embeddings, labels: loss(embeddings, labels, miner(embeddings, labels))


def prototypical():
    """A quarter of each class's images are averaged; the others must be nearest to their own."""

    def loss(embeddings, labels):
        order = labels.argsort()
        classes = len(labels.unique())
        grouped = embeddings[order].view(classes, -1, embeddings.shape[1])
        shots = max(1, grouped.shape[1] // 4)
        queries = grouped[:, shots:].flatten(0, 1)
        distance = torch.cdist(queries, grouped[:, :shots].mean(1)).square()
        truth = torch.arange(classes).repeat_interleave(grouped.shape[1] - shots)
        return F.cross_entropy(-distance, truth)

    return loss


RECIPES = {"multi-similarity": multi_similarity, "triplet": triplet, "prototypical": prototypical}


@torch.inference_mode()
def encode(network, images, options):
    """Embeddings, float32 [n, 256]; of length 1 where the loss is about their cosine."""
    network.eval()
    with torch.autocast("cpu", torch.bfloat16, enabled=options.bfloat16):
        found = torch.cat([network(block) for block in images.split(256)]).float()
    return (found if options.recipe == "prototypical" else F.normalize(found)).numpy()


if __name__ == "__main__":
    main()
