"""A robustness sweep: pairs with one nuisance more at each step, of the shapes of a run (NumPy)."""

import numpy as np
from ml_collections import ConfigDict

from data import uniforms
from shapes import LATENT_NUMBERS, SHAPES, draw_latents, margin, render
from spaces import PAIR_WIDTH, Pairs, latent_numbers, split_class_ids

# Which of the uniform numbers of `shapes.draw_latents` draw each nuisance.
NUISANCES = {
    "translation": ("row", "column"),
    "scale": ("size",),
    "rotation": ("turn", "angle"),
}


def sweep(config):
    """Yields (name, Pairs), half of them the same, of the classes that training has seen.

    At first all images of a class are equal, of middle size in the middle of where it fits. Then
    more and more differs; at last the kinds are others. Sizes are the run's, as far as these can
    turn in the image.
    """
    options = ConfigDict(config.data)
    options.update({"placement": "inside", "p_rotation": 1.0})
    fit(options)
    class_ids, varied = split_class_ids(options, "train"), []
    yield "identical", draw_pairs(config, options, class_ids, varied)
    for name, numbers in NUISANCES.items():
        varied = [*varied, *numbers]
        yield f"+ {name}", draw_pairs(config, options, class_ids, varied)
    seen = {options.shapes[i] for i in class_ids if i < len(options.shapes)}
    unseen = tuple(name for name in SHAPES if name not in {*seen, "blob"})
    if seen and len(unseen) > 1:
        known = dict(zip(options.shapes, options.min_sizes, strict=True))
        sizes = tuple(known.get(name, min(options.min_sizes)) for name in unseen)
        options.update({"shapes": unseen, "min_sizes": sizes, "held_out_shapes": ()})
        options.same_as = "class"
        fit(options)
        yield "+ unseen kinds", draw_pairs(config, options, np.arange(len(unseen)), varied)


def fit(options):
    """Lowers max_size until every shape can turn in the image."""
    while 2 * margin(options) + 1 > options.image_size:
        options.max_size -= 1


def draw_pairs(config, options, class_ids, varied):
    """Pairs of these classes; only the uniform numbers named in `varied` differ between images."""
    n = config.eval.num_pairs
    u = uniforms(config.seed, "test", 0, 0, n, PAIR_WIDTH)
    is_varied = [name in varied for name in LATENT_NUMBERS]
    numbers = np.where(is_varied, latent_numbers(u), 0.5)  # of angles the middle is 0
    u1, u2 = u[:, :2].T
    one, same = (u1 * len(class_ids)).astype(int), np.arange(n) % 2 == 0
    other = (one + 1 + (u2 * (len(class_ids) - 1)).astype(int)) % len(class_ids)
    of_images = class_ids[np.stack([one, np.where(same, one, other)], axis=1).ravel()]
    latents = draw_latents(options, numbers, of_images)
    first, second = np.arange(2 * n).reshape(-1, 2).T
    pairs = render(options, latents), first, second, same.astype(float), np.full(n, 1 / n)
    return Pairs(
        *pairs, exact=False, ordered=True, class_ids=of_images, latents=latents, names=None
    )
