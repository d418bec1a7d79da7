import hashlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ENVIRONMENT, ROOT, encoder_shapes, run, tiny_config, tiny_file
from safetensors.numpy import load_file, save_file

import pretrained
import settings
import train
import train_step
from checkpoint import restore_model
from configs import default
from errors import UserError
from model import create_model, variable_shapes

# --- torchvision's ResNet18 in plain NumPy, float64, from its definition ---


def conv2d(x, weight, stride, padding):
    """x [n, c, h, w], weight [o, c, kh, kw], as torch.nn.functional.conv2d."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows[:, :, ::stride, ::stride], weight, optimize=True)


def batch_norm(x, weights, name):
    def column(field):
        return weights[f"{name}.{field}"][:, None, None]

    scaled = (x - column("running_mean")) / np.sqrt(column("running_var") + 1e-5)
    return scaled * column("weight") + column("bias")


def resnet18(x, weights):
    """x [n, 3, h, w] -> features [n, 512]."""
    x = conv2d(x, weights["conv1.weight"], 2, 3)
    x = np.maximum(batch_norm(x, weights, "bn1"), 0)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    x = windows[:, :, ::2, ::2].max(axis=(4, 5))
    for layer in (1, 2, 3, 4):
        for block in (0, 1):
            name, stride = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            y = conv2d(x, weights[f"{name}.conv1.weight"], stride, 1)
            y = np.maximum(batch_norm(y, weights, f"{name}.bn1"), 0)
            y = conv2d(y, weights[f"{name}.conv2.weight"], 1, 1)
            y = batch_norm(y, weights, f"{name}.bn2")
            if f"{name}.downsample.0.weight" in weights:
                x = conv2d(x, weights[f"{name}.downsample.0.weight"], stride, 0)
                x = batch_norm(x, weights, f"{name}.downsample.1")
            x = np.maximum(x + y, 0)
    return x.mean(axis=(2, 3))


def random_weights(rng):
    """Weights and statistics under torchvision's names, in its layout."""
    weights = {}

    def add_conv(name, out, into, size):
        scale = np.sqrt(2 / (into * size * size))
        weights[f"{name}.weight"] = rng.normal(0, scale, (out, into, size, size))

    def add_norm(name, features):
        weights[f"{name}.weight"] = rng.uniform(0.5, 1.5, features)
        weights[f"{name}.bias"] = rng.normal(0, 0.3, features)
        weights[f"{name}.running_mean"] = rng.normal(0, 0.3, features)
        weights[f"{name}.running_var"] = rng.uniform(0.5, 1.5, features)

    add_conv("conv1", 64, 3, 7)
    add_norm("bn1", 64)
    into = 64
    for layer, features in enumerate((64, 128, 256, 512), start=1):
        for block in (0, 1):
            name = f"layer{layer}.{block}"
            add_conv(f"{name}.conv1", features, into, 3)
            add_norm(f"{name}.bn1", features)
            add_conv(f"{name}.conv2", features, features, 3)
            add_norm(f"{name}.bn2", features)
            if into != features:
                add_conv(f"{name}.downsample.0", features, into, 1)
                add_norm(f"{name}.downsample.1", features)
            into = features
    return weights


@pytest.fixture(scope="module")
def resnet18_case(tmp_path_factory):
    """(config, weights under torchvision's names, the file that holds them)."""
    config = default.get_config()
    config.model.dtype = "float32"
    weights = random_weights(np.random.default_rng(0))
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    extra = {
        "fc.weight": np.zeros((1000, 512)),
        "fc.bias": np.zeros(1000),
        "bn1.num_batches_tracked": np.array(7),
        "layer1.0.bn1.num_batches_tracked": np.array(7),
    }
    arrays = {name: np.ascontiguousarray(a) for name, a in (weights | extra).items()}
    save_file({name: np.float32(a) for name, a in arrays.items()}, path)
    return config, weights, path


MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])  # of ImageNet


@pytest.mark.parametrize(
    "size, channels, normalised",
    [
        ((16, 16), 1, False),
        ((32, 32), 1, True),
        ((32, 32), 3, True),
        ((45, 37), 3, False),
        ((224, 224), 3, True),
    ],
)
def test_resnet18_equals_torchvision_definition(resnet18_case, size, channels, normalised):
    config, weights, path = resnet18_case
    config = config.copy_and_resolve_references()
    config.model.pretrained = str(path) if normalised else ""
    config.data.image_size = size[0]
    loaded = pretrained.load(path, encoder_shapes(config))
    variables = {kind: {"encoder": tree} for kind, tree in loaded.items()}
    images = np.random.default_rng(1).integers(0, 256, (2, *size, channels)).astype(np.uint8)
    x = images.repeat(3 // channels, axis=-1) / 255.0  # grey is copied to three channels
    x = (x - MEAN) / STD if normalised else x
    expected = resnet18(x.transpose(0, 3, 1, 2), weights)
    model = create_model(config)
    features = jax.jit(lambda v, x: model.apply(v, x, method="encode"))(variables, images)
    assert features.dtype == jnp.float32 and features.shape == (2, 512)
    assert np.abs(features - expected).max() / np.abs(expected).max() < 1e-4


def test_what_does_not_fit_is_listed(resnet18_case, tmp_path):
    config, _, path = resnet18_case
    arrays, shapes = load_file(path), encoder_shapes(config)
    spoilt = tmp_path / "spoilt.safetensors"

    def refused(changed):
        save_file(changed, spoilt)
        with pytest.raises(UserError) as caught:
            pretrained.load(spoilt, shapes)
        return str(caught.value)

    changed = dict(arrays)
    del changed["layer3.1.conv2.weight"], changed["bn1.running_var"]
    changed["layer5.0.bn1.weight"] = np.zeros(4, np.float32)
    changed["conv1.weight"] = np.zeros((64, 1, 7, 7), np.float32)
    text = refused(changed)
    for part in ("layer3.1.conv2.weight is missing", "bn1.running_var is missing"):
        assert part in text
    assert "layer5.0.bn1.weight has no place" in text
    assert "conv1.weight has shape (64, 1, 7, 7), its place (64, 3, 7, 7)" in text
    assert text.count(";") == 3
    transposed = dict(arrays)
    transposed["layer2.0.conv1.weight"] = np.ascontiguousarray(
        arrays["layer2.0.conv1.weight"].transpose(1, 0, 2, 3)
    )
    assert "layer2.0.conv1.weight has shape" in refused(transposed)
    for shape in ((512, 256, 5, 5), (512, 256, 2, 2), (512, 256, 1, 1), (256, 512, 3, 3)):
        other = arrays | {"layer4.0.conv1.weight": np.zeros(shape, np.float32)}
        text = f"layer4.0.conv1.weight has shape {shape}, its place (512, 256, 3, 3)"
        assert text in refused(other)
    other = arrays | {"layer4.0.downsample.0.weight": np.zeros((512, 256, 3, 3), np.float32)}
    assert "layer4.0.downsample.0.weight has shape" in refused(other)
    spoilt.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be read: "):
        pretrained.load(spoilt, shapes)


@pytest.mark.parametrize(
    "prefix", ["module.", "backbone.", "model.", "encoder.", "module.encoder."]
)
def test_a_prefix_is_taken_off_and_what_is_left_out_is_said(prefix, tmp_path, capsys):
    path, shapes = tmp_path / "a.safetensors", encoder_shapes(tiny_config())
    arrays = tiny_file(path, 0)
    plain = settings.flatten(pretrained.load(path, shapes))
    assert capsys.readouterr().out == ""
    other = np.zeros(3, np.float32)
    inside = {f"{prefix}{name}": array for name, array in (arrays | {"fc.bias": other}).items()}
    outside = {name: other for name in ("fc.bias", *(f"head.{i}.weight" for i in range(6)))}
    for others, text in (({}, ""), (outside, "; 7 others are left out: fc.bias, head.0.weight,")):
        save_file(inside | others, path)
        loaded = settings.flatten(pretrained.load(path, shapes))
        for name, array in plain.items():
            np.testing.assert_array_equal(loaded[name], array)
        (line,) = capsys.readouterr().out.splitlines()
        assert f"{len(arrays)} arrays under '{prefix}'{text}" in line
        assert line.endswith("head.3.weight, and 2 more" if others else "'")


def test_of_several_encoders_none_is_guessed(tmp_path):
    path, shapes = tmp_path / "a.safetensors", encoder_shapes(tiny_config())
    arrays = tiny_file(path, 0)
    both = ("module", "backbone")
    save_file({f"{k}.{name}": a for name, a in arrays.items() for k in both}, path)
    with pytest.raises(UserError, match=r"backbone\.\S+ has no place"):
        pretrained.load(path, shapes)


def test_a_long_list_of_what_does_not_fit_is_cut(tmp_path):
    path, shapes = tmp_path / "a.safetensors", encoder_shapes(tiny_config())
    count = len(tiny_file(path, 0))
    save_file({f"vit.{i}": np.zeros(2, np.float32) for i in range(7)}, path)
    with pytest.raises(UserError) as refusal:
        pretrained.load(path, shapes)
    text = str(refusal.value)
    assert text.count(" is missing") == 5 and text.endswith(f"; and {count + 2} more")


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float64"])
def test_every_type_of_weights_is_read(name, tmp_path):
    path, shapes = tmp_path / "a.safetensors", encoder_shapes(tiny_config())
    arrays = {key: a.astype(jnp.dtype(name)) for key, a in tiny_file(path, 0).items()}
    save_file(arrays, path)
    loaded = pretrained.load(path, shapes)["batch_stats"]["bn1"]["mean"]
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, arrays["bn1.running_mean"].astype(np.float32))


@pytest.mark.parametrize(
    "name, text",
    [
        ("float8_e4m3fn", "cannot be read: .*float8_e4m3fn"),
        ("int8", "is of int8, must be of bfloat16, .*float64"),
    ],
)
def test_quantised_weights_are_refused_in_one_line(name, text, tmp_path):
    path, shapes = tmp_path / "a.safetensors", encoder_shapes(tiny_config())
    save_file({key: a.astype(jnp.dtype(name)) for key, a in tiny_file(path, 0).items()}, path)
    with pytest.raises(UserError, match=text):
        pretrained.load(path, shapes)


@pytest.fixture(scope="module")
def frozen_run(tmp_path_factory):
    """(workdir, its config, the file's path and arrays) of a run whose encoder is frozen."""
    folder, config = tmp_path_factory.mktemp("frozen"), tiny_config()
    arrays = tiny_file(folder / "a.safetensors", 0)
    config.model.update({"frozen": True, "pretrained": str(folder / "a.safetensors")})
    config.num_steps = 4
    pretrained.resolve(config.model)
    train.train_and_evaluate(config, folder / "run")
    return folder / "run", config, folder / "a.safetensors", arrays


def test_a_frozen_run_keeps_every_bit(frozen_run):
    workdir, _, _, arrays = frozen_run
    config = settings.load_config(workdir)
    target = variable_shapes(create_model(config), config)
    _, variables = restore_model(workdir, "last", target)
    for kind in ("params", "batch_stats"):
        for key, leaf in settings.flatten(variables[kind]["encoder"]).items():
            expected = arrays[pretrained.torch_name((kind, *key.split(".")))]
            expected = expected.transpose(2, 3, 1, 0) if expected.ndim == 4 else expected
            np.testing.assert_array_equal(leaf, expected)


def test_the_file_is_known_by_its_checksum_not_its_place(frozen_run, tmp_path):
    workdir, config, path, _ = frozen_run
    saved = settings.load_config(workdir)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    assert saved.model.pretrained_sha256 == found

    def resume(weights):
        given = config.copy_and_resolve_references()
        given.model.update({"pretrained": str(weights), "pretrained_sha256": ""})
        pretrained.resolve(given.model)
        settings.check_workdir(given, workdir)

    (tmp_path / "moved.safetensors").write_bytes(path.read_bytes())
    resume(tmp_path / "moved.safetensors")
    tiny_file(tmp_path / "other.safetensors", 1)
    for weights in (tmp_path / "other.safetensors", ""):
        with pytest.raises(UserError, match=f"model.pretrained_sha256 is {found} there"):
            resume(weights)


def find(name, home):
    """Runs pretrained.download in a process without network, the cache under `home`."""
    code = f"import pretrained; print(pretrained.download({name!r}))"
    environment = ENVIRONMENT | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_a_repository_comes_from_the_cache(tmp_path):
    cache = tmp_path / "hub" / "models--timm--tiny"
    (cache / "snapshots" / "abc").mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    tiny_file(cache / "snapshots" / "abc" / "model.safetensors", 0)
    found = find("timm/tiny", tmp_path).stdout.strip()
    assert found == str(cache / "snapshots" / "abc" / "model.safetensors")


def test_without_network_one_line_says_what_to_do_and_nothing_is_left(tmp_path):
    finished = run(
        "train.py",
        f"--workdir={tmp_path / 'run'}",
        "--config.model.pretrained=timm/other",
        environment={"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
    )
    assert finished.returncode == 1 and not (tmp_path / "run").exists()
    (line,) = finished.stderr.strip().splitlines()
    assert "download https://huggingface.co/timm/other/resolve/main/model.safetensors" in line


def test_one_line_for_a_file_that_is_not_there_or_another(tmp_path, monkeypatch):
    file = tmp_path / "a.safetensors"
    tiny_file(file, 0)
    config = tiny_config()
    config.model.pretrained, config.model.pretrained_sha256 = str(file), "0" * 64
    with pytest.raises(UserError, match=r"has SHA-256 .*, wanted is 000"):
        pretrained.resolve(config.model)
    for name in (tmp_path / "b.safetensors", "no", "a/b/c", ""):
        with pytest.raises(UserError, match="no such file or run, and no OWNER/NAME"):
            pretrained.find(str(name))


def test_a_run_starts_from_the_best_of_another(tmp_path):
    config = tiny_config()
    config.model.encoder, config.num_steps = "cnn", 4
    train.train_and_evaluate(config, tmp_path / "first")
    target = variable_shapes(create_model(config), config)
    step, best = restore_model(tmp_path / "first", "best", target)
    config.model.update({"pretrained": str(tmp_path / "first"), "head": "cosine"})
    config.seed = 7
    settings.check(config)
    pretrained.resolve(config.model)
    assert config.model.pretrained == str(tmp_path / "first" / "checkpoints" / str(step))
    model = create_model(config)
    optimizer, _ = train_step.make_optimizer(config)
    state = train_step.create_state(config, model, optimizer)
    for kind in ("params", "batch_stats"):
        found = settings.flatten(state.variables[kind]["encoder"])
        for name, array in settings.flatten(best[kind]["encoder"]).items():
            np.testing.assert_array_equal(found.pop(name), array)
        assert not found
    train.train_and_evaluate(config, tmp_path / "second")
    (tmp_path / "first").rename(tmp_path / "gone")
    assert settings.load_config(tmp_path / "second").model.encoder == "cnn"  # needs no first
    (tmp_path / "gone").rename(tmp_path / "first")
    config.model.width = 5
    with pytest.raises(UserError, match=r"first/checkpoints/\d does not fit the encoder: .*shape"):
        train_step.create_state(config, create_model(config), optimizer)
    config.model.update({"pretrained": str(tmp_path / "second"), "pretrained_sha256": ""})
    (tmp_path / "second" / "checkpoints").rename(tmp_path / "away")
    with pytest.raises(UserError, match=r"its best checkpoint is missing or damaged: none"):
        pretrained.resolve(config.model)


def test_a_run_with_weights_of_imagenet_is_no_beginning(frozen_run):
    workdir, config, path, _ = frozen_run
    config = config.copy_and_resolve_references()
    config.model.update({"pretrained": str(workdir), "pretrained_sha256": ""})
    with pytest.raises(UserError, match=f"begin with these, {path}"):
        pretrained.resolve(config.model)
