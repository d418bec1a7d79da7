import gzip
import json
import re
import runpy
import shutil
import site
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import ENVIRONMENT, ROOT, run_fork, tiny_config
from PIL import Image

import checkpoint
import decoding
import export
import fingerprint
import scoring
import settings
import train_step
from errors import UserError
from model import create_model, init_variables


def save_run(workdir, **options):
    """Makes the folder of a run, a tiny network as it begins but for its whitening."""
    config = tiny_config()
    config.model.update({"encoder": "cnn", "views": 3} | options)
    config.model.stage_sizes = (1, 1, 1, 1)  # as many as light's, down to maps of 2x2
    workdir.parent.mkdir(exist_ok=True)
    settings.save_config(config, workdir)
    state = train_step.create_state(
        config, create_model(config), train_step.make_optimizer(config)[0]
    )
    if "whitening" in state.batch_stats:
        matrix = np.random.default_rng(0).normal(0, 1, (32, 32)).astype(np.float32)
        state.batch_stats["whitening"]["matrix"] = matrix
    with checkpoint.Saver(workdir, **config.checkpoint) as saver:
        saver.save(jax.device_get(state), {"loss": 1.0, "rank": 1.0})
    return workdir


@pytest.fixture(scope="module")
def light_run(tmp_path_factory):
    """The folder of runs/light, which is exported; it is whitened, as those of folder.py."""
    folder = tmp_path_factory.mktemp("export")
    workdir = save_run(folder / "runs" / "light", head="cosine", loss="supcon")
    export.write_export(settings.load_config(workdir), workdir, "best")
    return folder


def probability(workdir, both):
    """What the project itself says of pairs."""
    config = settings.load_config(workdir)
    model = create_model(config)
    _, variables = scoring.load_variables(config, workdir, model, "best")
    return 1 / (1 + np.exp(-np.float64(jax.jit(model.apply)(variables, *both))))


@pytest.fixture(scope="module")
def asked(light_run):
    """(a folder with runs/light, a.png and b.png; what the project says of these two)."""
    both = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 1)).astype(np.uint8)
    for name, pixels in zip("ab", both, strict=True):
        Image.fromarray(pixels[..., 0]).save(light_run / f"{name}.png")
    return light_run, float(probability(light_run / "runs" / "light", both[:, None])[0])


def snippet(section):
    """The Python of a section of docs/export.md."""
    text = (ROOT / "docs" / "export.md").read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    return text.split("```python\n")[1].split("```")[0]


def run_alone(code, folder, python=sys.executable):
    """What a program prints that runs in a folder and sees nothing of this project."""
    command = [python, "-I", "-W", "ignore", "-c", code + "\nassert 'model' not in sys.modules"]
    ended = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return float(ended.stdout.strip(" []\n"))


def environment(folder, *packages, path=()):
    """The Python of a new environment with some packages, and those in other folders."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    (site,) = folder.glob("lib/*/site-packages")
    (site / "more.pth").write_text("\n".join(path))
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, *packages], check=True, cwd=ROOT)
    return str(folder / "bin" / "python")


def test_the_snippet_for_jax_needs_nothing_of_this_project(asked):
    folder, expected = asked
    assert run_alone(snippet("With JAX"), folder) == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_the_snippet_for_jax_runs_in_an_environment_of_its_own(asked, tmp_path):
    folder, expected = asked
    text = (ROOT / "docs" / "export.md").read_text()
    assert "`pip install jax flatbuffers pillow`" in text
    python = environment(tmp_path / "env", f"jax=={jax.__version__}", "flatbuffers", "pillow")
    found = run_alone(snippet("With JAX"), folder, python)
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_onnx_is_written_and_runs_in_an_environment_without_jax(asked, tmp_path):
    folder, expected = asked
    workdir = shutil.copytree(folder / "runs" / "light", tmp_path / "runs" / "light")
    install = "--no-deps", "-r", "requirements-onnx.txt"
    assert f"pip install {' '.join(install)}" in (ROOT / "docs" / "export.md").read_text()
    python = environment(tmp_path / "maker", *install, path=site.getsitepackages())
    for run in (save_run(tmp_path / "runs" / "mlp"), workdir):
        command = [python, ROOT / "export.py", f"--workdir={run}", "--onnx"]
        ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr[-2000:]
    for name in "ab":
        shutil.copy(folder / f"{name}.png", tmp_path)
    python = environment(tmp_path / "user", "onnxruntime", "numpy", "pillow")
    found = run_alone(snippet("With ONNX"), tmp_path, python)
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_the_snippet_for_tensorflow_gives_the_embeddings_of_jax(asked):
    code = "import sys\n" + snippet("With TensorFlow")
    assert run_alone(code, asked[0]) < 1e-5


def test_the_mlp_head_answers_as_the_network():
    config = tiny_config()
    model, variables = untrained(config)
    head = export.export_parts(config, model, variables, 3)[1]
    both = np.random.default_rng(0).normal(0, 1, (2, *head.in_avals[0].shape)).astype(np.float32)
    expected = model.apply(variables, *both, method="compare")
    np.testing.assert_allclose(head.call(*both), expected, rtol=1e-5, atol=1e-6)


def test_the_files_name_no_folder(light_run):
    for name in ("encoder", "head"):
        content = (light_run / f"runs/light/export/{name}.stablehlo").read_bytes()
        assert b"model.py" in content  # a name of a source file
        for path in (str(ROOT), sys.prefix, "site-packages", str(light_run), "/tmp/"):
            assert path.encode() not in content, path


def odd_images(folder):
    """Writes images of many sizes, modes and shapes; returns their paths."""
    random, made = np.random.default_rng(0), {}

    def smooth(w, h, c):
        coarse = Image.fromarray(random.integers(0, 256, (5, 7, 3), np.uint8))
        return np.asarray(coarse.resize((w, h)))[..., :c]

    for w, h in ((1, 1), (31, 33), (400, 300), (17, 300), (640, 20), (64, 64)):
        made[f"rgb{w}x{h}.png"] = Image.fromarray(smooth(w, h, 3))
        made[f"grey{w}x{h}.png"] = Image.fromarray(smooth(w, h, 3)).convert("L")
    made["large.jpg"], made["p.gif"] = made["rgb400x300.png"], made["rgb64x64.png"]
    made["one.png"] = made["rgb400x300.png"].convert("1")
    made["cmyk.jpg"] = made["rgb400x300.png"].convert("CMYK")
    for name, alpha in (("clear", 128), ("white", 255)):  # white lines need a black ground
        pixels = np.dstack([smooth(50, 40, 3) // 2 + alpha // 2, np.zeros((40, 50), np.uint8)])
        pixels[10:20, :, 3] = 200
        pixels[..., :3] = 255 if name == "white" else pixels[..., :3]
        made[f"{name}.png"] = Image.fromarray(np.uint8(pixels))
    made["la.png"] = made["clear.png"].convert("LA")
    for top in (900, 60000):
        deep = (smooth(90, 70, 1)[..., 0].astype(np.uint16) * (top // 256)).astype(np.uint16)
        made[f"deep{top}.png"] = Image.fromarray(deep)
    for name, image in made.items():
        exif = Image.Exif()
        exif[0x0112] = 6  # turned
        image.save(folder / name, **({"exif": exif.tobytes()} if name == "large.jpg" else {}))
    made["deep60000.png"].save(folder / "inverted.tif", tiffinfo={262: 0})
    return sorted(folder.iterdir())


@pytest.mark.parametrize("fit", ["squeeze", "pad", "crop"])
def test_prepare_gives_the_pixels_of_training(fit, tmp_path):
    paths = odd_images(tmp_path)
    assert len(paths) >= 20
    for channels, white in ((1, 0), (3, 65535)):
        config = tiny_config()
        config.data.update({"fit": fit, "channels": channels, "white": white})
        encoder, _ = export.export_parts(config, *untrained(config), batch=1)
        folder = tmp_path / f"export{channels}"
        folder.mkdir()
        facts = export.describe(config, encoder, 1)
        (folder / "export.json").write_text(json.dumps(facts))
        shutil.copy(export.PREPARE, folder)
        prepare = runpy.run_path(str(folder / "prepare.py"))["prepare"]
        form = decoding.form_of(config.data)
        for path in paths:
            expected, _ = decoding.decode(lambda path=path: Image.open(path), form)
            found = prepare(path)
            assert (found.shape, found.dtype) == ((32, 32, channels), np.uint8)
            np.testing.assert_array_equal(found, expected, err_msg=f"{path.name} {fit}")
            if fit == "squeeze" and channels == 3 and path.name.startswith(("rgb", "p", "one")):
                with Image.open(path) as image:
                    resized = export.resize(np.asarray(image.convert("RGB"))[None], 32)
                apart = np.abs(np.int16(resized[0]) - expected)
                assert apart.max() <= 1 and apart.mean() < 0.02, path.name


def test_photos_of_any_size_have_the_embeddings_of_their_prepared_pixels(light_run):
    folder, random = light_run / "runs" / "light" / "export", np.random.default_rng(0)
    encoder, photos = (
        jax.export.deserialize((folder / f"{name}.stablehlo").read_bytes())
        for name in ("encoder", "photos")
    )
    for width, height in ((50, 40), (17, 300), (32, 32)):
        whole = random.integers(0, 256, (3, height, width), np.uint8)
        small = [Image.fromarray(x).resize((32, 32), Image.Resampling.BILINEAR) for x in whole]
        expected = encoder.call(np.stack(small)[..., None])
        found = photos.call(whole[..., None])
        others = np.abs(expected - expected[::-1]).max()  # of other images
        assert np.abs(found - expected).max() < 0.05 * others


def untrained(config):
    model = create_model(config)
    return model, init_variables(model, config)


def test_a_fixed_batch_is_the_only_one(light_run, tmp_path):
    workdir = shutil.copytree(light_run / "runs" / "light", tmp_path / "light")
    (workdir / "export" / "encoder.onnx").write_text("of another step")
    export.write_export(settings.load_config(workdir), workdir, "best", 3)
    folder = workdir / "export"
    names = ["encoder.stablehlo", "export.json", "head.stablehlo", "prepare.py"]  # no photos
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == names
    encoder = jax.export.deserialize((folder / "encoder.stablehlo").read_bytes())
    head = jax.export.deserialize((folder / "head.stablehlo").read_bytes())
    assert encoder.in_avals[0].shape == (3, 32, 32, 1)
    assert [one.shape for one in head.in_avals] == [(3, 32), (3, 32)]
    facts = json.loads((folder / "export.json").read_text())
    assert (
        facts["images"].startswith("uint8 [3, 32, 32, 1]") and facts["logits"][:11] == "float32 [3]"
    )


def test_onnx_without_its_packages_is_one_line(monkeypatch, light_run):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    workdir = light_run / "runs" / "light"
    config, before = settings.load_config(workdir), sorted((workdir / "export").iterdir())
    with pytest.raises(UserError) as raised:
        export.write_export(config, workdir, "best", onnx=True)
    text = "the package jax2onnx is missing: pip install --no-deps -r requirements-onnx.txt"
    assert str(raised.value) == f"--onnx: {text}"
    assert sorted((workdir / "export").iterdir()) == before


@pytest.mark.parametrize("factor", [1.0, 1.001, float("nan")])
def test_onnx_that_answers_otherwise_than_jax_is_not_kept(factor, monkeypatch):
    """With packages that only stand for the true ones."""
    content = SimpleNamespace(SerializeToString=lambda: b"content")
    session = SimpleNamespace(
        get_inputs=lambda: [SimpleNamespace(name="x")], run=lambda _, named: [named["x"] * factor]
    )
    monkeypatch.setitem(sys.modules, "jax2onnx", SimpleNamespace(to_onnx=lambda *_: content))
    runtime = SimpleNamespace(InferenceSession=lambda _: session)
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    examples = [(np.full((n, 2), 5, np.float32),) for n in (1, 7)]
    if factor == 1:
        assert export.to_onnx(lambda x: x, examples, None) == b"content"
        return
    with pytest.raises(UserError, match=r"for 1 rows the answers differ by .* nothing is written"):
        export.to_onnx(lambda x: x, examples, None)


def test_a_jax_that_onnx_cannot_convert_is_one_line(monkeypatch):
    def refuse(*_):
        raise AttributeError("module has no attribute ClosedJaxpr")

    monkeypatch.setitem(sys.modules, "jax2onnx", SimpleNamespace(to_onnx=refuse))
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace())
    with pytest.raises(UserError, match=r"^--onnx: .*ClosedJaxpr\); it can with JAX 0\.10\.1"):
        export.to_onnx(lambda x: x, [(np.zeros((1, 2), np.float32),)], None)


def test_shapes_threshold_and_step_are_written_beside(light_run):
    facts = json.loads((light_run / "runs/light/export/export.json").read_text())
    assert facts["images"].startswith("uint8 [n, 32, 32, 1]")
    assert facts["embeddings"] == "float32 [n, 32]"
    assert facts["threshold"] == {"logit": 0, "probability": 0.5} and facts["platforms"] == [
        "cpu",
        "cuda",
    ]
    assert facts["versions"]["jax"] == jax.__version__
    assert facts["versions"]["calling_convention"] >= 9
    rules = {"mode": "L", "fit": "squeeze", "antialias": True, "white": 0, "channels": "grey"}
    assert rules.items() <= facts["prepare"].items() and facts["prepare"]["size"] == 32
    assert facts["config"]["model"]["encoder"] == "cnn" and facts["trained_on"] is None


def test_what_a_run_was_trained_on_is_in_its_export(light_run, tmp_path):
    workdir = shutil.copytree(light_run / "runs" / "light", tmp_path / "light")
    images = {
        f"{k}/{i}.png": [f"{k}", "test" if k else "train", f"{k}{i}"]
        for k in (0, 1)
        for i in (0, 1)
    }
    kept = {"images": images, "pairs": {}}
    (workdir / "data.json.gz").write_bytes(gzip.compress(json.dumps(kept).encode()))
    export.write_export(settings.load_config(workdir), workdir, "best")
    found = json.loads((workdir / "export" / "export.json").read_text())["trained_on"]
    assert re.fullmatch("[0-9a-f]{64}", found) and found == fingerprint.identity(kept)


def test_what_cannot_be_exported_is_one_line(whole_run, tmp_path):
    workdir = shutil.copytree(whole_run[0], tmp_path / "run")
    finished = run_fork("export.py", f"--workdir={workdir}", "--step=7")
    assert finished.returncode == 1 and not (workdir / "export").exists()
    assert "no checkpoint 7" in finished.stderr and finished.stderr.count("\n") == 1
    (workdir / "export").write_text("a file")
    finished = run_fork("export.py", f"--workdir={workdir}")
    assert finished.returncode == 1 and finished.stderr.count("\n") == 1
    assert "the export cannot be written" in finished.stderr
