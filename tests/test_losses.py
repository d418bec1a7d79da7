"""Losses against loops in NumPy, float64, written from the papers; gradients by differences."""

import functools
from functools import partial
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config
from flax import linen as nn

import data
import settings
from losses import loss_of_images, training_loss
from model import AXIS, Whitening, create_model, init_variables, inverse_root

pytestmark = pytest.mark.usefixtures("strict_dtype_promotion")

UNEVEN = np.array([0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 4, 5, 1, 3, 6, 7])
CLASSES = {  # of 16 images
    "pairs": np.arange(16) // 2,
    "four of each": np.random.default_rng(0).permutation(np.arange(16) % 4),
    "uneven, some alone": UNEVEN,
    "one alone": np.array([1] + 15 * [0]),
    "all the same": np.zeros(16, int),
    "all alone": np.arange(16),
}


def supcon(e, classes, i, same, different):
    """Equation 2 of Khosla et al., of one image."""
    total = sum(np.exp(e[i] @ e[a] / 0.04) for a in [*same, *different])
    return -sum(np.log(np.exp(e[i] @ e[p] / 0.04) / total) for p in same) / len(same)


def expected(embeddings, classes):
    """The mean over all images that have one of their class and one of another: in float64."""
    e = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    losses = []
    for i in range(len(e)):
        same = [j for j in range(len(e)) if classes[j] == classes[i] and j != i]
        different = [j for j in range(len(e)) if classes[j] != classes[i]]
        if same and different:
            losses.append(supcon(e, classes, i, same, different))
    return np.mean(losses) if losses else 0.0


class Unchanged:
    """A whitening that does nothing."""

    def __call__(self, embeddings):
        return embeddings

    def learn(self, embeddings, everyone, alike):
        pass


class Nothing:
    """A model whose head has no loss."""

    whitening = Unchanged()
    compare = staticmethod(lambda one, other: (one * other).sum(-1))
    losses = staticmethod(lambda logits, label: 0 * logits)


@functools.cache
def program(devices):
    """(embeddings, classes) of each device -> its loss and gradient; the head's loss is 0."""
    both = jax.value_and_grad(partial(loss_of_images, "supcon", Nothing), has_aux=True)

    def loss_alone(embeddings, classes):
        (loss, _), gradient = both(embeddings, classes)
        return loss, gradient

    return jax.pmap(loss_alone, AXIS, devices=jax.devices()[:devices])


def found(embeddings, classes, devices):
    """Loss and gradient of a batch that is divided among devices."""
    parts = embeddings.reshape(devices, -1, 4), np.int32(classes).reshape(devices, -1)
    loss, gradient = program(devices)(*parts)
    return loss.mean(), np.asarray(gradient).reshape(embeddings.shape) / devices


def random_embeddings(kind):
    """float32 [16, 4]: anywhere, near each other, or some of them equal."""
    embeddings = np.random.default_rng(1).normal(0, 1, (16, 4))
    if kind == "near":
        embeddings = 1 + embeddings / 20
    if kind == "ties":
        embeddings[8:] = embeddings[:8]
    return embeddings.astype(np.float32)


FEWER = [pytest.param(devices, marks=pytest.mark.slow) for devices in (1, 2)]
DEVICES = pytest.mark.parametrize("devices", [*FEWER, 4])


@DEVICES
def test_a_metric_loss_is_that_of_its_paper(devices):
    for kind in ("anywhere", "near", "ties"):
        embeddings = random_embeddings(kind)
        for classes in CLASSES.values():
            loss, gradient = found(embeddings, classes, devices)
            wanted = expected(np.float64(embeddings), classes)
            assert loss == pytest.approx(wanted, rel=1e-4, abs=1e-6)
            assert np.isfinite(gradient).all()


@DEVICES
def test_the_gradient_is_the_slope_of_the_whole_batchs_loss(devices):
    embeddings = random_embeddings("anywhere")
    _, gradient = found(embeddings, UNEVEN, devices)
    slopes = np.zeros((16, 4))
    for place in np.ndindex(16, 4):
        step = np.zeros((16, 4))
        step[place] = 1e-5
        above, below = (expected(embeddings + sign * step, UNEVEN) for sign in (1, -1))
        slopes[place] = (above - below) / 2e-5
    assert np.abs(slopes).max() > 0.01
    np.testing.assert_allclose(gradient, slopes, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-8])
def test_equal_embeddings_and_zeros_have_finite_losses_and_gradients(value):
    embeddings = np.full((16, 4), value, np.float32)
    for classes in CLASSES.values():
        loss, gradient = found(embeddings, classes, 4)
        assert np.isfinite(loss) and np.isfinite(gradient).all()


START = np.diag([1e-4, 2e-4, 3e-4, 4e-4])  # as much as the batch adds


@functools.cache
def head_and_embeddings(name):
    """Gradients for a cosine head and for embeddings, on four devices.

    Beside them what the head compared, and the statistics of whitening after the step; before it
    the covariance was START.
    """
    config = tiny_config()
    config.model.update({"encoder": "cnn", "head": "cosine", "loss": name})
    config.model.update({"stage_sizes": (1,), "width": 4})
    settings.check(config)
    model = create_model(config)
    stats = init_variables(model, config)["batch_stats"]
    if name == "supcon":
        stats["whitening"]["covariance"] = jnp.float32(START)

    def loss_of(head, *batch):
        loss = nn.apply(
            lambda model: loss_of_images(name, model, *batch), model, mutable=["batch_stats"]
        )
        (loss, seen), updated = loss({"params": {"head": head}, "batch_stats": stats})
        return loss, (seen, updated["batch_stats"].get("whitening"))

    head = {"log_scale": jnp.float32(1), "threshold": jnp.float32(0.3)}
    embeddings = abs(random_embeddings("anywhere")) if name == "supcon" else whitened()[0]
    parts = embeddings.reshape(4, 4, 4), np.int32(UNEVEN).reshape(4, 4)
    step = jax.pmap(jax.grad(loss_of, (0, 1), has_aux=True), AXIS, in_axes=(None, 0, 0))
    return jax.tree.map(np.asarray, step(head, *parts))


@functools.cache
def whitened():
    """(Whitened embeddings, covariance after the step) in NumPy, by eigenvectors."""
    roots = np.sqrt(np.abs(np.float64(random_embeddings("anywhere"))))
    roots /= np.linalg.norm(roots, axis=1, keepdims=True)
    covariance = np.zeros((4, 4))
    for kind in set(UNEVEN):
        own = roots[kind == UNEVEN]
        covariance += (own - own.mean(axis=0)).T @ (own - own.mean(axis=0)) / 16
    covariance = 0.99 * START + 0.01 * covariance
    values, vectors = np.linalg.eigh(covariance / (np.trace(covariance) / 4) + np.eye(4))
    return np.float32(roots @ vectors / np.sqrt(values) @ vectors.T), covariance


def test_whitening_is_by_the_running_covariance_within_classes():
    _, (seen, stats) = head_and_embeddings("supcon")
    expected, covariance = whitened()
    for found in stats["covariance"]:  # of each device
        np.testing.assert_allclose(found, covariance, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(seen.reshape(16, 4), expected, rtol=1e-4)


@pytest.mark.parametrize("size", [1, 96, 512])
@pytest.mark.parametrize("kind", ["one direction", "falling"])
def test_the_inverse_root_is_right_at_the_ends_of_its_range(size, kind):
    """All variance in one direction: the largest eigenvalue is that of the size, plus 1."""
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))[0]
    values = 1 / np.arange(1.0, size + 1) ** (30 if kind == "one direction" else 1)
    values = 1 + size * values / values.sum()
    found = inverse_root(np.float32(turn * values @ turn.T))
    np.testing.assert_allclose(found, turn / np.sqrt(values) @ turn.T, atol=1e-4)


def test_with_a_metric_loss_the_head_learns_as_from_all_pairs_and_shapes_nothing():
    (head, embeddings), _ = head_and_embeddings("supcon")
    for key, value in head_and_embeddings("all_pairs")[0][0].items():
        np.testing.assert_allclose(head[key].mean(), value.mean(), rtol=1e-4)
        assert abs(value.mean()) > 1e-3
    alone = found(abs(random_embeddings("anywhere")), UNEVEN, 4)[1]
    np.testing.assert_allclose(embeddings.reshape(16, 4) / 4, alone, rtol=1e-4, atol=1e-6)


def test_whitening_that_has_seen_no_difference_is_the_square_root():
    layer, embeddings = Whitening(3), np.float32([[1, 4, 4], [0, 0, 0]])
    variables = layer.init(jax.random.key(0), embeddings)
    learn = partial(layer.apply, variables, method="learn", mutable=["batch_stats"])
    own = jax.vmap(lambda x: learn(x, x, np.eye(2, dtype=bool)), axis_name=AXIS)
    _, learnt = own(embeddings[None])
    for statistics in (variables, jax.tree.map(lambda leaf: leaf[0], learnt)):
        found = layer.apply(statistics, embeddings)
        np.testing.assert_allclose(found, np.float32([[1, 2, 2], [0, 0, 0]]) / 3, rtol=1e-5)


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize("head", ["mlp", "cosine", "euclidean"])
def test_the_loss_of_every_pair_is_that_of_a_loop_over_them(head, devices, tiny):
    """However the batch is divided; the pairs' own losses and logits come beside it."""
    tiny.model.update({"encoder": "cnn", "head": head, "loss": "all_pairs"})
    model = create_model(tiny)
    rng = np.random.default_rng(0)
    variables = init_variables(model, tiny)
    image1, image2 = rng.integers(0, 256, (2, 8, 32, 32, 1)).astype(np.uint8)
    classes = rng.integers(0, 3, (8, 2)).astype(np.int32)
    label = (classes[:, 0] == classes[:, 1]).astype(np.float32)

    def on_device(variables, *batch):
        apply = nn.apply(partial(training_loss, tiny), model, mutable=["batch_stats"])
        return apply(variables, data.Batch(*batch))[0]

    parts = [x.reshape(devices, -1, *x.shape[1:]) for x in (image1, image2, label, classes)]
    step = jax.pmap(on_device, axis_name=AXIS, in_axes=(None, 0, 0, 0, 0))
    loss, losses, logits = step(variables, *parts)

    features, _ = jax.vmap(  # what BatchNorm makes of the whole batch
        lambda both: model.apply(variables, both, True, method="encode", mutable=["batch_stats"]),
        axis_name=AXIS,
    )(np.concatenate([image1, image2])[None])
    features, kinds = features[0], np.concatenate(classes.T)
    both = [*permutations(range(16), 2)]
    compared = model.apply(variables, *(features[k] for k in np.transpose(both)), method="compare")
    same = np.array([kinds[i] == kinds[j] for i, j in both])
    every = np.asarray(model.losses(compared, np.float32(same)))
    expected = np.mean([every[same].mean(), every[~same].mean()])
    assert np.mean(loss) == pytest.approx(expected, rel=1e-4)
    own = model.apply(variables, features[:8], features[8:], method="compare")
    np.testing.assert_allclose(logits.reshape(-1), own, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(losses.reshape(-1), model.losses(own, label), rtol=1e-3)
