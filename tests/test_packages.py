"""Where packages are missing: one line says so, or only the curves are lost."""

import subprocess
import sys

import pytest
from conftest import ENVIRONMENT, ROOT, run, tiny_options
from test_train import digest

HIDE = """
from importlib.machinery import PathFinder
usual = PathFinder.find_spec

def find_spec(name, path=None, target=None):
    if name.partition(".")[0] not in {names!r}:
        return usual(name, path, target)

PathFinder.find_spec = find_spec
"""
ADVICE = "activate the environment, or pip install -r requirements-cpu.txt"


@pytest.fixture
def lacking(tmp_path):
    """A function: the environment in which a program does not find some packages."""

    def environment(*names):
        folder = tmp_path / "hidden"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(HIDE.format(names=names))
        return {"PYTHONPATH": str(folder)}

    return environment


@pytest.mark.parametrize(
    "program, name",
    [
        ("train.py", "jax"),
        ("train.py", "orbax"),
        ("evaluate.py", "flax"),
        ("export.py", "flatbuffers"),
        ("audit.py", "ml_collections"),
    ],
)
def test_a_missing_package_is_one_line(program, name, lacking, tmp_path):
    refused = run(program, cwd=tmp_path, environment=lacking(name))
    text = f"error: the package {name} is missing in {sys.executable}: {ADVICE}\n"
    assert (refused.returncode, refused.stdout, refused.stderr) == (1, "", text)


def test_a_package_that_only_a_part_of_a_program_needs_is_one_line_too():
    code = "import command_line; command_line.run(lambda: None, lambda _: __import__('nothing'))"
    command = [sys.executable, "-c", code]
    refused = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    text = f"error: the package nothing is missing in {sys.executable}: {ADVICE}\n"
    assert (refused.returncode, refused.stderr) == (1, text)


def test_another_error_keeps_its_traceback():
    command = [sys.executable, "-c", "import errors; 1 / 0"]
    ended = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert ended.returncode == 1 and "Traceback" in ended.stderr


def test_without_curves_a_run_is_the_same(lacking, whole_run, tmp_path):
    workdir = tmp_path / "run"
    environment = lacking("tensorflow", "tensorboard", "clu", "tensorflow_datasets")
    ended = run("train.py", f"--workdir={workdir}", *tiny_options(), environment=environment)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stderr.splitlines()  # the curves of training, in the report
    starts = ["warning: no more curves", "warning: the curves"]
    assert sorted(line.split(" in ")[0] for line in lines) == starts, ended.stderr
    assert all("No module named" in line for line in lines)
    assert digest(workdir) == digest(whole_run[0])
    assert (workdir / "evaluation" / "report.html").exists()
