"""Convolutions and a max-pooling that are fast on CPU. Other devices use those of XLA.

    x         [N, H, W, C]      N maps of H x W pixels and C channels
    kernel    [K, K, C, F]      K x K taps; a tap is the C x F weights at one place of the kernel
    output    [N, H', W', F]    H' = (H + 2 pad - K) // stride + 1, W' likewise
    gradient  like output       the gradient of the loss with respect to the output

All compute the sums of the usual convolution, in a different order:

    output[n, h, w, f] = sum over i, j, c of
        x[n, stride h + i - pad, stride w + j - pad, c] kernel[i, j, c, f]
"""

from functools import partial, reduce

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

DIMENSIONS = lax.conv_dimension_numbers((1,) * 4, (1,) * 4, ("NHWC", "HWIO", "NHWC"))
convolve_by_xla = partial(lax.conv_general_dilated, dimension_numbers=DIMENSIONS)
# What `nn.Conv` passes if a layer has no special options:
PLAIN_OPTIONS = {"dimension_numbers": DIMENSIONS, "feature_group_count": 1, "precision": None}
PLAIN_OPTIONS |= {"lhs_dilation": (1, 1), "rhs_dilation": (1, 1)}
# XLA is slow below these sizes, measured on two cores of a CPU:
SMALL_OUTPUT = 4  # rows or columns
FEW_WEIGHTS = 512  # in the whole kernel
CACHE_BYTES = 3_000_000  # fast to read again, measured there too


def convolve(x, kernel, strides, padding, **options):
    """`lax.conv_general_dilated` as `nn.Conv` calls it, faster on CPU.

    XLA is slow there if the output or the kernel is small. Its gradients are always slow: they run
    at two thirds to a tenth of the speed of a matrix product (that of x at stride 1: in loops).
    What is not `is_supported` is left to XLA.
    """
    if jax.default_backend() != "cpu" or not is_supported(x, kernel, strides, padding, options):
        return convolve_by_xla(x, kernel, strides, padding, **options)
    stride, pad, kernel_size = strides[0], padding[0][0], kernel.shape[0]
    smaller_side = output_size(min(x.shape[1:3]), kernel_size, stride, pad)
    if kernel_size > 1 and smaller_side < SMALL_OUTPUT:
        return multiply_each_pixel(x, kernel, stride, pad)
    return convolve_large_map(x, kernel, stride, pad)


def convolve_copies(x, kernel, strides, padding, **options):
    """`convolve` of channels that are all equal: of one, with the sum of all channels' kernels."""
    return convolve(x[..., :1], kernel.sum(axis=2, keepdims=True), strides, padding, **options)


def is_supported(x, kernel, strides, padding, options):
    """Whether `convolve` has a faster way than XLA.

    For square kernels, stride 1 or 2 and one padding of at most half the kernel; no other options.
    """
    kernel_size = kernel.shape[0]
    return (
        kernel.shape[1] == kernel_size
        and tuple(strides) in ((1, 1), (2, 2))
        and list(padding) in [[(pad, pad)] * 2 for pad in range(kernel_size // 2 + 1)]
        and output_size(min(x.shape[1:3]), kernel_size, strides[0], padding[0][0]) > 0
        and options.items() <= PLAIN_OPTIONS.items()
    )


def output_size(size, kernel_size, stride, pad):
    return (size + 2 * pad - kernel_size) // stride + 1


def multiply_each_pixel(x, kernel, stride, pad):
    """One matrix product for each output pixel, of the input pixels that it sees and their taps.

    Taps over the padding are left out: on a 2x2 map five of the nine of a 3x3 kernel.
    """
    images, features = x.shape[0], kernel.shape[-1]  # not len(x): in an export it is a symbol
    rows, columns = ([*overlaps(size, kernel.shape[0], stride, pad)] for size in x.shape[1:3])
    pixels = [
        x[:, row, column].reshape(images, -1) @ kernel[row_taps, column_taps].reshape(-1, features)
        for row, row_taps in rows
        for column, column_taps in columns
    ]
    return jnp.stack(pixels, axis=1).reshape(images, len(rows), len(columns), features)


def overlaps(size, kernel_size, stride, pad):
    """Along one axis: yields for each output pixel the input pixels and the taps that meet."""
    for output in range(output_size(size, kernel_size, stride, pad)):
        start = output * stride - pad  # the pixel under the first tap; below 0: padding
        first, end = max(start, 0), min(start + kernel_size, size)
        yield slice(first, end), slice(first - start, end - start)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve_large_map(x, kernel, stride, pad):
    """A convolution whose gradients are computed by `backward`."""
    if kernel.shape[0] == 1:
        return multiply_1x1(x, kernel, stride)
    if kernel.size <= FEW_WEIGHTS:
        return sum_taps(x, kernel, stride, pad)
    return convolve_by_xla(x, kernel, (stride, stride), ((pad, pad), (pad, pad)))


@partial(jax.jit, static_argnums=(0, 1))  # layers of one shape are traced once
def backward(stride, pad, operands, gradient):
    """The gradients of x and of the kernel."""
    x, kernel = operands
    if kernel.shape[0] == 1:
        transposed = jax.linear_transpose(lambda x: multiply_1x1(x, kernel, stride), x)
        (x_gradient,) = transposed(gradient)
    else:
        x_gradient = input_gradient(gradient, kernel, x.shape, stride, pad)
    return x_gradient, kernel_gradient(x, gradient, kernel, stride, pad)


convolve_large_map.defvjp(lambda *args: (convolve_large_map(*args), args[:2]), backward)


def multiply_1x1(x, kernel, stride):
    """A convolution with a 1x1 kernel and no padding: one matrix product over the pixels."""
    return x[:, ::stride, ::stride] @ kernel[0, 0]


def sum_taps(x, kernel, stride, pad):
    """A convolution with few weights: the float32 sum of shifted maps, each times a row of weights.

    XLA makes one loop of it, which reads x and writes the output once.
    """
    height, width = (output_size(s, kernel.shape[0], stride, pad) for s in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0))).astype(jnp.float32)
    shifted = (
        padded[:, rows, columns, channel, None]
        for rows in tap_slices(kernel.shape[0], stride, height)
        for columns in tap_slices(kernel.shape[0], stride, width)
        for channel in range(x.shape[-1])
    )
    weights = kernel.reshape(-1, 1, 1, 1, kernel.shape[-1]).astype(jnp.float32)
    total = sum(one * weight for one, weight in zip(shifted, weights, strict=True)).astype(x.dtype)
    # A matrix behind a barrier: else XLA may have BatchNorm's mean compute all this once more and
    # sum it pixel by pixel, which made gradients of a small network 40 times less exact.
    return lax.optimization_barrier(total.reshape(-1, total.shape[-1])).reshape(total.shape)


def tap_slices(kernel_size, stride, outputs):
    """Along one axis: for each tap the slice of padded pixels that it meets, one per output."""
    return [slice(tap, tap + stride * (outputs - 1) + 1, stride) for tap in range(kernel_size)]


def input_gradient(gradient, kernel, shape, stride, pad):
    """The gradient of x, which has this shape, by convolutions of stride 1.

    With stride 2, pixels of even and of odd index meet different taps, on each axis: four
    convolutions of the output's gradient each give a quarter of the pixels.
    """
    rows, columns = ([*phases(size, kernel.shape[0], stride, pad)] for size in shape[1:3])
    zero = jnp.zeros((), gradient.dtype)
    total = jnp.full(shape, zero)
    for row_taps, row_padding, row_spread in rows:
        for column_taps, column_padding, column_spread in columns:
            taps = kernel[row_taps, column_taps][::-1, ::-1].swapaxes(2, 3)
            # A barrier, so that they are turned in memory: 15 times faster in a loop.
            taps = lax.optimization_barrier(taps)
            part = convolve_by_xla(gradient, taps, (1, 1), (row_padding, column_padding))
            total += lax.pad(part, zero, ((0, 0, 0), row_spread, column_spread, (0, 0, 0)))
    return total


def phases(size, kernel_size, stride, pad):
    """Yields (taps, padding, spread) for each phase of one axis of x: its pixels meet equal taps.

    These are the pixels first, first + stride, ... for each first below the stride. The padding, of
    the output's gradient, gives one value for each of them; spread is how many other pixels lie
    before, behind and between them.
    Pixel p meets tap i in output o where p + pad = stride o + i. The first pixel of a phase meets
    tap `tap` in output `output`; the m-th after it meets tap + stride t in output + m - t.
    """
    outputs = output_size(size, kernel_size, stride, pad)
    for first in range(stride):
        output, tap = divmod(first + pad, stride)
        taps, pixels = len(range(tap, kernel_size, stride)), len(range(first, size, stride))
        before = taps - 1 - output  # so many outputs that the first pixel meets do not exist
        behind = output + pixels - outputs  # and so many of the last pixel's
        spread = first, (size - 1 - first) % stride, stride - 1
        yield slice(tap, None, stride), (before, behind), spread


def kernel_gradient(x, gradient, kernel, stride, pad):
    """The gradient of the kernel [K, K, C, F], summed over parts of the images."""

    def add(total, part):
        found = kernel_gradient_of_part(*part, kernel.shape[0], stride, pad)
        return total + found.astype(jnp.float32), None

    count = part_count(x, gradient, kernel.shape[0])
    parts = [array.reshape(count, -1, *array.shape[1:]) for array in (x, gradient)]
    total, _ = lax.scan(add, jnp.zeros(kernel.shape, jnp.float32), parts)
    return total.astype(kernel.dtype)


def part_count(x, gradient, kernel_size):
    """In how many equal parts a kernel's gradient is summed: the fewest that fit into caches.

    A part needs K copies of x (see below) and its gradient. Under eight images it is slow again.
    """
    copies = x.size // x.shape[2] * kernel_size * gradient.shape[2]
    size = (copies + gradient.size) * gradient.dtype.itemsize
    counts = [c for c in range(1, len(x) // 8 + 1) if len(x) % c == 0] or [1]
    return next((count for count in counts if size <= CACHE_BYTES * count), counts[-1])


def kernel_gradient_of_part(x, gradient, kernel_size, stride, pad):
    """The gradient of the kernel by one convolution along the rows.

    kernel_gradient[i, j, c, f] = sum over h, (n, w) of
        x[n, stride h + i - pad, stride w + j - pad, c] gradient[n, h, w, f]

    For XLA, h are the taps of a dilated kernel, (n, w) are channels and (j, c) are columns:

        [1, rows, K C, N W'] * [H', 1, N W', F] -> [1, K, K C, F]

    So x is copied K times, once for each j. For a matrix product it would be K K times.
    """
    images, height, width, features = gradient.shape
    # Barriers: transposing is slow in one go with the copies, and reading either more than once.
    x = lax.optimization_barrier(x.transpose(1, 3, 0, 2))
    x = jnp.pad(x, ((pad, pad), (0, 0), (0, 0), (pad, pad)))
    x = x[: kernel_size + stride * (height - 1)]  # without rows that no output sees
    x = jnp.stack([x[..., tap] for tap in tap_slices(kernel_size, stride, width)], axis=1)
    x = lax.optimization_barrier(x.reshape(1, len(x), -1, images * width))
    weights = lax.optimization_barrier(gradient.swapaxes(0, 1).reshape(height, 1, -1, features))
    product = convolve_by_xla(x, weights, (1, 1), "VALID", rhs_dilation=(stride, 1))
    return product.reshape(kernel_size, kernel_size, -1, features)


def max_pool(x):
    """3x3 max-pooling with stride 2 and padding 1 of non-negative maps [N, H, W, C].

    On CPU: maxima of strided slices, columns first. XLA's own gradient takes 15 times as long.
    The gradient is the same: of equal maxima the first in reading order receives it.
    """
    if jax.default_backend() != "cpu":
        return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for axis in (2, 1):
        size = x.shape[axis] - 2
        parts = [lax.slice_in_dim(x, tap, tap + size, 2, axis) for tap in range(3)]
        x = reduce(lambda first, other: jnp.where(first >= other, first, other), parts)
    return x
