"""Networks that compare two images (Flax linen).

    model = create_model(config)
    variables = model.init(jax.random.key(0), image, image)
    logits = model.apply(variables, image1, image2)    # [batch]; above 0: more likely the same

Images are uint8 [batch, height, width, channels], 0 ... 255; they become floats on the device.
"""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from convolution import convolve, convolve_copies, max_pool

AXIS = "devices"  # the axis of the pmapped train step, over which BatchNorm averages

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of red, green, blue


def create_model(config):
    """Returns the module (image1, image2, train=False) -> logits float32 [batch].

    With train=True it must run under an axis named AXIS and with batch_stats mutable.
    """
    options, dtype = config.model, jnp.dtype(config.model.dtype)
    sizes = {"stage_sizes": tuple(options.stage_sizes), "width": options.width, "dtype": dtype}
    encoder = {
        "resnet18": lambda: ResNet(small=False, **sizes),
        "resnet18_small": lambda: ResNet(small=True, **sizes),
        "cnn": lambda: CNN(**sizes),
        "vit": lambda: ViT(patch_size=options.patch_size, **sizes),
    }[options.encoder]()
    if options.fusion != "siamese":
        return EarlyFusion(encoder, options.fusion, dtype)
    head = {
        "mlp": lambda: MLP(options.head_features, dtype),
        "cosine": Cosine,
        "euclidean": lambda: Euclidean(options.margin),
    }[options.head]()
    return Siamese(encoder, head, options.frozen, options.pretrained != "", dtype)


def trained(config, params):
    """The part of the parameters that is trained: all, or where the encoder is frozen the rest."""
    return {k: v for k, v in params.items() if k != "encoder"} if config.model.frozen else params


def training_loss(config, model, batch):
    """(loss [], losses [n], logits [n]) of a batch of n pairs by a bound module, under AXIS.

    The loss is the mean of the pairs' losses, or with config.model.all_pairs_loss that of
    `all_pairs_loss`. Losses and logits are those of the drawn pairs.
    """
    if config.model.all_pairs_loss:
        return all_pairs_loss(model, batch)
    logits = model(batch.image1, batch.image2, train=True)
    losses = model.losses(logits, batch.label)
    return losses.mean(), losses, logits


def all_pairs_loss(model, batch):
    """As `training_loss`: the loss is over every two images of the whole batch, on all devices.

    Each device compares its own images with all. The pairs of the same class count as much as
    those of different classes, however many there are; no image is compared with itself.
    """
    embeddings = model.encode(jnp.concatenate([batch.image1, batch.image2]), train=True)
    logits = model.compare(*jnp.split(embeddings, 2))
    classes = batch.local_classes.T.reshape(-1)  # in the order of the embeddings
    all_embeddings = lax.all_gather(embeddings, AXIS, tiled=True)
    all_classes = lax.all_gather(classes, AXIS, tiled=True)
    same = classes[:, None] == all_classes[None]
    all_logits = model.compare(embeddings[:, None], all_embeddings[None])
    losses = model.losses(all_logits, same.astype(jnp.float32))
    own_places = lax.axis_index(AXIS) * len(classes) + jnp.arange(len(classes))
    itself = own_places[:, None] == jnp.arange(len(all_classes))[None]
    loss = (part_of_mean(losses, same & ~itself) + part_of_mean(losses, ~same)) / 2
    return loss, model.losses(logits, batch.label), logits


def part_of_mean(losses, chosen):
    """A device's part of the mean of the chosen losses on all devices; the parts' mean is it."""
    count = jnp.maximum(lax.psum(chosen.sum(), AXIS), 1) / lax.axis_size(AXIS)
    return jnp.where(chosen, losses, 0).sum() / count


def init_variables(model, config):
    """{"params", "batch_stats"}, a function of config.seed alone."""
    # It runs once: optimising the program further takes longer than it saves.
    options = {"xla_backend_optimization_level": 1}
    return jax.jit(partial(initialise, model, config), compiler_options=options)()


def variable_shapes(model, config):
    """The shapes and types that `init_variables` would return."""
    return jax.eval_shape(partial(initialise, model, config))


def initialise(model, config):
    size = config.data.image_size
    image = jnp.zeros((1, size, size, config.data.channels), jnp.uint8)
    variables = model.init(jax.random.key(config.seed), image, image)
    return {"batch_stats": {}} | variables  # without BatchNorm there are none


class Siamese(nn.Module):
    """One encoder for both images; a head compares their embeddings.

    Symmetric by construction: exchanging the images leaves every bit of the logit as it is.
    """

    encoder: nn.Module
    head: nn.Module
    frozen: bool
    pretrained: bool
    dtype: jnp.dtype

    has_embeddings = True  # an image is encoded once, for all pairs that it is in

    def __call__(self, image1, image2, train=False):
        """Two uint8 [n, height, width, channels] -> logits float32 [n]."""
        # One pass for both images: BatchNorm sees them together and the products are larger.
        embeddings = self.encode(jnp.concatenate([image1, image2]), train)
        return self.compare(*jnp.split(embeddings, 2))

    def encode(self, images, train=False):
        """uint8 [n, height, width, channels] -> embeddings [n, size].

        A frozen encoder's BatchNorm keeps its statistics and uses them while training too. A
        pretrained one sees what it was trained on: three colours, normalised as for ImageNet.
        """
        x = images.astype(self.dtype) / 255
        if self.pretrained:
            mean, std = (jnp.asarray([[[c]]], x.dtype) for c in (IMAGENET_MEAN, IMAGENET_STD))
            x = (x - mean) / std
        return self.encoder(x, train and not self.frozen)

    def compare(self, embeddings1, embeddings2):
        """Two [n, size] -> logits float32 [n]; all axes but the last may be broadcast."""
        return self.head(embeddings1, embeddings2)

    @nn.nowrap
    def losses(self, logits, label):
        """The loss of each pair, of the shape of both: float32 logits and labels (1: the same)."""
        return self.head.losses(logits, label)


class MLP(nn.Module):
    """A hidden layer on the distance |e1 - e2| of each number of two embeddings."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, embeddings1, embeddings2):
        """Two [..., size] -> logits float32 [...]."""
        hidden = nn.Dense(self.features, dtype=self.dtype, name="hidden")
        x = nn.relu(hidden(jnp.abs(embeddings1 - embeddings2)))
        return nn.Dense(1, name="logit")(x.astype(jnp.float32)).squeeze(-1)

    losses = staticmethod(optax.sigmoid_binary_cross_entropy)


class Cosine(nn.Module):
    """The cosine of two embeddings, scaled and shifted by two learnt numbers to be a logit."""

    @nn.compact
    def __call__(self, embeddings1, embeddings2):
        """Two [..., size] -> logits float32 [...]."""
        e1, e2 = (e.astype(jnp.float32) for e in (embeddings1, embeddings2))
        # The norm of nothing has no gradient: a tiny number in it gives it one, 0.
        norm1, norm2 = (jnp.sqrt((e**2).sum(axis=-1) + 1e-12) for e in (e1, e2))
        cosine = (e1 * e2).sum(axis=-1) / (norm1 * norm2)
        scale = self.param("log_scale", nn.initializers.constant(jnp.log(10.0)), ())
        threshold = self.param("threshold", nn.initializers.constant(0.5), ())
        return jnp.exp(scale) * (cosine - threshold)

    losses = staticmethod(optax.sigmoid_binary_cross_entropy)


class Euclidean(nn.Module):
    """How far the distance of two embeddings falls below half the margin.

    As a logit it decides; it is not calibrated: the probability of "same" is at most that of
    margin / 2.
    """

    margin: float

    def __call__(self, embeddings1, embeddings2):
        """Two [..., size] -> logits float32 [...]: margin / 2 - distance."""
        difference = embeddings1.astype(jnp.float32) - embeddings2.astype(jnp.float32)
        # The root of no difference has no gradient: a tiny number under it gives it one, 0.
        return self.margin / 2 - jnp.sqrt((difference**2).sum(axis=-1) + 1e-12)

    @nn.nowrap
    def losses(self, logits, label):
        """The contrastive loss (Hadsell et al. 2006; there the label of "same" is 0).

        The squared distance for the same; for different images the square of what their distance
        lacks to the margin.
        """
        distance = self.margin / 2 - logits
        lacking = jnp.maximum(self.margin - distance, 0)
        return label * distance**2 + (1 - label) * lacking**2


class EarlyFusion(nn.Module):
    """Both images in one pass of the encoder: not symmetric, and no work is shared between pairs.

    two_channel: stacked along the channels (Zagoruyko & Komodakis 2015, arXiv:1504.03641); joint:
    as two images of one sequence, for the ViT.
    """

    encoder: nn.Module
    fusion: str
    dtype: jnp.dtype

    has_embeddings = False

    @nn.compact
    def __call__(self, image1, image2, train=False):
        """Two uint8 [n, height, width, channels] -> logits float32 [n]."""
        images = [image1, image2]
        x = jnp.stack(images, 1) if self.fusion == "joint" else jnp.concatenate(images, -1)
        x = x.astype(self.dtype) / 255
        features = self.encoder(x, train).astype(jnp.float32)
        return nn.Dense(1, name="logit")(features).squeeze(-1)

    def encode(self, images):
        """The images as they are: nothing can be computed once for each."""
        return images

    def compare(self, image1, image2):
        """As `__call__`, under the name that a siamese network has for it."""
        return self(image1, image2)

    losses = staticmethod(optax.sigmoid_binary_cross_entropy)


class ViT(nn.Module):
    """A pre-norm transformer over patches (Dosovitskiy et al. 2021, arXiv:2010.11929).

    float [n, height, width, channels], or [n, images, height, width, channels] for several images
    in one sequence -> features [n, width], those of the CLS token.
    """

    stage_sizes: tuple[int]
    width: int
    patch_size: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, train):
        dense = partial(nn.Dense, dtype=self.dtype)
        norm = partial(nn.LayerNorm, dtype=self.dtype)

        def embedding(name, *shape):
            return self.param(name, nn.initializers.normal(0.02), shape).astype(self.dtype)

        x = dense(self.width, name="patch")(to_patches(x, self.patch_size))
        _, images, patches, _ = x.shape
        x += embedding("position", 1, 1, patches, self.width)
        if images > 1:
            x += embedding("image", 1, images, 1, self.width)
        x = x.reshape(x.shape[0], images * patches, self.width)
        cls = jnp.broadcast_to(embedding("cls", 1, 1, self.width), (x.shape[0], 1, self.width))
        x = jnp.concatenate([cls, x], axis=1)
        heads = max(1, self.width // 32)
        attention = partial(nn.MultiHeadDotProductAttention, heads, dtype=self.dtype)
        for block in range(self.stage_sizes[0]):
            x += attention(name=f"attention_{block}")(norm()(x))
            hidden = dense(4 * self.width, name=f"hidden_{block}")(norm()(x))
            x += dense(self.width, name=f"output_{block}")(nn.gelu(hidden))
        return norm()(x[:, 0])


def to_patches(x, size):
    """[n, (images,) height, width, channels] -> [n, images, patches, size * size * channels]."""
    height, width, channels = x.shape[-3:]
    images, rows, columns = 1 if x.ndim == 4 else x.shape[1], height // size, width // size
    x = x.reshape(x.shape[0], images, rows, size, columns, size, channels).swapaxes(3, 4)
    return x.reshape(x.shape[0], images, rows * columns, size * size * channels)


class CNN(nn.Module):
    """3x3 convolutions, BatchNorm and ReLU; each stage has half the resolution of the one before.

    float [n, height, width, channels] -> features [n, width * 2 ** (len(stage_sizes) - 1)], the
    means of the last maps.
    """

    stage_sizes: tuple[int, ...]
    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, train):
        conv, norm = layers(self.dtype, train)
        for stage, depth in enumerate(self.stage_sizes):
            for index in range(depth):
                stride = (2, 2) if index == 0 else (1, 1)
                x = conv(self.width * 2**stage, (3, 3), strides=stride, padding=1)(x)
                x = nn.relu(norm()(x))
        return x.mean(axis=(1, 2))


class ResNet(nn.Module):
    """torchvision's ResNet of basic blocks (He et al. 2016, arXiv:1512.03385), no classifier.

    Its structure, padding (explicit: XLA's SAME shifts strided layers by a pixel), names and
    initialisation; like it, one grey channel is copied to three. Its blocks lack weights that no
    pixel meets (`taps`), so parameters fit the size of images that they were made for. `small` is
    the usual change for small images: a 3x3 stem of stride 1 and no max-pool.
    float [n, height, width, channels] -> features [n, width * 2 ** (len(stage_sizes) - 1)].
    """

    stage_sizes: tuple[int, ...]
    width: int
    dtype: jnp.dtype
    small: bool

    @nn.compact
    def __call__(self, x, train):
        conv, norm = layers(self.dtype, train)
        kernel, stride = (3, 1) if self.small else (7, 2)
        options = {"padding": kernel // 2, "name": "conv1"}
        if x.shape[-1] == 1:
            x = jnp.broadcast_to(x, (*x.shape[:-1], 3))
            options["conv_general_dilated"] = convolve_copies
        x = conv(self.width, (kernel, kernel), (stride, stride), **options)(x)
        x = nn.relu(norm(name="bn1")(x))
        x = x if self.small else max_pool(x)
        for stage, blocks in enumerate(self.stage_sizes):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                name = f"layer{stage + 1}_{block}"
                x = BasicBlock(self.width * 2**stage, stride, conv, norm, name=name)(x)
        return x.mean(axis=(1, 2))


def layers(dtype, train):
    """The convolution and the BatchNorm of every layer, as torchvision has them, bound once."""
    conv = partial(
        nn.Conv,
        use_bias=False,
        dtype=dtype,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        conv_general_dilated=convolve,
    )
    norm = partial(
        BatchNorm,
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        dtype=dtype,
        axis_name=AXIS if train else None,
    )
    return conv, norm


class BatchNorm(nn.BatchNorm):
    """Of [pixels, channels]: XLA sums over the one axis of a matrix far faster than over three."""

    def __call__(self, x):
        return super().__call__(x.reshape(-1, x.shape[-1])).reshape(x.shape)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside an identity, or a 1x1 convolution where the shape changes."""

    features: int
    stride: int
    conv: partial
    norm: partial

    @nn.compact
    def __call__(self, x):
        strides = (self.stride, self.stride)
        y = self.conv(self.features, strides=strides, name="conv1", **taps(x, self.stride))(x)
        y = nn.relu(self.norm(name="bn1")(y))
        y = self.conv(self.features, name="conv2", **taps(y, 1))(y)
        y = self.norm(name="bn2")(y)
        if x.shape != y.shape:
            x = self.conv(self.features, (1, 1), strides=strides, padding=0, name="downsample_0")(x)
            x = self.norm(name="downsample_1")(x)
        return nn.relu(x + y)


def taps(x, stride):
    """The kernel of a 3x3 convolution of a square map, padded by 1: its taps that meet a pixel.

    There are such where the stride spans the map. Then one pixel comes out, and of each axis only
    the taps from the middle on meet the map, as many as it has pixels; the others are left out.
    Those that stay begin with the variance that they have in 3x3. At 32x32 pixels seven of
    ResNet18's eleven million weights are left out.
    """
    sizes = x.shape[1:3]
    if max(sizes) > stride:
        return {"kernel_size": (3, 3), "padding": 1}
    initial = nn.initializers.variance_scaling(2.0 * math.prod(sizes) / 9, "fan_out", "normal")
    return {"kernel_size": sizes, "padding": 0, "kernel_init": initial}
