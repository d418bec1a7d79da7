import gzip
import json
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ENVIRONMENT, ROOT, run_fork, tiny_config

import export
import fingerprint
import scoring
import settings
import train
from model import create_model, init_variables

LOADERS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def light_run(tmp_path_factory):
    """The folder in which runs/light was trained, with a tiny network, and exported."""
    folder, config = tmp_path_factory.mktemp("export"), tiny_config()
    config.model.encoder, config.num_steps = "cnn", 4
    config.model.stage_sizes = (1, 1, 1, 1)  # as many as light's, down to maps of 2x2
    workdir = folder / "runs" / "light"
    train.train_and_evaluate(config, workdir)
    export.write_export(settings.load_config(workdir), workdir, "best", True)
    return folder


@pytest.fixture(scope="module")
def both():
    return np.random.default_rng(0).integers(0, 256, (2, 5, 32, 32, 1)).astype(np.uint8)


def probability(workdir, both):
    """What the project itself says of pairs."""
    config = settings.load_config(workdir)
    model = create_model(config)
    _, variables = scoring.load_variables(config, workdir, model, "best")
    return 1 / (1 + np.exp(-np.float64(jax.jit(model.apply)(variables, *both))))


@pytest.mark.parametrize("loader", [0, 1])
def test_the_loaders_of_the_docs_need_nothing_of_this_project(loader, light_run, both, tmp_path):
    code = LOADERS[loader] if loader else LOADERS[0] + "probability = 1 / (1 + np.exp(-logits))\n"
    alone = (
        "import sys\nimport numpy as np\nimages1, images2 = np.load(sys.argv[1])\n"
        f"{code}\nassert 'model' not in sys.modules and ('jax' in sys.modules) == {not loader}\n"
        "np.save(sys.argv[2], probability)\n"
    )
    (tmp_path / "alone.py").write_text(alone)
    np.save(tmp_path / "images.npy", both)
    paths = [str(tmp_path / name) for name in ("alone.py", "images.npy", "found.npy")]
    command = [sys.executable, "-I", *paths]
    subprocess.run(command, cwd=light_run, env=ENVIRONMENT, check=True)
    expected = probability(light_run / "runs" / "light", both)
    np.testing.assert_allclose(np.load(paths[-1]), expected, atol=1e-5)


def test_shapes_threshold_and_step_are_written_beside(light_run):
    facts = json.loads((light_run / "runs/light/export/export.json").read_text())
    assert facts["images"].startswith("uint8 [n, 32, 32, 1]")
    assert facts["embeddings"] == "float32 [n, 32]"
    assert facts["threshold"] == {"logit": 0, "probability": 0.5} and facts["platforms"] == [
        "cpu",
        "cuda",
    ]
    assert facts["config"]["model"]["encoder"] == "cnn" and facts["trained_on"] is None


def test_nothing_of_another_step_is_left_in_an_export(light_run, capsys):
    folder = light_run / "runs/light/export"
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    workdir = light_run / "runs" / "light"
    export.write_export(settings.load_config(workdir), workdir, "best", False)
    assert {path.name for path in folder.iterdir()} == whole.keys() - {"weights.npz"}
    assert f"wrote {folder / 'export.json'}" in capsys.readouterr().out
    for name, content in whole.items():
        (folder / name).write_bytes(content)


def test_what_a_run_was_trained_on_is_in_its_export(light_run, tmp_path):
    workdir = shutil.copytree(light_run / "runs" / "light", tmp_path / "light")
    images = {
        f"{k}/{i}.png": [f"{k}", "test" if k else "train", f"{k}{i}"]
        for k in (0, 1)
        for i in (0, 1)
    }
    kept = {"images": images, "pairs": {}}
    (workdir / "data.json.gz").write_bytes(gzip.compress(json.dumps(kept).encode()))
    export.write_export(settings.load_config(workdir), workdir, "best", False)
    found = json.loads((workdir / "export" / "export.json").read_text())["trained_on"]
    assert re.fullmatch("[0-9a-f]{64}", found) and found == fingerprint.identity(kept)


@pytest.mark.parametrize("head", ["mlp", "cosine", "euclidean"])
def test_numpys_arrays_give_the_same_for_every_head(head, both):
    config = tiny_config()
    config.model.update({"encoder": "cnn", "head": head, "stage_sizes": (2, 1), "margin": 2.0})
    model = create_model(config)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: np.float32(leaf + rng.uniform(0, 0.3, leaf.shape)),
        init_variables(model, config),
    )
    weights = export.to_arrays(config, variables)
    code = LOADERS[1].split("weights = np.load")[0]
    names = {}
    exec(code, names)
    found = names["compare"](weights, *(names["encode"](weights, images) for images in both))
    expected = 1 / (1 + np.exp(-np.float64(jax.jit(model.apply)(variables, *both))))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_what_cannot_be_exported_is_one_line(whole_run, tmp_path):
    shutil.copytree(whole_run[0], tmp_path / "run")
    finished = run_fork("export.py", f"--workdir={tmp_path / 'run'}", "--numpy")
    assert finished.returncode == 1 and not (tmp_path / "run" / "export").exists()
    assert "--numpy: for a cnn, this is a resnet18" in finished.stderr
    assert finished.stderr.count("\n") == 1
