"""What `make` and `.ci/run` install, for each Python, driver and GPU."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement

PYTHONS = ("3.11", "3.12", "3.13")
TWO_NEW, TWO = "580.65.06, 9.0\n580.65.06, 7.5", "580.65.06, 9.0\n580.65.06, 7.0"


def program(folder, name, *lines):
    """A shell script that stands for a program of the machine."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("\n".join([f"#!{shutil.which('sh')}", *lines, ""]))
    path.chmod(0o755)


def call(*command, path):
    """Runs a command that finds programs in a folder of `program` first."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    options = {"cwd": ROOT, "env": environment | {"PATH": path, "PYENV_ROOT": "pyenv"}}
    return subprocess.run(command, capture_output=True, text=True, **options)


def make(folder, *arguments):
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return call("make", "--dry-run", "test", f"VENV={folder / 'env'}", *arguments, path=path)


@pytest.mark.parametrize(
    "said, name",
    [
        ("", "requirements-cpu.txt"),
        ("NVIDIA-SMI has failed because it couldn't communicate with it.", "requirements-cpu.txt"),
        ("470.82.01, 8.0", "requirements-cpu.txt"),
        ("525.60.13, 9.0", "requirements.txt"),
        ("580.65.06, 7.0", "requirements.txt"),
        ("1000.1, 9.0", "requirements-cuda13.txt"),
        (TWO, "requirements.txt"),
        (TWO_NEW, "requirements-cuda13.txt"),
    ],
)
def test_make_installs_the_cuda_that_driver_and_gpus_have(said, name, tmp_path):
    program(tmp_path, "nvidia-smi", f'echo "{said}"')
    assert f"-r {name}\n" in make(tmp_path).stdout
    assert "-r other.txt\n" in make(tmp_path, "REQUIREMENTS=other.txt").stdout


def test_make_keeps_what_an_environment_was_made_with(tmp_path):
    program(tmp_path, "nvidia-smi", f'echo "{TWO_NEW}"')
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "installed").write_text("requirements.txt\n")
    kept = make(tmp_path)
    assert kept.returncode == 0 and "pip" not in kept.stdout
    refused = make(tmp_path, "REQUIREMENTS=requirements-cpu.txt")
    text = "env was made with requirements.txt, not requirements-cpu.txt: delete it, or name"
    assert refused.returncode and text in refused.stderr and refused.stderr.count("\n") == 1


def test_another_python_is_refused(tmp_path):
    program(tmp_path, "old", "exit 1")
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    environment = tmp_path / "env"
    refused = call("make", "test", "PYTHON=old", f"VENV={environment}", path=path)
    assert refused.returncode and not environment.exists()
    assert "old is not Python 3.11 to 3.13: make PYTHON=python3.12" in refused.stdout


@pytest.mark.parametrize("python", PYTHONS)
def test_each_package_has_one_version_for_each_python(python):
    lines = (ROOT / "requirements-cpu.txt").read_text().splitlines()
    pinned = [Requirement(line.split("#")[0]) for line in lines if line.split("#")[0].strip()]
    where = {"python_version": python, "sys_platform": "linux"}
    here = [r.name for r in pinned if r.marker is None or r.marker.evaluate(where)]
    assert len(here) == len(set(here)) and {r.name for r in pinned} == {*here, "tensorflow"}


@pytest.mark.parametrize(
    "found, same, again",
    [
        ((), False, "neither Python 3.13 nor 3.12 is on this machine"),
        (("bin/python3.12",), False, "PYTHON=python3.12 VENV=.venv-3.12"),
        (("bin/python3.12",), True, "python3 is Python 3.12, the newest on this machine"),
        (
            ("bin/python3.12", "pyenv/versions/3.13.5/bin/python"),
            False,
            "PYTHON=pyenv/versions/3.13.5/bin/python VENV=.venv-3.13",
        ),
    ],
)
def test_the_tests_run_again_with_the_newest_python_there_is(found, same, again, tmp_path):
    """A program on the path that only says that it is not installed counts for nothing."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci")
    folder = tmp_path / "bin"
    program(folder, "make", 'echo "make $*"')
    program(folder, "python3", f"exit {int(not same)}")
    program(folder, "python3.13", "exit 127")
    (folder / "dirname").symlink_to(shutil.which("dirname"))
    for name in found:
        program(tmp_path / Path(name).parent, Path(name).name, "exit 0")
    ended = call(shutil.which("bash"), str(tmp_path / ".ci" / "run"), path=str(folder))
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("make test", "make slow") and again in ended.stdout
    assert len(re.findall("^make test", ended.stdout, re.MULTILINE)) == 1 + ("VENV" in again)
