"""What the field reports of images in classes: retrieval, and few-shot answers (NumPy).

Equal scores count as chance: a network that gives one answer to everything is right as often as a
guess.
"""

import numpy as np

from errors import UserError, first_five
from listings import SPLITS
from metrics import bootstrap

NEAREST = (1, 5)  # how many of the nearest images recall looks at
NAMES = (*(f"recall_at_{k}" for k in NEAREST), "map")
EPISODES = 1000


def measure(pairs, logits):
    """({name: float} for NAMES and the number of queries, their 95 % intervals over classes).

    pairs: every pair of n images (spaces.Pairs with `exact`); logits: [m]. Each image is a query,
    all others are the gallery. An image without another one of its class is no query.
    """
    classes = np.unique(pairs.class_ids, return_inverse=True)[1]
    scores = np.full((len(classes),) * 2, -np.inf, np.float32)
    scores[pairs.first, pairs.second] = scores[pairs.second, pairs.first] = logits
    np.fill_diagonal(scores, -np.inf)
    found = retrieve(scores, classes)
    asked = ~np.isnan(found[0])
    found, of_class = found[:, asked], classes[asked]

    def means(counts):
        if not counts[of_class].any():  # no class with a query is drawn
            return dict.fromkeys(NAMES)
        values = np.average(found, axis=1, weights=counts[of_class]).tolist()
        return dict(zip(NAMES, values, strict=True))

    bounds = bootstrap(classes.max() + 1, means)
    return means(np.ones(len(classes))) | {"queries": int(asked.sum())}, bounds


def retrieve(scores, classes):
    """Each of NAMES of each query: float64 [names, n]; nan without another image of its class.

    scores: [n, n], -inf on the diagonal; classes: int [n]. Recall at k is whether one of the k
    nearest is of the class. "map" is the average precision.
    """
    n, random = len(scores), np.random.default_rng(0)
    found = np.full((len(NAMES), n), np.nan)
    for query, row in enumerate(scores):
        shuffled = random.permutation(n)  # so that equal scores are in a random order
        order = shuffled[np.argsort(-row[shuffled])][:-1]  # without the query
        right = classes[order] == classes[query]
        places = np.flatnonzero(right) + 1
        if len(places):
            precision = np.arange(1, len(places) + 1) / places
            found[:, query] = *(places[0] <= k for k in NEAREST), precision.mean()
    return found


def draw_episodes(classes, groups, way, shot, seed):
    """Questions of N-way K-shot: of which class of N is the query, by K images of each?

    classes: int [n], 0 ... k - 1, of the images; groups: str [k], of the classes. An episode is of
    one group: every group of N = `way` classes or more is as probable as another, and so is every
    class in it. Returns queries int [EPISODES, N], an image of each class, supports int [EPISODES,
    N, K], others, and facts: list of str, what is left out. Raises UserError.
    """
    counts = np.bincount(classes)
    usable = counts > shot
    names, group = np.unique(groups, return_inverse=True)
    sizes = np.bincount(group[usable], minlength=len(names))
    allowed = np.flatnonzero(sizes >= way)
    if not len(allowed):
        text = f"the split has at most {sizes.max()} classes of {shot + 1} images or more"
        raise UserError(f"--way={way}: {text}{' in one folder' * (len(names) > 1)}")
    facts = [f"{len(allowed)} groups of classes"] * (len(names) > 1)
    if few := names[sizes < way].tolist():
        facts.append(f"left out: {len(few)} groups of fewer classes ({first_five(few)})")
    if few := (~usable).sum():
        facts.append(f"left out: {few} classes of fewer than {shot + 1} images")
    random = np.random.Generator(np.random.Philox(key=[seed, len(SPLITS)]))  # not those of pairs
    members = [np.flatnonzero(classes == k) for k in range(len(counts))]
    drawn = []
    for chosen in random.choice(allowed, EPISODES):
        kinds = random.choice(np.flatnonzero(usable & (group == chosen)), way, replace=False)
        drawn.append([random.choice(members[k], shot + 1, replace=False) for k in kinds])
    images = np.array(drawn)
    return images[..., 0], images[..., 1:], facts


def few_shot(compare, queries, supports):
    """Mean error of episodes, and its 95 % interval: (float, (low, high)).

    compare(first, second) returns the scores of images at these indices, which are broadcast. The
    answer is the class of the highest mean score.
    """
    block = max(1, 10**6 // supports[0].size // queries.shape[1])  # episodes: bounds the memory
    parts = [slice(i, i + block) for i in range(0, len(queries), block)]
    scores = [compare(queries[i, :, None, None], supports[i, None]).mean(axis=-1) for i in parts]
    scores = np.concatenate(scores)
    own = np.diagonal(scores, axis1=1, axis2=2)[..., None]
    ties, lost = (scores == own).sum(axis=2), (scores > own).any(axis=2)
    errors = (1 - np.where(lost, 0, 1 / ties)).mean(axis=1)
    error, half = errors.mean(), 1.96 * errors.std(ddof=1) / len(errors) ** 0.5
    return float(error), (float(max(error - half, 0)), float(min(error + half, 1)))
