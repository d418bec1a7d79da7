"""Convolutions and max-pooling that are fast on CPU; on accelerators XLA's own compute them."""

from functools import partial, reduce

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def convolve(x, kernel, strides, padding, **options):
    """`lax.conv_general_dilated` as `nn.Conv` calls it: the same sums, on CPU in other ways.

    There XLA's forward pass is fast unless maps or kernels are small; its gradients run at two
    thirds to a tenth of the speed of a matrix product (that of the input at stride 1: in loops).
    """
    if jax.default_backend() != "cpu":
        return lax.conv_general_dilated(x, kernel, strides, padding, **options)
    if min(kernel.shape[:2]) > 1 and min(output_sizes(x, kernel, strides, padding)) < 4:
        return multiply_pixels(x, kernel, strides, padding)
    return convolve_on_cpu(x, kernel, tuple(strides), tuple(padding))


def convolve_copies(x, kernel, strides, padding, **options):
    """`convolve` of channels that are all the same: of one, with the sum of the kernels of all."""
    return convolve(x[..., :1], kernel.sum(axis=2, keepdims=True), strides, padding, **options)


def multiply_pixels(x, kernel, strides, padding):
    """Each output pixel by a product of its own, of the pixels that it sees and their taps.

    Those that meet nothing but padding are left out, exactly: five of nine taps of a 3x3 kernel on
    a map of 2x2, eight on one of 1x1.
    """
    images = x.shape[0]  # not len: of an export it is a symbol
    rows, columns = (
        [*found] for found in map(windows, x.shape[1:3], kernel.shape[:2], strides, padding)
    )
    products = [
        x[:, i, j].reshape(images, -1) @ kernel[k, m].reshape(-1, kernel.shape[-1])
        for i, k in rows
        for j, m in columns
    ]
    return jnp.stack(products, axis=1).reshape(images, len(rows), len(columns), -1)


def windows(size, kernel_size, stride, padding):
    """One axis of it: the slices of pixels and of taps that meet, for each output pixel."""
    for first in range(-padding[0], size + padding[1] - kernel_size + 1, stride):
        low = min(max(first, 0), size)
        high = max(min(first + kernel_size, size), low)
        yield slice(low, high), slice(low - first, high - first)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve_on_cpu(x, kernel, strides, padding):
    if kernel.shape[:2] == (1, 1):
        return multiply_each(x, kernel, strides, padding)
    if kernel.size <= 512:  # up to here XLA takes longer; measured, on two cores
        return sum_taps(x, kernel, strides, padding)
    return convolve_directly(x, kernel, strides, padding)


def forward(x, kernel, strides, padding):
    return convolve_on_cpu(x, kernel, strides, padding), (x, kernel)


@partial(jax.jit, static_argnums=(0, 1))  # layers of one shape are traced once
def backward(strides, padding, operands, gradient):
    """The gradient of the input by convolutions of stride 1 or by a product; that of the kernel by
    `correlate`, a part of the images at a time.
    """
    x, kernel = operands
    if kernel.shape[:2] == (1, 1):
        _, transpose = jax.vjp(lambda x: multiply_each(x, kernel, strides, padding), x)
        (input_gradient,) = transpose(gradient)
    else:
        input_gradient = convolve_transposed(gradient, kernel, x.shape, strides, padding)

    def add(total, part):
        return total + correlate(*part, kernel.shape, strides, padding), None

    count = parts(x, gradient, kernel.shape)
    split = [array.reshape(count, -1, *array.shape[1:]) for array in (x, gradient)]
    kernel_gradient, _ = lax.scan(add, jnp.zeros(kernel.shape, jnp.float32), split)
    return input_gradient, kernel_gradient.astype(kernel.dtype)


convolve_on_cpu.defvjp(forward, backward)


def correlate(x, gradient, shape, strides, padding):
    """The kernel's gradient by one convolution along the rows of maps.

    What is summed over, images and columns of the output, are its channels; its columns are those
    of the kernel times the channels of x; its weights are the output's gradient. So x is copied
    once for each column of the kernel, not for each of its taps.
    """
    rows, columns, channels, features = shape
    _, height, width, _ = gradient.shape
    # Barriers: transposing is slow in one go with the copies, and reading either more than once.
    x = lax.optimization_barrier(x.transpose(1, 3, 0, 2))
    x = jnp.pad(x, (padding[0], (0, 0), (0, 0), padding[1]))
    x = x[: rows + strides[0] * (height - 1)]  # without rows that no output sees
    x = jnp.stack([x[..., tap] for tap in tap_slices(columns, strides[1], width)], axis=1)
    x = lax.optimization_barrier(x.reshape(1, len(x), columns * channels, -1))
    weights = lax.optimization_barrier(gradient.swapaxes(0, 1).reshape(height, 1, -1, features))
    options = {"rhs_dilation": (strides[0], 1), "dimension_numbers": DIMENSIONS}
    product = lax.conv_general_dilated(x, weights, (1, 1), "VALID", **options)
    return product.reshape(shape)


def multiply_each(x, kernel, strides, padding):
    """A convolution by a kernel of one tap: a product for each pixel that a stride meets."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    return x[:, :: strides[0], :: strides[1]] @ kernel[0, 0]


def sum_taps(x, kernel, strides, padding):
    """A convolution of few weights: for each the pixels that it meets, times it; their sum.

    XLA makes a single loop of it, which reads x and writes the result once. Sums are of float32, as
    in XLA's own.
    """
    counts = output_sizes(x, kernel, strides, padding)
    rows, columns = map(tap_slices, kernel.shape[:2], strides, counts)
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0))).astype(jnp.float32)
    views = (
        padded[:, row, column, channel, None]
        for row in rows
        for column in columns
        for channel in range(x.shape[-1])
    )
    weights = kernel.reshape(-1, 1, 1, 1, kernel.shape[-1]).astype(jnp.float32)
    total = sum(view * weight for view, weight in zip(views, weights, strict=True)).astype(x.dtype)
    # A matrix behind a barrier: else XLA may have BatchNorm's mean compute all this once more and
    # sum it pixel by pixel, which made gradients of a small network 40 times less exact.
    return lax.optimization_barrier(total.reshape(-1, total.shape[-1])).reshape(total.shape)


def output_sizes(x, kernel, strides, padding):
    return [*map(output_size, x.shape[1:3], kernel.shape[:2], strides, padding)]


def output_size(size, kernel_size, stride, padding):
    return (size + sum(padding) - kernel_size) // stride + 1


def convolve_directly(x, kernel, strides, padding):
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=DIMENSIONS)


def convolve_transposed(gradient, kernel, shape, strides, padding):
    """The gradient of a convolution's input of a shape, from its output's.

    Pixels that are strides apart meet the same taps: of each such phase it is a convolution of
    stride 1 with the taps turned round.
    """
    rows, columns = (
        [*found] for found in map(phases, shape[1:3], kernel.shape[:2], strides, padding)
    )
    zero = jnp.zeros((), gradient.dtype)
    total = jnp.full(shape, zero)  # and so it stays where no pixel meets a tap
    for row_taps, row_pad, row_holes in rows:
        for column_taps, column_pad, column_holes in columns:
            taps = kernel[row_taps, column_taps][::-1, ::-1].swapaxes(2, 3)
            # A barrier, so that they are turned in memory: else XLA has the convolution read them
            # as they are, which is 15 times slower where it stands in a loop.
            taps = lax.optimization_barrier(taps)
            part = convolve_directly(gradient, taps, (1, 1), (row_pad, column_pad))
            total += lax.pad(part, zero, ((0, 0, 0), row_holes, column_holes, (0, 0, 0)))
    return total


def phases(size, kernel_size, stride, padding):
    """One axis of it, for each phase that meets taps: their slice, the padding, and where its
    pixels lie: how many others are before, behind and between them.
    """
    count = output_size(size, kernel_size, stride, padding)
    for first in range(min(stride, size)):
        output, tap = divmod(first + padding[0], stride)  # the last that meets the first pixel
        if tap < kernel_size:
            pixels, taps = len(range(first, size, stride)), len(range(tap, kernel_size, stride))
            holes = first, (size - 1 - first) % stride, stride - 1
            yield slice(tap, None, stride), (taps - 1 - output, pixels - count + output), holes


CACHE = 3_000_000  # bytes that are fast to read again; measured, on two cores


def parts(x, gradient, shape):
    """In how many equal parts of the images a kernel's gradient is summed.

    The fewest whose copies of x and output's gradient fit into caches, none of less than eight
    images, which are slow again.
    """
    copies = x.size // x.shape[2] * shape[1] * gradient.shape[2]
    size = (copies + gradient.size) * gradient.dtype.itemsize
    counts = [c for c in range(1, len(x) // 8 + 1) if len(x) % c == 0] or [1]
    return next((count for count in counts if size <= CACHE * count), counts[-1])


def tap_slices(size, stride, count):
    """One axis of a kernel: the slice of padded pixels that each of its taps meets."""
    return [slice(tap, tap + stride * (count - 1) + 1, stride) for tap in range(size)]


def max_pool(x):
    """3x3 max-pool of stride 2 and padding 1 of non-negative maps [n, height, width, channels].

    On CPU as maxima of strided slices, columns first: XLA's own gradient takes 15 times as long.
    The same gradient: of equal maxima the first in reading order receives it.
    """
    if jax.default_backend() != "cpu":
        return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for axis in (2, 1):
        size = x.shape[axis] - 2
        parts = [lax.slice_in_dim(x, tap, tap + size, 2, axis) for tap in range(3)]
        x = reduce(lambda first, other: jnp.where(first >= other, first, other), parts)
    return x
