import gzip
import json
import re
import shutil
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from conftest import ENVIRONMENT, run_fork, tiny_config

import export
import fingerprint
import scoring
import settings
import train
from model import create_model

LOADER = textwrap.dedent(export.__doc__[export.__doc__.index("    from pathlib") :])


@pytest.fixture(scope="module")
def light_run(tmp_path_factory):
    """The folder in which runs/light was trained, with a tiny network, and exported."""
    folder, config = tmp_path_factory.mktemp("export"), tiny_config()
    config.model.encoder, config.num_steps = "cnn", 4
    config.model.stage_sizes = (1, 1, 1, 1)  # as many as light's, down to maps of 2x2
    workdir = folder / "runs" / "light"
    train.train_and_evaluate(config, workdir)
    export.write_export(settings.load_config(workdir), workdir, "best")
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


def test_the_loader_of_the_docs_needs_nothing_of_this_project(light_run, both, tmp_path):
    alone = (
        "import sys\nimport numpy as np\nimages1, images2 = np.load(sys.argv[1])\n"
        f"{LOADER}\nassert 'model' not in sys.modules\n"
        "np.save(sys.argv[2], 1 / (1 + np.exp(-logits)))\n"
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
