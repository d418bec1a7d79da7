from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config

import settings
from configs import default, light
from model import create_model, init_variables, variable_shapes

pytestmark = pytest.mark.usefixtures("strict_dtype_promotion")


def test_one_channel_is_copied_to_three(tiny_case):
    apply, variables, image1, image2 = tiny_case
    np.testing.assert_allclose(
        apply(variables, image1, image2),
        apply(variables, image1.repeat(3, axis=-1), image2.repeat(3, axis=-1)),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.fixture(scope="module")
def tiny_case():
    tiny = tiny_config()
    model = create_model(tiny)
    variables = init_variables(model, tiny)
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (2, 7, 32, 32, 1)).astype(np.uint8)
    return jax.jit(model.apply), variables, *images


KINDS = {
    "resnet18": {},
    "resnet18_small": {"encoder": "resnet18_small"},
    "cnn": {"encoder": "cnn"},
    "cosine": {"head": "cosine"},
    "views": {"head": "cosine", "views": 3},
    "whitened": {"head": "cosine", "views": 3, "loss": "supcon"},
    "euclidean": {"head": "euclidean"},
}


def of_kind(kind):
    """(config, model, variables) of a tiny network, its statistics not those of the beginning."""
    config = tiny_config()
    config.model.update(KINDS[kind] | {"encoder": KINDS[kind].get("encoder", "cnn")})
    if kind == "resnet18":
        config.model.encoder = kind
    model = create_model(config)
    variables = init_variables(model, config)
    rng = np.random.default_rng(0)
    variables["batch_stats"] = jax.tree.map(
        lambda leaf: leaf + jnp.asarray(rng.uniform(0, 0.3, leaf.shape), leaf.dtype),
        variables["batch_stats"],
    )
    return config, model, variables


@pytest.mark.parametrize("kind", KINDS)
def test_exchanging_the_images_never_changes_a_logit(kind, tiny_case):
    _, model, variables = of_kind(kind)
    *_, image1, image2 = tiny_case
    apply = jax.jit(model.apply)
    logits = apply(variables, image1, image2)
    assert logits.shape == (7,) and logits.dtype == jnp.float32
    assert len(np.unique(logits)) == 7
    assert (logits == apply(variables, image2, image1)).all()


@pytest.mark.parametrize("kind", ["cnn", "cosine", "views", "whitened", "euclidean"])
def test_encoding_first_and_comparing_then_is_the_whole(kind, tiny_case):
    _, model, variables = of_kind(kind)
    *_, image1, image2 = tiny_case
    encode, compare = (jax.jit(partial(model.apply, method=m)) for m in ("encode", "compare"))
    found = compare(variables, encode(variables, image1), encode(variables, image2))
    expected = jax.jit(model.apply)(variables, image1, image2)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("side", "step"), [(32, 1), (48, 2)])
def test_with_views_an_embedding_is_the_mean_over_copies_moved_along_the_diagonal(side, step):
    config, model, variables = of_kind("views")
    images = np.random.default_rng(1).integers(0, 256, (5, side, side, 1)).astype(np.uint8)

    def look_up(shift):  # rows and columns of the border where a copy has none
        places = (np.arange(side) + shift).clip(0, side - 1)
        return images[:, places][:, :, places]

    config.model.views = 1
    encode = jax.jit(partial(create_model(config).apply, variables, method="encode"))
    expected = np.mean([encode(look_up(shift)) for shift in (0, -step, step)], axis=0)
    found = jax.jit(partial(model.apply, variables, method="encode"))(images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(found - encode(images)).max() > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_with_supcon_an_embedding_is_whitened_in_float32(dtype):
    images = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 1)).astype(np.uint8)
    config, _, variables = of_kind("whitened")
    config.model.dtype = dtype
    encode = jax.jit(partial(create_model(config).apply, variables, method="encode"))
    config.model.loss = "all_pairs"
    plain = jax.jit(partial(create_model(config).apply, variables, method="encode"))
    with jax.numpy_dtype_promotion("standard"):  # Flax's BatchNorm mixes both types
        roots, found = np.sqrt(np.float64(plain(images))), encode(images)
    roots /= np.linalg.norm(roots, axis=1, keepdims=True)
    assert found.dtype == np.float32
    expected = roots @ np.float64(variables["batch_stats"]["whitening"]["matrix"])
    rounding = {"float32": 1e-5, "bfloat16": 1e-2}[dtype]
    np.testing.assert_allclose(found, expected, rtol=rounding, atol=rounding)
    assert np.abs(expected - roots).min() > 0.1


def test_in_training_an_embedding_is_that_of_the_image_as_it_is():
    images = np.random.default_rng(1).integers(0, 256, (1, 5, 32, 32, 1)).astype(np.uint8)
    config, model, variables = of_kind("whitened")
    config.model.update({"views": 1, "loss": "all_pairs"})

    def train(model):
        apply = partial(model.apply, train=True, method="encode", mutable=["batch_stats"])
        return jax.jit(jax.vmap(partial(apply, variables), axis_name="devices"))(images)[0]

    np.testing.assert_array_equal(train(model), train(create_model(config)))


def test_the_cosine_is_that_of_the_features_and_one_for_the_same_image(tiny_case):
    _, model, variables = of_kind("cosine")
    *_, image1, image2 = tiny_case
    head = variables["params"]["head"]
    head |= {"log_scale": jnp.float32(np.log(5.0)), "threshold": jnp.float32(0.25)}
    apply, encode = jax.jit(model.apply), jax.jit(partial(model.apply, method="encode"))
    np.testing.assert_allclose(apply(variables, image1, image1), 5 * 0.75, rtol=1e-5)
    f1, f2 = (np.float64(encode(variables, x)) for x in (image1, image2))
    cosine = (f1 * f2).sum(1) / np.sqrt((f1**2).sum(1) * (f2**2).sum(1))
    found = apply(variables, image1, image2)
    np.testing.assert_allclose(found, 5 * (cosine - 0.25), rtol=1e-4)
    gradient = jax.grad(lambda x: model.apply(variables, x, x, method="compare").sum())
    assert np.isfinite(gradient(jnp.zeros((2, 8)))).all()


def test_the_contrastive_loss_is_hadsells(tiny_case):
    """Of D = |f1 - f2|: D ** 2 for the same, max(0, margin - D) ** 2 for different ones."""
    config, model, variables = of_kind("euclidean")
    config.model.margin = 2.0
    model = create_model(config)
    *_, image1, image2 = tiny_case
    encode = jax.jit(partial(model.apply, method="encode"))
    f1, f2 = (np.float64(encode(variables, x)) for x in (image1, image2))
    distance = np.sqrt(((f1 - f2) ** 2).sum(1))
    logits = jax.jit(model.apply)(variables, image1, image2)
    np.testing.assert_allclose(logits, 1 - distance, rtol=1e-4, atol=1e-5)
    label = np.float32([1, 0, 1, 0, 0, 1, 0])
    expected = np.where(label == 1, distance**2, np.maximum(0, 2 - distance) ** 2)
    np.testing.assert_allclose(model.losses(logits, label), expected, rtol=1e-4, atol=1e-5)
    worked = model.losses(jnp.float32([0.5, 0.5, -3.0, -3.0]), np.float32([1, 0, 1, 0]))
    np.testing.assert_allclose(worked, [0.25, 2.25, 16.0, 0.0])
    gradient = jax.grad(lambda x: model.apply(variables, x, x, method="compare").sum())
    assert np.isfinite(gradient(jnp.asarray(f1, jnp.float32))).all()  # where D is 0


def test_other_losses_are_the_binary_cross_entropy(tiny):
    logits, label = jnp.float32([2.0, -1.0]), np.float32([1, 1])
    expected = np.log1p(np.exp([-2.0, 1.0]))
    for encoder in ("cnn", "resnet18"):
        tiny.model.encoder = encoder
        found = create_model(tiny).losses(logits, label)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_light_network_is_light_and_the_small_stem_keeps_the_resolution():
    def parameters(config):
        return sum(
            np.prod(x.shape)
            for x in jax.tree.leaves(variable_shapes(create_model(config), config)["params"])
        )

    config = light.get_config()
    config.model.dtype = "float32"
    assert parameters(config) == 206_049
    config = default.get_config()
    config.model.dtype = "float32"
    head = 512 * 256 + 256 + 256 + 1
    unmet = 5 * 256 * 512 + 3 * 8 * 512 * 512  # on maps of 2x2 and 1x1
    assert parameters(config) == 11_176_512 - unmet + head  # torchvision's, the head's
    config.data.image_size = 64
    assert parameters(config) == 11_176_512 + head
    config.data.image_size = 32
    config.model.encoder = "resnet18_small"
    assert parameters(config) == 11_176_512 - 64 * 3 * (49 - 9) + head
    encoder = create_model(config).encoder
    variables = jax.eval_shape(
        partial(encoder.init, train=False), jax.random.key(0), jnp.zeros((1, 32, 32, 1))
    )
    _, seen = jax.eval_shape(
        lambda v: encoder.apply(v, jnp.zeros((1, 32, 32, 1)), False, capture_intermediates=True),
        variables,
    )
    shapes = {
        name: seen["intermediates"][name]["__call__"][0].shape for name in ("layer1_0", "layer4_1")
    }
    assert shapes == {"layer1_0": (1, 32, 32, 64), "layer4_1": (1, 4, 4, 512)}


SIZES = [
    pytest.param(size, marks=pytest.mark.slow) for size in (16, 32)
]  # one pixel is left after three stages, four


@pytest.mark.parametrize("size", SIZES)
def test_every_weight_of_a_resnet_meets_a_pixel_and_begins_as_in_torchvision(size):
    config = default.get_config()
    config.model.update({"dtype": "float32", "width": 16, "stage_sizes": (1, 1, 1, 1)})
    config.data.image_size = size
    model = create_model(config)
    variables = init_variables(model, config)
    params = variables["params"]["encoder"]
    images = np.random.default_rng(0).integers(0, 256, (8, size, size, 1)).astype(np.uint8)

    def total(encoder):
        changed = variables | {"params": variables["params"] | {"encoder": encoder}}
        return model.apply(changed, images, method="encode").sum()

    gradients = settings.flatten(jax.jit(jax.grad(total))(params))
    for name, kernel in settings.flatten(params).items():
        if name.endswith("kernel"):
            assert (np.abs(gradients[name]).max(axis=(2, 3)) > 0).all()
            taps = 49 if name == "conv1.kernel" else 1 if "downsample" in name else 9
            assert kernel.std() == pytest.approx((2 / taps / kernel.shape[-1]) ** 0.5, rel=0.05)


def test_a_logit_does_not_depend_on_batch_mates(tiny_case):
    apply, variables, image1, image2 = tiny_case
    logits = apply(variables, image1, image2)
    alone = np.concatenate(
        [apply(variables, image1[i : i + 1], image2[i : i + 1]) for i in range(7)]
    )
    np.testing.assert_allclose(alone, logits, rtol=1e-5, atol=1e-6)
    reordered = apply(variables, image1[::-1], image2[::-1])[::-1]
    np.testing.assert_allclose(reordered, logits, rtol=1e-5, atol=1e-6)


def test_initialisation_is_torchvisions(tiny):
    tiny.model.width = 64
    model = create_model(tiny)
    variables = init_variables(model, tiny)
    params = variables["params"]["encoder"]
    kernel = params["layer1_0"]["conv1"]["kernel"]
    assert kernel.std() == pytest.approx(np.sqrt(2 / (64 * 9)), rel=0.02)  # He, fan-out, normal
    assert params["conv1"]["kernel"].std() == pytest.approx(np.sqrt(2 / (64 * 49)), rel=0.03)
    assert (params["layer1_0"]["bn2"]["scale"] == 1).all()
    assert (params["bn1"]["bias"] == 0).all()
    assert (variables["batch_stats"]["encoder"]["bn1"]["var"] == 1).all()


def test_bfloat16_computes_in_it_and_keeps_parameters_and_logits_in_float32(tiny):
    tiny.model.dtype = "bfloat16"
    model = create_model(tiny)
    images = np.zeros((2, 32, 32, 1), np.uint8)
    with jax.numpy_dtype_promotion("standard"):  # Flax's BatchNorm mixes the two on purpose
        variables = init_variables(model, tiny)
        encode = partial(model.apply, method="encode")
        assert jax.eval_shape(encode, variables, images).dtype == jnp.bfloat16
        assert jax.eval_shape(model.apply, variables, images, images).dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_off_cpu_xlas_own_convolutions_give_the_same(tiny_case, monkeypatch):
    apply, variables, image1, image2 = tiny_case
    expected = apply(variables, image1, image2)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    found = jax.jit(create_model(tiny_config()).apply)(variables, image1, image2)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
