"""Pairs with one nuisance more at each step of a sweep, of the shapes of a run (NumPy)."""

import numpy as np

import data
import shapes

# Which of the uniform numbers of `shapes.draw_latents` draw each; and all of them without any.
NUISANCES = {
    "translation": (2, 3),
    "scale": (1,),
    "rotation": (4, 5),
    "mirror": (6,),
    "outline": (7,),
}
LAST = 1 - 1e-9
PLAIN = np.array([0.5, 0.5, 0.5, 0.5, LAST, 0.5, LAST, LAST, 0.5, 0.5])


def sweep(config):
    """Yields (name, data.Pairs), half of them the same, of the classes that training has seen.

    At first all images of a class are one picture, of middle size in the middle of where it fits.
    Then more and more differs; at last the kinds are others. Sizes are the run's, as far as these
    can turn in the image.
    """
    options = config.copy_and_resolve_references().data
    options.update({"placement": "inside", "noise": 0.0, "max_angle": 180.0, "p_rotation": 1.0})
    options.update({"p_mirror": 0.5, "p_outline": 0.0 if options.match_area else 0.5})
    fit(options)
    members, varied = data.split_class_ids(options, "train"), []
    yield "identical", draw(config, options, members, varied)
    for name, numbers in NUISANCES.items():
        varied = [*varied, *numbers]
        if name != "outline" or options.p_outline:
            yield f"+ {name}", draw(config, options, members, varied)
    seen = {options.shapes[i] for i in members if i < len(options.shapes)}
    unseen = tuple(name for name in shapes.SHAPES if name not in {*seen, "blob"})
    if seen and len(unseen) > 1:
        known = dict(zip(options.shapes, options.min_sizes, strict=True))
        sizes = tuple(known.get(name, min(options.min_sizes)) for name in unseen)
        options.update({"shapes": unseen, "min_sizes": sizes, "held_out_shapes": ()})
        options.same_as = "class"
        fit(options)
        yield "+ unseen kinds", draw(config, options, np.arange(len(unseen)), varied)


def fit(options):
    """Lowers max_size until every shape can turn in the image."""
    while 2 * shapes.margin(options) + 1 > options.image_size:
        options.max_size -= 1


def draw(config, options, members, varied):
    """Pairs of these classes of which only the uniform numbers in `varied` differ."""
    n = config.eval.num_pairs
    u = data.uniforms(config.seed, "test", 0, 0, n, data.PAIR_NUMBERS)
    numbers = np.tile(PLAIN, (2 * n, 1))
    numbers[:, varied] = u[:, 2:22].reshape(2 * n, 10)[:, varied]
    one, same = (u[:, 0] * len(members)).astype(int), np.arange(n) % 2 == 0
    other = (one + 1 + (u[:, 1] * (len(members) - 1)).astype(int)) % len(members)
    classes = members[np.stack([one, np.where(same, one, other)], axis=1).ravel()]
    latents = shapes.draw_latents(options, numbers, classes)
    first, second = np.arange(2 * n).reshape(-1, 2).T
    pairs = shapes.render(options, latents), first, second, same.astype(float), np.full(n, 1 / n)
    return data.Pairs(*pairs, False, True, classes, latents)
