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
import numpy as np
import optax
from jax import lax

from convolution import convolve, convolve_copies, max_pool
from settings import is_run

AXIS = "devices"  # the axis of the pmapped train step, over which BatchNorm averages

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of red, green, blue


def create_model(config):
    """Returns the module (image1, image2, train=False) -> logits float32 [batch].

    train=True needs an axis named AXIS (pmap) and mutable=["batch_stats"].
    """
    options, dtype = config.model, jnp.dtype(config.model.dtype)
    sizes = {"stage_sizes": tuple(options.stage_sizes), "width": options.width, "dtype": dtype}
    small = options.encoder == "resnet18_small"
    encoder = CNN(**sizes) if options.encoder == "cnn" else ResNet(small=small, **sizes)
    whitened, size = options.loss == "supcon", options.width * 2 ** (len(options.stage_sizes) - 1)
    whitening = Whitening(size) if whitened else None
    # Nearly all cosines of whitened embeddings are above 0.8.
    first = (100.0, 0.93) if whitened else (10.0, 0.5)
    head = {
        "mlp": partial(MLP, options.head_features, dtype),
        "cosine": partial(Cosine, *first),
        "euclidean": partial(Euclidean, options.margin),
    }[options.head]()
    of_imagenet = options.pretrained != "" and not is_run(options.pretrained)
    return Siamese(encoder, whitening, head, options.frozen, options.views, of_imagenet, dtype)


def trained(config, params):
    """The parameters that are trained: all, or all but the encoder's where that is frozen."""
    return {k: v for k, v in params.items() if k != "encoder"} if config.model.frozen else params


def init_variables(model, config):
    """The initial {"params", "batch_stats"} of a model; config.seed alone decides their values."""
    options = {"xla_backend_optimization_level": 1}  # more takes longer than it saves
    return jax.jit(partial(initialise, model, config), compiler_options=options)()


def variable_shapes(model, config):
    """The shapes and types that `init_variables` would return."""
    return jax.eval_shape(partial(initialise, model, config))


def initialise(model, config):
    """As `init_variables`, not compiled."""
    size = config.data.image_size
    image = jnp.zeros((1, size, size, config.data.channels), jnp.uint8)
    return model.init(jax.random.key(config.seed), image, image)


class Siamese(nn.Module):
    """One encoder for both images; a head compares their embeddings.

    Symmetric by construction: exchanging the images does not change any bit of the logit.
    """

    encoder: nn.Module
    whitening: nn.Module | None
    head: nn.Module
    frozen: bool
    views: int
    of_imagenet: bool
    dtype: jnp.dtype

    def __call__(self, image1, image2, train=False):
        """Two uint8 [n, height, width, channels] -> logits float32 [n]; supcon trains otherwise."""
        # One pass for both images: one BatchNorm over both, and larger matrix products.
        embeddings = self.encode(jnp.concatenate([image1, image2]), train)
        return self.compare(*jnp.split(embeddings, 2))

    def encode(self, images, train=False):
        """uint8 [n, height, width, channels] -> embeddings [n, size].

        Except in a training step it is the mean over three `moved` copies, with views=3: strides
        let an embedding change when its image moves by a pixel (Zhang 2019, arXiv:1904.11486).
        With the loss supcon it is whitened then; in a training step losses.py does that.
        """
        if train:
            return self.embed(images, train)
        # One by one: all at once would take three times the memory.
        copies = moved(images) if self.views == 3 else [images]
        x = sum(self.embed(copy, train) for copy in copies) / self.views
        return x if self.whitening is None else self.whitening(x)

    def embed(self, images, train):
        """As `encode`, of the images as they are.

        A frozen encoder's BatchNorm uses its running statistics in training, too, and keeps them.
        An encoder with weights from ImageNet gets three channels, normalised as it was there.
        """
        x = images.astype(self.dtype) / 255
        if self.of_imagenet:
            mean, std = (jnp.asarray([[[c]]], x.dtype) for c in (IMAGENET_MEAN, IMAGENET_STD))
            x = (x - mean) / std
        return self.encoder(x, train and not self.frozen)

    def compare(self, embeddings1, embeddings2):
        """Two [n, size] -> logits float32 [n]; all axes but the last may be broadcast."""
        return self.head(embeddings1, embeddings2)

    @nn.nowrap
    def losses(self, logits, label):
        """Logits and labels (1: same), float32 of one shape -> the loss of each pair."""
        return self.head.losses(logits, label)


def moved(images):
    """Images [n, height, width, channels], and copies moved there and back: a list of three.

    They move along the diagonal by 1/24 of the shorter side; pixels of the border fill the gap.
    """
    height, width = images.shape[1:3]
    step, copies = round(min(height, width) / 24), [images]
    for shift in (-step, step):
        rows, columns = ((np.arange(size) + shift).clip(0, size - 1) for size in (height, width))
        copy = jnp.take(images, rows, axis=1, mode="clip")
        copies.append(jnp.take(copy, columns, axis=2, mode="clip"))
    return copies


def length(x):
    """The length of vectors [..., size]; its gradient at 0 is 0, thanks to the tiny number."""
    return jnp.sqrt((x**2).sum(axis=-1) + 1e-12)


def unit(embeddings):
    """Embeddings scaled to length 1, in float32; those that are 0 stay 0."""
    x = embeddings.astype(jnp.float32)
    return x / length(x)[..., None]


multiply = partial(jnp.matmul, precision="highest")  # of float32: on GPUs not in TF32


class Whitening(nn.Module):
    """Directions in which images of one class differ much count less: [n, size] -> float32.

    The square roots of embeddings, which are at least 0, are scaled to length 1 (Perronnin et al.
    2010, "Improving the Fisher Kernel"), and multiplied by the inverse root of their covariance
    within classes (WCCN, Hatch & Stolcke 2006). Before that the covariance is divided by its mean
    variance, and the identity is added, so that small variances, perhaps by chance, do not matter.
    """

    size: int

    def setup(self):
        shape = (self.size, self.size)
        self.covariance = self.variable("batch_stats", "covariance", jnp.zeros, shape)
        self.matrix = self.variable("batch_stats", "matrix", jnp.eye, self.size)

    def __call__(self, embeddings):
        return multiply(self.roots(embeddings), self.matrix.value)

    @nn.nowrap
    def roots(self, embeddings):
        return unit(jnp.sqrt(embeddings.astype(jnp.float32)))

    def learn(self, embeddings, everyone, alike):
        """Updates the covariance, a running mean over training batches, and the matrix.

        Embeddings [n, size] of this device and [m, size] of all devices; alike, bool [n, m], says
        which of them are of one class.
        """
        alike = alike.astype(jnp.float32)
        means = multiply(alike, self.roots(everyone)) / alike.sum(axis=1, keepdims=True)
        deviations = self.roots(embeddings) - means
        found = lax.pmean(multiply(deviations.T, deviations) / len(deviations), AXIS)
        covariance = 0.99 * self.covariance.value + 0.01 * found
        mean = jnp.trace(covariance) / self.size
        self.covariance.value = covariance
        self.matrix.value = inverse_root(covariance / (mean + 1e-12) + jnp.eye(self.size))


def inverse_root(matrix):
    """The inverse of the square root of a symmetric matrix whose eigenvalues are at least 1.

    Coupled Newton-Schulz iteration (Higham 2008, "Functions of Matrices", section 6.7), by products
    alone: on CPU a triangular solve wakes threads of OpenBLAS, which keep a core busy afterwards;
    training steps were a quarter slower. A round multiplies small eigenvalues by 2.25: there are
    enough rounds for one eigenvalue of 1 plus the matrix's size.
    """
    norm, identity = jnp.sqrt((matrix**2).sum()), jnp.eye(len(matrix))
    rounds = 5 + math.ceil(math.log(len(matrix) + 1, 2.25))

    def improve(_, roots):
        root, inverse = roots
        factor = 1.5 * identity - 0.5 * multiply(inverse, root)
        return multiply(root, factor), multiply(factor, inverse)

    _, inverse = lax.fori_loop(0, rounds, improve, (matrix / norm, identity))
    return inverse / jnp.sqrt(norm)


class MLP(nn.Module):
    """A hidden layer on |e1 - e2|: two embeddings [..., size] -> logits float32 [...]."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, embeddings1, embeddings2):
        hidden = nn.Dense(self.features, dtype=self.dtype, name="hidden")
        x = nn.relu(hidden(jnp.abs(embeddings1 - embeddings2)))
        return nn.Dense(1, name="logit")(x.astype(jnp.float32)).squeeze(-1)

    losses = staticmethod(optax.sigmoid_binary_cross_entropy)


class Cosine(nn.Module):
    """The cosine of two embeddings as a logit: scaled and shifted by two learnt numbers."""

    first_scale: float
    first_threshold: float

    @nn.compact
    def __call__(self, embeddings1, embeddings2):
        e1, e2 = (e.astype(jnp.float32) for e in (embeddings1, embeddings2))
        cosine = (e1 * e2).sum(axis=-1) / (length(e1) * length(e2))
        constant = nn.initializers.constant
        scale = self.param("log_scale", constant(math.log(self.first_scale)), ())
        threshold = self.param("threshold", constant(self.first_threshold), ())
        return jnp.exp(scale) * (cosine - threshold)

    losses = staticmethod(optax.sigmoid_binary_cross_entropy)


class Euclidean(nn.Module):
    """Half the margin, minus the distance of two embeddings.

    Its sign decides, but as a logit it is not calibrated: the probability of "same" is at most
    sigmoid(margin / 2).
    """

    margin: float

    def __call__(self, embeddings1, embeddings2):
        difference = embeddings1.astype(jnp.float32) - embeddings2.astype(jnp.float32)
        return self.margin / 2 - length(difference)

    @nn.nowrap
    def losses(self, logits, label):
        """The contrastive loss (Hadsell et al. 2006, where the label of "same" is 0)."""
        distance = self.margin / 2 - logits
        shortfall = jnp.maximum(self.margin - distance, 0)
        return label * distance**2 + (1 - label) * shortfall**2


class CNN(nn.Module):
    """Convolutions, BatchNorm and ReLU; each stage has half the resolution of the one before.

    Kernels are 3x3; those of stride 2 are 4x4, which see a map of even size the same from all
    sides, and let less depend on where a pixel falls.
    float [n, height, width, channels] -> embeddings [n, width * 2 ** (len(stage_sizes) - 1)]: the
    mean of each channel of the last stage.
    """

    stage_sizes: tuple[int, ...]
    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, train):
        conv, norm = layers(self.dtype, train)
        for stage, depth in enumerate(self.stage_sizes):
            for index in range(depth):
                stride = 2 if index == 0 and max(x.shape[1:3]) > 1 else 1
                kernel, strides = (stride + 2,) * 2, (stride,) * 2
                x = conv(self.width * 2**stage, kernel, strides=strides, padding=1)(x)
                x = nn.relu(norm()(x))
        return x.mean(axis=(1, 2))


class ResNet(nn.Module):
    """torchvision's ResNet of basic blocks (He et al. 2016, arXiv:1512.03385), no classifier.

    Structure, names, initialisation and padding are torchvision's (XLA's SAME shifts strided layers
    by a pixel). One grey channel is copied to three. Weights that meet only padding are left out
    (`taps`), so parameters fit one size of images. small: a 3x3 stem of stride 1 and no max-pool.
    float [n, height, width, channels] -> embeddings [n, width * 2 ** (len(stage_sizes) - 1)].
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
        x = conv(self.width, (kernel, kernel), stride, **options)(x)
        x = nn.relu(norm(name="bn1")(x))
        x = x if self.small else max_pool(x)
        for stage, blocks in enumerate(self.stage_sizes):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                name = f"layer{stage + 1}_{block}"
                x = BasicBlock(self.width * 2**stage, stride, conv, norm, name=name)(x)
        return x.mean(axis=(1, 2))


def layers(dtype, train):
    """Constructors of convolution and BatchNorm with torchvision's initialisation and options."""
    initial = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    options = {"kernel_init": initial, "conv_general_dilated": convolve}
    conv = partial(nn.Conv, use_bias=False, dtype=dtype, **options)
    options = {"use_running_average": not train, "axis_name": AXIS if train else None}
    return conv, partial(BatchNorm, momentum=0.9, epsilon=1e-5, dtype=dtype, **options)


class BatchNorm(nn.BatchNorm):
    """BatchNorm on [pixels, channels]: XLA sums over one axis far faster than over three."""

    def __call__(self, x):
        return super().__call__(x.reshape(-1, x.shape[-1])).reshape(x.shape)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions plus a shortcut, which is 1x1 where the shape changes, else identity."""

    features: int
    stride: int
    conv: partial
    norm: partial

    @nn.compact
    def __call__(self, x):
        y = self.conv(self.features, strides=self.stride, name="conv1", **taps(x, self.stride))(x)
        y = nn.relu(self.norm(name="bn1")(y))
        y = self.conv(self.features, name="conv2", **taps(y, 1))(y)
        y = self.norm(name="bn2")(y)
        if x.shape != y.shape:
            x = self.conv(self.features, (1, 1), self.stride, padding=0, name="downsample_0")(x)
            x = self.norm(name="downsample_1")(x)
        return nn.relu(x + y)


def taps(x, stride):
    """Options of nn.Conv for a 3x3 kernel with padding 1, without taps that meet only padding.

    On a square map no larger than the stride only the taps from the middle on meet it, as many as
    it has pixels along each axis. They keep the initial variance of a whole kernel. At 32x32 pixels
    seven of ResNet18's eleven million weights go.
    """
    sizes = x.shape[1:3]
    if max(sizes) > stride:
        return {"kernel_size": (3, 3), "padding": 1}
    initial = nn.initializers.variance_scaling(2.0 * math.prod(sizes) / 9, "fan_out", "normal")
    return {"kernel_size": sizes, "padding": 0, "kernel_init": initial}
