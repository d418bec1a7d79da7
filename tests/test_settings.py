import json
import re
from pathlib import Path

import pytest
from conftest import ROOT, TINY, run, tiny_config

import settings
from configs import default


def check(key, value):
    config = default.get_config()
    config.optimizer.nominal_batch_size = 64
    with config.ignore_type():
        config.update_from_flattened_dict({key: value})
    settings.check(config)


@pytest.mark.parametrize(
    "key, value, allowed",
    [
        ("seed", -1, "not negative"),
        ("seed", 2**32, "below 2**32"),
        ("batch_size", 0, "at least 1"),
        ("num_steps", 0, "at least 1"),
        ("data.max_size", 16, "below half of data.image_size"),
        ("data.min_sizes", (4, 15), "from 1 to data.max_size - 1"),
        ("data.min_sizes", (4,), "one whole number of pixels per shape"),
        ("data.min_sizes", (4, 2.5), "one whole number of pixels per shape"),
        ("data.shapes", ("circle", "hexagon"), "two or more of ('circle', 'square')"),
        ("data.shapes", ("circle",), "two or more"),
        ("data.shapes", ("circle", "circle"), "two or more"),
        ("data.placement", "centre", "margin or inside"),
        ("data.split", "random", "shared or disjoint"),
        ("model.dtype", "float16", "'auto', 'float32', 'bfloat16'"),
        ("model.stage_sizes", (), "blocks per stage"),
        ("model.stage_sizes", (2, 0), "blocks per stage"),
        ("model.width", 0, "at least 1"),
        ("optimizer.name", "lion", "adam or sgd"),
        ("optimizer.learning_rate", float("nan"), "finite"),
        ("optimizer.learning_rate", float("inf"), "finite"),
        ("optimizer.learning_rate", 0.0, "above 0"),
        ("optimizer.final_learning_rate", 0.1, "at most optimizer.learning_rate"),
        ("optimizer.weight_decay", -1e-4, "not negative"),
        ("optimizer.momentum", 1.0, "below 1"),
        ("num_steps", 401, "a multiple of the 2 batches"),
        ("eval.threshold", 1.0, "between 0 and 1"),
        ("checkpoint.keep_best", 0, "at least 1"),
        ("batch_size", "many", "type int"),
        ("data.shapes", "circle", "type tuple"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(key, value, allowed):
    with pytest.raises(SystemExit) as refusal:
        check(key, value)
    message = str(refusal.value)
    assert f"config.{key}" in message and allowed in message and "\n" not in message


@pytest.mark.parametrize("key, value", [("seed", 2**32 - 1), ("optimizer.momentum", 0.0)])
def test_values_at_the_edge_are_allowed(key, value):
    check(key, value)


def test_keys_must_be_those_of_the_default():
    config = default.get_config()
    config.optimizer.warmup = 3
    with pytest.raises(SystemExit, match=r"optimizer\.warmup is a key that nothing reads"):
        settings.check(config)
    config = default.get_config()
    del config.model.width
    with pytest.raises(SystemExit, match=r"model\.width is missing"):
        settings.check(config)


def test_every_key_is_read_by_the_code():
    code = "".join(path.read_text() for path in ROOT.glob("*.py") if path.name != "settings.py")
    unread = {
        "checkpoint.keep_latest",
        "checkpoint.keep_best",
    }  # handed over as **config.checkpoint
    for key in settings.flatten(default.get_config().to_dict()).keys() - unread:
        if key != "optimizer.nominal_batch_size":  # read here: settings.accumulated_steps
            assert re.search(rf"\.{key.split('.')[-1]}\b", code), f"nothing reads {key}"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem
)
def test_every_config_is_valid_and_opens_with_its_command(path):
    module = __import__(f"configs.{path.stem}", fromlist=["get_config"])
    settings.check(module.get_config())
    assert f"python train.py --config=configs/{path.name}" in module.__doc__


@pytest.mark.parametrize(
    "options, message",
    [
        (["--config.optimizer.lr=1"], "unknown config key"),
        (["--config.batch_size=many"], "invalid literal for int()"),
        (["--config.batch_size=31.5"], "invalid literal for int()"),
        (["--config=configs/nothing.py"], "nothing.py"),
        (["--work=x"], "Did you mean: workdir"),
        (["batch_size=3"], "cannot read 'batch_size=3'"),
        (["--config.optimizer.learning_rate=nan"], "finite"),
        (["--config.data.max_size=20"], "below half"),
        (["--workdir=/dev/null"], "not a folder"),
        (["--workdir=/dev/null/run"], "not a folder"),
    ],
)
def test_a_bad_command_line_is_one_line_and_leaves_nothing(options, message, tmp_path):
    finished = run("train.py", *options, cwd=tmp_path)
    assert finished.returncode == 1
    assert message in finished.stderr and finished.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_mistake_is_answered_before_jax_and_tensorflow_load(tmp_path):
    code = (
        "import sys, settings; sys.argv += ['--config.seed=-1']\n"
        "try: settings.train_command()\n"
        "except SystemExit: assert not {'jax', 'tensorflow'} & set(sys.modules)\n"
        "else: raise AssertionError('not refused')"
    )
    script = tmp_path / "script.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}")
    finished = run(str(script), cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr


def test_a_folder_that_is_no_run_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    finished = run("train.py", f"--workdir={tmp_path}")
    assert finished.returncode == 1 and "no config.json of a run" in finished.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_saved_config_comes_back_whole(tmp_path):
    config = tiny_config()
    settings.save_config(config, tmp_path)
    assert settings.load_config(tmp_path).to_dict() == config.to_dict()
    settings.check_workdir(config, tmp_path)
    config.model.dtype = "auto"  # still to be resolved: agrees with what was
    settings.check_workdir(config, tmp_path)
    config.num_steps = 16
    with pytest.raises(SystemExit, match="num_steps is 8 there, 16 now"):
        settings.check_workdir(config, tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"seed": 0}', json.dumps(TINY)])
def test_a_damaged_config_is_named(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(SystemExit, match="config"):
        settings.load_config(tmp_path)


def test_the_default_workdir_is_named_after_the_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finished = run("train.py", "--help")
    assert "runs/<config's name>" in finished.stdout
    assert Path("runs").exists() is False
