import json
import os
import warnings
from functools import partial

import pytest

import runtime
from errors import UserError


def test_a_cache_that_cannot_be_read_is_emptied_of_programs_alone(tmp_path, capsys):
    shown = []
    folder = tmp_path / "mine" / "programs"
    folder.mkdir(parents=True)
    for name in ("step-cache", "thesis.txt", "../thesis.txt"):
        (folder / name).write_text("")
    warn = partial(runtime.empty_cache, folder, lambda *details: shown.append(details))
    warn(UserWarning("another"), UserWarning, "file", 1)
    assert (folder / "step-cache").exists() and len(shown) == 1
    text = "Error reading persistent compilation cache entry for 'step'"
    warn(UserWarning(text), UserWarning, "file", 1)
    assert {path.name for path in folder.iterdir()} == {"thesis.txt"} and len(shown) == 2
    assert (tmp_path / "mine" / "thesis.txt").exists()
    assert f"emptied {folder}" in capsys.readouterr().err


def test_programs_are_kept_where_the_user_says_or_in_a_cache_or_not_at_all(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "environ", {"HOME": str(tmp_path)})
    assert runtime.cache_base(None) == tmp_path / ".cache" / "same-or-different"
    monkeypatch.setattr(os, "environ", {"XDG_CACHE_HOME": "/dev/null"})
    assert runtime.cache_base(None) is None
    assert runtime.cache_base("") is None
    with pytest.raises(UserError, match="--cache=/dev/null/x: /dev/null is not a folder"):
        runtime.cache_base("/dev/null/x")


def test_another_version_of_jaxlib_keeps_its_programs_elsewhere(monkeypatch):
    folders = set()
    for version in ("0.10.1", "0.12.0.1"):
        monkeypatch.setattr(runtime.importlib.metadata, "version", {"jaxlib": version}.get)
        folders.add(runtime.machine())
    assert len(folders) == 2


@pytest.mark.parametrize("option, name", [("mine", "mine/images"), ("", None)])
def test_decoded_images_are_kept_beside_the_programs(option, name, monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_LOGGING_LEVEL", "ERROR")
    monkeypatch.setattr(runtime.jax.config, "update", lambda *setting: None)
    monkeypatch.setattr(warnings, "showwarning", lambda *details, **options: None)
    monkeypatch.setattr(runtime.gc, "set_threshold", lambda count: None)
    monkeypatch.setattr(runtime.images, "cache", tmp_path)
    runtime.prepare(option and str(tmp_path / option))
    assert runtime.images.cache == (name and tmp_path / name)


def test_the_warning_that_empties_the_cache_is_the_one_that_jax_shows(monkeypatch, tmp_path):
    updates = {}
    monkeypatch.setattr(runtime.jax.config, "update", updates.__setitem__)
    monkeypatch.setattr(warnings, "showwarning", lambda *details, **options: None)
    monkeypatch.setattr(runtime.images, "cache", None)
    monkeypatch.setattr(runtime.gc, "set_threshold", lambda count: None)
    runtime.prepare(str(tmp_path))
    folder = tmp_path / runtime.machine()
    assert updates["jax_compilation_cache_dir"] == str(folder)
    folder.mkdir()
    (folder / "step-cache").touch()
    warnings.showwarning(UserWarning("the persistent compilation cache"), UserWarning, "file", 1)
    assert not (folder / "step-cache").exists()
    runtime.prepare("")
    assert updates["jax_enable_compilation_cache"] is False


def test_other_versions_are_warned_of_and_kept_with_their_step(tmp_path, capsys):
    runtime.note_versions(tmp_path, 0)
    runtime.note_versions(tmp_path, 4)
    assert capsys.readouterr().err == ""
    path, now = tmp_path / "versions.json", runtime.versions()
    assert json.loads(path.read_text()) == {"0": now}
    path.write_text(json.dumps({"0": now | {"jax": "0.0.1", "python": "2"}}))
    runtime.note_versions(tmp_path, 8)
    warning = capsys.readouterr().err
    assert "python was 2, is" in warning and "jax was 0.0.1, is" in warning
    assert warning.count("\n") == 1 and "numpy" not in warning
    assert list(json.loads(path.read_text())) == ["0", "8"]
    assert runtime.last_versions(tmp_path) == now
    path.write_text("[")
    assert runtime.last_versions(tmp_path) == now


@pytest.mark.parametrize("level, kept", [("1", "3"), ("0", "0")])
def test_a_level_of_logs_that_the_user_sets_stays(level, kept, monkeypatch):
    monkeypatch.setattr(os, "environ", {"TF_CPP_MIN_LOG_LEVEL": level})
    monkeypatch.setattr(runtime, "cache_base", lambda option: None)
    monkeypatch.setattr(runtime.images, "cache", None)
    monkeypatch.setattr(runtime.gc, "set_threshold", lambda count: None)
    updates = {}
    monkeypatch.setattr(runtime.jax.config, "update", updates.__setitem__)
    runtime.prepare(None)
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == kept
    assert updates.get("jax_logging_level") == ("CRITICAL" if level == "1" else None)
