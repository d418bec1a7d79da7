import json
import os

import pytest

import runtime
from errors import UserError


def test_programs_are_kept_where_the_user_says_or_in_a_cache_or_not_at_all(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "environ", {"HOME": str(tmp_path)})
    assert runtime.cache_base(None) == tmp_path / ".cache" / "same-or-different"
    monkeypatch.setattr(os, "environ", {"XDG_CACHE_HOME": "/dev/null"})
    assert runtime.cache_base(None) is None
    assert runtime.cache_base("") is None
    with pytest.raises(UserError, match="--cache=/dev/null/x: /dev/null is not a folder"):
        runtime.cache_base("/dev/null/x")


def test_decoded_images_are_kept_beside_the_programs(monkeypatch, tmp_path):
    updates = {}
    monkeypatch.setattr(runtime.jax.config, "update", updates.__setitem__)
    monkeypatch.setattr(runtime.gc, "set_threshold", lambda count: None)
    monkeypatch.setattr(runtime.images, "cache", None)
    runtime.prepare(str(tmp_path))
    assert runtime.images.cache == tmp_path / "images"
    assert updates["jax_compilation_cache_dir"] == str(tmp_path / runtime.machine())
    runtime.prepare("")
    assert runtime.images.cache is None and updates["jax_enable_compilation_cache"] is False


def test_other_versions_are_warned_of(tmp_path, capsys):
    for _ in range(2):
        runtime.note_versions(tmp_path)
    assert capsys.readouterr().err == ""
    path, now = tmp_path / "versions.json", runtime.versions()
    assert json.loads(path.read_text()) == now
    path.write_text(json.dumps(now | {"jax": "0.0.1", "python": "2"}))
    assert runtime.kept_versions(tmp_path)["jax"] == "0.0.1"
    runtime.note_versions(tmp_path)
    warning = capsys.readouterr().err
    assert "python was 2, is" in warning and "jax was 0.0.1, is" in warning
    assert warning.count("\n") == 1 and "numpy" not in warning
    assert json.loads(path.read_text()) == now
    path.write_text("[")
    assert runtime.kept_versions(tmp_path) == now


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
