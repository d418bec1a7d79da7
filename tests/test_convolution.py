"""Convolutions and max-pooling of CPU: their values and gradients are those of XLA."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config
from flax import linen as nn
from jax import lax

import convolution
from convolution import convolve, convolve_copies, max_pool
from model import create_model, variable_shapes

pytestmark = pytest.mark.usefixtures("strict_dtype_promotion")

FEATURES = 5
of_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="other devices have XLA's own")
by_xla = partial(lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def strides_and_padding(stride, pad):
    """As `nn.Conv` passes them."""
    return (stride, stride), [(pad, pad)] * 2


def normal_numbers(images, size, channels, kernel_sizes, dtype=jnp.float32):
    """Random maps and a random kernel."""
    rng = np.random.default_rng(0)
    shapes = (images, *size, channels), (*kernel_sizes, channels, FEATURES)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def compare(draw, x, kernel, stride, pad):
    """Pairs of what XLA and `convolve` compute: the output, the gradients of x and of the kernel.

    The gradient of the output is draw(*shape).
    """

    def output_and_gradients(function, x, kernel, gradient):
        output, pull = jax.vjp(partial(apply, function), x, kernel)
        return output, *pull(gradient)

    def apply(function, x, kernel):
        return function(x, kernel, *strides_and_padding(stride, pad))

    gradient = draw(*jax.eval_shape(partial(apply, by_xla), x, kernel).shape)
    found = (
        jax.jit(partial(output_and_gradients, function))(x, kernel, gradient)
        for function in (by_xla, convolve)
    )
    return zip(*found, strict=True)


CASES = [  # size, channels, kernel_size, stride, pad
    # each output pixel by itself
    ((1, 1), 6, 3, 1, 1),
    ((2, 1), 5, 3, 2, 1),
    ((2, 2), 7, 3, 1, 1),
    ((2, 2), 7, 2, 2, 0),
    ((9, 5), 4, 3, 2, 1),
    ((3, 5), 33, 3, 1, 1),
    ((5, 6), 4, 7, 2, 3),
    # a kernel of one tap
    ((1, 1), 6, 1, 2, 0),
    ((6, 7), 3, 1, 2, 0),
    ((6, 7), 33, 1, 1, 0),
    # few weights
    ((8, 8), 3, 3, 1, 1),
    ((9, 8), 4, 3, 2, 1),
    ((32, 31), 1, 7, 2, 3),
    # many weights
    ((6, 5), 33, 3, 1, 1),
    ((9, 8), 33, 3, 2, 1),
    ((9, 8), 33, 2, 2, 0),  # the last row meets no tap
    ((32, 31), 11, 7, 2, 3),
]
IMAGES = [(*case, 24) for case in CASES]
IMAGES += [pytest.param(*case, 2, marks=pytest.mark.slow) for case in CASES[::4]]  # of each kind


@pytest.mark.parametrize("size, channels, kernel_size, stride, pad, images", IMAGES)
def test_convolution_and_gradients_equal_xla(
    size, channels, kernel_size, stride, pad, images, monkeypatch
):
    monkeypatch.setattr(convolution, "CACHE_BYTES", 100)  # of 24 images in three parts
    x, kernel = normal_numbers(images, size, channels, (kernel_size, kernel_size))
    random = np.random.default_rng(1)
    pairs = compare(lambda *n: random.normal(size=n).astype(np.float32), x, kernel, stride, pad)
    for expected, found in pairs:
        bound = 1e-5 * np.abs(expected).max() + 1e-12
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=bound)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    "size, kernel_size, stride, pad",
    [
        ((9, 8), 1, 2, 0),
        ((8, 9), 2, 2, 0),
        ((8, 7), 2, 2, 1),
        ((4, 5), 3, 1, 1),
        ((9, 8), 3, 2, 1),
        ((10, 9), 3, 2, 0),
        ((8, 9), 7, 2, 3),
    ],
)
def test_gradients_of_whole_numbers_are_exact(size, kernel_size, stride, pad, dtype, monkeypatch):
    monkeypatch.setattr(convolution, "CACHE_BYTES", 100)  # two parts
    rng = np.random.default_rng(0)

    def whole_numbers(*shape):  # whose sums are exact in both types
        return jnp.asarray(rng.integers(-1, 2, shape), dtype)

    x, kernel = whole_numbers(16, *size, 3), whole_numbers(kernel_size, kernel_size, 3, FEATURES)
    for expected, found in compare(whole_numbers, x, kernel, stride, pad):
        assert found.dtype == dtype and (found == expected).all() and (found != 0).any()


@pytest.mark.parametrize("size, channels", [(16, 3), (16, 40), (2, 6)])
def test_in_bfloat16_sums_are_as_exact_as_the_numbers(size, channels):
    x, kernel = normal_numbers(4, (size, size), channels, (3, 3), jnp.bfloat16)
    found = convolve(x, kernel, *strides_and_padding(1, 1))
    assert found.dtype == jnp.bfloat16
    exact = by_xla(x.astype(jnp.float32), kernel.astype(jnp.float32), (1, 1), "SAME")
    assert np.abs(found.astype(jnp.float32) - exact).max() <= 2**-8 * np.abs(exact).max()


def test_the_mean_of_a_convolution_of_few_weights_is_exact():
    """As BatchNorm computes it. Summed pixel by pixel it would be 20 times less exact."""
    rng = np.random.default_rng(0)
    x, kernel = (rng.uniform(size=n).astype(np.float32) for n in ((64, 32, 32, 1), (3, 3, 1, 4)))

    @jax.jit
    def output_and_mean(x, kernel):
        output = convolve(x, kernel, *strides_and_padding(1, 1))
        return output, output.reshape(-1, 4).mean(axis=0)

    output, mean = output_and_mean(x, kernel)
    np.testing.assert_allclose(mean, np.float64(output).mean(axis=(0, 1, 2)), rtol=5e-7)


def test_equal_channels_are_convolved_as_one():
    x, kernel = normal_numbers(2, (9, 9), 3, (7, 7))
    x = jnp.broadcast_to(x[..., :1], x.shape)
    expected, found = (
        jax.jit(function, static_argnums=(2, 3))(x, kernel, (2, 2), ((3, 3), (3, 3)))
        for function in (by_xla, convolve_copies)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


PAD = [(1, 1), (1, 1)]


@pytest.mark.parametrize(
    "kernel_sizes, strides, padding, options",
    [
        ((3, 2), (1, 1), PAD, {}),
        ((3, 3), (1, 2), PAD, {}),
        ((3, 3), (3, 3), PAD, {}),
        ((3, 3), (1, 1), [(1, 0), (1, 0)], {}),
        ((3, 3), (1, 1), [(0, 0), (1, 1)], {}),
        ((3, 3), (1, 1), [(2, 2), (2, 2)], {}),
        ((3, 3), (2, 2), "SAME", {}),
        ((9, 9), (1, 1), [(0, 0), (0, 0)], {}),  # an empty output
        ((3, 3), (1, 1), PAD, {"rhs_dilation": (2, 2)}),
        ((3, 3), (1, 1), PAD, {"lhs_dilation": (2, 2)}),
        ((3, 3), (1, 1), PAD, {"precision": lax.Precision.HIGHEST}),
        ((3, 3), (1, 1), PAD, {"preferred_element_type": jnp.float32}),
        ((3, 3), (1, 1), PAD, {"feature_group_count": 2}),
        ((3, 3), (1, 1), PAD, {"dimension_numbers": ("NWHC", "HWIO", "NHWC")}),
    ],
)
def test_other_convolutions_are_left_to_xla(kernel_sizes, strides, padding, options):
    x, kernel = normal_numbers(2, (8, 7), 4, kernel_sizes)
    channels = 4 // options.get("feature_group_count", 1)  # that a feature sees
    kernel = kernel[:, :, :channels, :4]
    assert not convolution.is_supported(x, kernel, strides, padding, options)
    found = convolve(x, kernel, strides, padding, **options)
    np.testing.assert_array_equal(found, by_xla(x, kernel, strides, padding, **options))


@of_cpu
@pytest.mark.parametrize("encoder", ["resnet18", "resnet18_small", "cnn"])
def test_every_convolution_of_the_networks_is_supported(encoder, monkeypatch):
    answers = []

    def noted(*arguments):
        answers.append(is_supported(*arguments))
        return answers[-1]

    is_supported = convolution.is_supported
    monkeypatch.setattr(convolution, "is_supported", noted)
    config = tiny_config()
    config.model.update({"encoder": encoder, "stage_sizes": (2, 2, 2, 2)})
    variable_shapes(create_model(config), config)
    assert len(answers) >= 8 and all(answers)


def lowered(function, *arrays):
    """The program before XLA optimises it, as text."""
    return jax.jit(lambda *a: function(*a)).lower(*arrays).as_text()


@of_cpu
@pytest.mark.parametrize(
    "size, channels, kernel_size, pad, left_to_xla",
    [
        (3, 40, 3, 1, False),  # few pixels
        (4, 40, 3, 1, True),
        (8, 11, 3, 1, False),  # 495 weights
        (8, 12, 3, 1, True),
        (8, 200, 1, 0, False),
    ],
)
def test_small_maps_and_kernels_are_not_left_to_xla_on_cpu(
    size, channels, kernel_size, pad, left_to_xla, monkeypatch
):
    arrays = normal_numbers(2, (size, size), channels, (kernel_size, kernel_size))
    function = partial(convolve, strides=(1, 1), padding=[(pad, pad)] * 2)
    assert ("stablehlo.convolution" in lowered(function, *arrays)) == left_to_xla
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "stablehlo.convolution" in lowered(function, *arrays)


@of_cpu
def test_the_gradient_of_a_strided_convolution_dilates_no_maps():
    """As XLA's own would, in which most products are with zeros."""

    def gradients(function):
        return jax.grad(lambda *a: function(*a, *strides_and_padding(2, 1)).sum(), argnums=(0, 1))

    arrays = normal_numbers(2, (8, 8), 40, (3, 3))
    assert "lhs_dilate = [2, 2]" in lowered(gradients(by_xla), *arrays)
    assert "lhs_dilate = [2, 2]" not in lowered(gradients(convolve), *arrays)


@pytest.mark.parametrize("images, parts", [(1, 1), (16, 1), (36, 2), (64, 2), (98, 7), (97, 1)])
def test_a_part_fits_into_the_cache_and_has_eight_images(images, parts, monkeypatch):
    x, gradient = np.zeros((images, 8, 6, 3), np.float32), np.zeros((images, 4, 3, 5), np.float32)
    of_one_image = 4 * (8 * 3 * 3 * 3 + 4 * 3 * 5)  # bytes; x is copied three times for 3x3 taps
    monkeypatch.setattr(convolution, "CACHE_BYTES", 32 * of_one_image)
    assert convolution.part_count(x, gradient, 3) == parts
    monkeypatch.setattr(convolution, "CACHE_BYTES", 1)
    most = convolution.part_count(x, gradient, 3)
    assert most == max(n for n in range(1, 98) if images % n == 0 and (n == 1 or images >= 8 * n))


@pytest.mark.parametrize("size", [(16, 16), (5, 8), (1, 2), (3, 3)])
def test_max_pool_and_its_gradient_equal_xla_also_at_ties(size):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 3, (4, *size, 6)).astype(np.float32)  # of three values: ties everywhere
    x += rng.choice([0, 0.5], x.shape).astype(np.float32)
    weights = rng.normal(size=(4, (size[0] + 1) // 2, (size[1] + 1) // 2, 6)).astype(np.float32)

    @partial(jax.jit, static_argnums=0)
    def output_and_gradient(pool, x):
        output, pull = jax.vjp(pool, x)
        return output, *pull(weights)

    by_flax = partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2), padding=PAD)
    expected, expected_gradient = output_and_gradient(by_flax, x)
    found, found_gradient = output_and_gradient(max_pool, x)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(found_gradient, expected_gradient, rtol=1e-6, atol=1e-6)


@of_cpu
def test_max_pool_is_left_to_xla_but_on_cpu(monkeypatch):
    x = np.zeros((2, 8, 8, 3), np.float32)
    assert "reduce_window" not in lowered(max_pool, x)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "reduce_window" in lowered(max_pool, x)
