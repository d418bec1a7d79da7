"""What training minimises: losses over the drawn pairs, or over all images of a batch.

    loss, losses, logits = nn.apply(partial(training_loss, config), model)(variables, batch)

All of it runs under an axis named AXIS. A device has the loss of its own n images, each compared
with the m images of all devices; averaged over devices, losses and gradients are the batch's.
"""

import jax.numpy as jnp
from jax import lax
from jax.nn import logsumexp

from model import AXIS, multiply, unit

TEMPERATURE = 0.04  # of a softmax over cosines; the paper has 0.1, worse with few classes


def training_loss(config, model, batch):
    """Returns (loss to minimise [], losses [n], logits [n]) of a batch of n pairs, float32.

    model: a bound module. Losses and logits are those of the drawn pairs. The loss to minimise is
    their mean with config.model.loss="pairs", else `loss_of_images`.
    """
    if config.model.loss == "pairs":
        logits = model(batch.image1, batch.image2, train=True)
        losses = model.losses(logits, batch.label)
        return losses.mean(), losses, logits
    embeddings = model.encode(jnp.concatenate([batch.image1, batch.image2]), train=True)
    classes = batch.local_classes.T.reshape(-1)  # in the order of the embeddings
    loss, compared = loss_of_images(config.model.loss, model, embeddings, classes)
    logits = model.compare(*jnp.split(compared, 2))
    return loss, model.losses(logits, batch.label), logits


def loss_of_images(name, model, embeddings, classes):
    """The loss [] of embeddings [n, size] and classes int32 [n]; and what the head compares.

    `supcon` shapes the embeddings. The head learns by `all_pairs` from the whitened ones, without
    shaping them. An image counts if the batch has others of its class, and of another class.
    """
    everyone = lax.all_gather(embeddings, AXIS, tiled=True)
    all_classes = lax.all_gather(classes, AXIS, tiled=True)
    own_places = lax.axis_index(AXIS) * len(classes) + jnp.arange(len(classes))
    itself = own_places[:, None] == jnp.arange(len(all_classes))[None]
    different = classes[:, None] != all_classes[None]
    same = ~different & ~itself
    if name == "all_pairs":
        return all_pairs(model, embeddings, everyone, same, different), embeddings
    losses = supcon(unit(embeddings), unit(everyone), same, different)
    loss = part_of_mean(losses, same.any(axis=1) & different.any(axis=1))
    embeddings, everyone = lax.stop_gradient((embeddings, everyone))
    model.whitening.learn(embeddings, everyone, ~different)
    own, others = model.whitening(embeddings), model.whitening(everyone)
    return loss + all_pairs(model, own, others, same, different), own


def all_pairs(model, embeddings, everyone, same, different):
    """The mean of the head's losses of all pairs: half of the weight has "same", however many."""
    logits = model.compare(embeddings[:, None], everyone[None])
    losses = model.losses(logits, (~different).astype(jnp.float32))
    return (part_of_mean(losses, same) + part_of_mean(losses, different)) / 2


def part_of_mean(losses, chosen):
    """This device's part of the mean of the chosen losses; averaged over devices it is the mean."""
    count = jnp.maximum(lax.psum(chosen.sum(), AXIS), 1) / lax.axis_size(AXIS)
    return jnp.where(chosen, losses, 0).sum() / count


def supcon(embeddings, everyone, same, different):
    """L_out of Khosla et al. 2020, arXiv:2004.11362; NT-Xent where a class has two images.

    Unit vectors [n, size] and [m, size], same and different bool [n, m] -> losses float32 [n].
    """
    scores = multiply(embeddings, everyone.T) / TEMPERATURE
    others = jnp.where(same | different, scores, -1e9)  # finite, so that no gradient is nan
    log_p = scores - logsumexp(others, axis=1, keepdims=True)
    weights = same.astype(jnp.float32)
    weights /= jnp.maximum(weights.sum(axis=1, keepdims=True), 1)
    return -(weights * log_p).sum(axis=1)
