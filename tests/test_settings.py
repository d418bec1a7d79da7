import json
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, TINY, run, run_fork, tiny_config

import settings
from configs import default
from errors import UserError

SLOW = pytest.mark.slow
BAD_SEED = json.dumps(tiny_config().to_dict() | {"seed": -1})


def check(key, value):
    config = default.get_config()
    config.optimizer.nominal_batch_size = 64
    with config.ignore_type():
        config.update_from_flattened_dict({key: value})
    settings.check(config)


@pytest.mark.parametrize(
    "key, value, allowed",
    [
        ("seed", -1, "from 0 to"),
        ("seed", 2**32, "from 0 to 4,294,967,295"),
        ("batch_size", 0, "from 1 to"),
        ("num_steps", 0, "from 1 to"),
        ("augment.p_unchanged", 0.5, "0 where nothing else changes images"),
        ("data.max_size", 16, "the farthest shape needs data.image_size=33"),
        ("data.min_sizes", (4, 15), "from 1 to data.max_size - 1"),
        ("data.min_sizes", (4,), "one whole number of pixels per shape"),
        ("data.min_sizes", (4, 2.5), "one whole number of pixels per shape"),
        ("data.shapes", ("circle", "hexagon"), "two or more of ('circle', 'square', 'triangle'"),
        ("data.shapes", ("circle",), "two or more"),
        ("data.shapes", ("circle", "circle"), "two or more"),
        ("data.placement", "left", "one of ('margin', 'inside')"),
        ("data.split", "random", "one of ('shared', 'disjoint', 'classes', 'groups')"),
        ("data.split", "classes", "data.held_out_shapes keeps kinds out"),
        ("data.source", "webcam", "one of ('shapes', 'folder', 'pairs', 'tfds')"),
        ("data.path", "photos", "empty with data.source=shapes"),
        ("data.channels", 3, "1 with data.source=shapes"),
        ("data.same_as", "colour", "one of ('class', 'identity')"),
        ("data.p_same", 1.5, "from 0 to 1"),
        ("data.held_out_shapes", ("star",), "of data.shapes two or more"),
        ("data.num_identities", 0, "from 1 to"),
        ("data.match_area", True, "False unless data.continuous"),
        ("data.p_rotation", 2.0, "from 0 to 1"),
        ("model.dtype", "float16", "'auto', 'float32', 'bfloat16'"),
        ("model.stage_sizes", (), "blocks per stage"),
        ("model.stage_sizes", (2, 0), "blocks per stage"),
        ("model.width", 0, "from 1 to"),
        ("optimizer.name", "lion", "one of ('adam', 'adamw', 'sgd')"),
        ("optimizer.learning_rate", float("nan"), "above 0 to 1,000,000,000"),
        ("optimizer.learning_rate", float("inf"), "above 0 to 1,000,000,000"),
        ("optimizer.learning_rate", 0.0, "above 0 to 1,000,000,000"),
        ("optimizer.final_learning_rate", 0.1, "at most optimizer.learning_rate"),
        ("optimizer.weight_decay", -1e-4, "from 0 to"),
        ("optimizer.momentum", 1.0, "from 0 to below 1"),
        ("num_steps", 401, "a multiple of the 2 batches"),
        ("eval.threshold", 1.0, "above 0 to below 1"),
        ("augment.scale", 2.5, "from 0 to 2"),
        ("checkpoint.keep_best", 0, "from 1 to"),
        ("batch_size", "many", "type int"),
        ("data.shapes", "circle", "type tuple"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(key, value, allowed):
    with pytest.raises(UserError) as refusal:
        check(key, value)
    message = str(refusal.value)
    assert f"config.{key}" in message and allowed in message and "\n" not in message


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"source": "folder"}, "data.path=: must be the folder of your images (folder)"),
        ({"source": "tfds"}, "or a prepared set (tfds)"),
        (
            {"source": "folder", "path": "photos", "splits_of": "runs/a"},
            "data.splits_of=runs/a: must be empty with data.split=shared",
        ),
        (
            {"source": "tfds", "path": "mnist", "channels": 2},
            "data.channels=2: must be one of (0, 1, 3)",
        ),
        ({"source": "tfds", "path": "mnist", "same_as": "identity"}, "must be class, where images"),
        ({"same_as": "identity"}, "must be with blob among them, not held out"),
        ({"p_rotation": 1.0}, "max_size=15: must be smaller: the farthest shape needs"),
        (
            {"continuous": True, "match_area": True, "min_sizes": (4, 14)},
            "max_size=15: must be larger: no area is left",
        ),
    ],
)
def test_values_that_do_not_go_together_are_refused(changes, message):
    config = default.get_config()
    config.data.update(changes)
    with pytest.raises(UserError, match=re.escape(message)):
        settings.check(config)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"encoder": "cnn", "pretrained": "a/b"},
            "the folder of a run, unless a resnet18",
        ),
        ({"head": "euclidean", "frozen": True}, "False without a head that learns"),
        ({"loss": "supcon"}, "model.loss=supcon: must be pairs or all_pairs; supcon needs"),
        (
            {"head": "cosine", "frozen": True, "loss": "supcon"},
            "supcon needs model.head=cosine and model.frozen=False",
        ),
    ],
)
def test_parts_of_a_model_that_do_not_go_together_are_refused(changes, message):
    config = default.get_config()
    config.model.update(changes)
    with pytest.raises(UserError, match=re.escape(message)):
        settings.check(config)


CHANGED = {bool: True, int: 3, float: 0.25, str: "other", tuple: ("star", 3)}


@pytest.mark.parametrize(
    "source, path, keys",
    [
        ("folder", "photos", default.shape_keys()),
        ("pairs", "list.csv", default.shape_keys()),
        ("tfds", "mnist", default.shape_keys()),
        ("shapes", "", default.file_keys()),
    ],
)
def test_a_key_without_effect_on_this_source_is_refused(source, path, keys):
    assert len(keys) >= 4
    for key, value in keys.items():
        config = default.get_config()
        config.data.update({"source": source, "path": path})
        settings.check(config)
        changed = config.data[key] = CHANGED[type(value)]
        text = f"{key}={changed}: must be left out: it has no effect with data.source={source}"
        with pytest.raises(UserError, match=re.escape(text)):
            settings.check(config)


@pytest.mark.parametrize("key, value", [("seed", 2**32 - 1), ("optimizer.momentum", 0.0)])
def test_values_at_the_edge_are_allowed(key, value):
    check(key, value)


def test_keys_must_be_those_of_the_default():
    config = default.get_config()
    config.optimizer.decay_steps = 3
    with pytest.raises(UserError, match=r"optimizer\.decay_steps is a key that nothing reads"):
        settings.check(config)
    config = default.get_config()
    del config.model.width
    with pytest.raises(UserError, match=r"model\.width is missing"):
        settings.check(config)


def test_every_key_is_read_by_the_code():
    paths = {*ROOT.glob("*.py")} - {ROOT / "settings.py"}  # to check a value is not to use it
    code = "".join(path.read_text() for path in paths)
    aliases = {"data": "(config\\.)?data", "optimizer": "(options|config\\.optimizer)"}
    aliases |= {group: f"(options|config\\.{group})" for group in ("model", "augment")}
    for key in settings.flatten(default.get_config().to_dict()):
        *group, name = key.split(".")
        owner = "".join(aliases.get(g, f"config\\.{g}") for g in group) or "config"
        if group != ["checkpoint"]:  # handed over whole, as Saver(workdir, **config.checkpoint)
            assert re.search(rf"\b{owner}\.{name}\b", code), f"nothing reads {key}"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem
)
def test_every_config_is_valid_and_opens_with_its_command(path):
    module = __import__(f"configs.{path.stem}", fromlist=["get_config"])
    config = module.get_config()
    if config.data.source in ("folder", "pairs"):
        assert config.data.path == "" and f"{path.name} --config.data.path=" in module.__doc__
        config.data.path = str(path.parent if config.data.source == "folder" else path)
    settings.check(config)
    assert f"python train.py --config=configs/{path.name}" in module.__doc__


@pytest.mark.parametrize(
    "options, message",
    [
        (["--config.optimizer.lr=1"], "unknown config key: 'lr' (configs"),
        (["--config.data.pth=a"], "unknown config key: 'pth' Did you mean \"path\" instead of"),
        (["--config.batch_size=many"], "invalid literal for int()"),
        (["--config.batch_size=31.5"], "invalid literal for int()"),
        (["--config=configs/nothing.py"], "No such file or directory"),
        (["--work=x"], "Did you mean: workdir"),
        (["batch_size=3"], "cannot read 'batch_size=3'"),
        (["--config.optimizer.learning_rate=nan"], "above 0 to 1,000,000,000"),
        (["--config.data.max_size=20"], "needs data.image_size=41"),
        (["--workdir=/dev/null"], "not a folder"),
        (["--workdir=/dev/null/run"], "not a folder"),
        (["--workdir=" + 300 * "x"], "too long"),
        (
            [f"--config={ROOT}/configs/folder.py"],
            "--config.data.path=: must be the folder of your images",
        ),
        (["--config.batch_size.x=3"], "unknown config key"),
        (["--config.modell.head=cosine"], "'modell' Did you mean"),
        (["--config.data.shapes=([1],'square')"], "two or more of"),
        (["--config.seed=1", "--config.seed=-1"], "config.seed=-1"),
        (2 * ["--config.model.stage_sizes=(1,)"], "stage_sizes is given 2 times: give all"),
        ([f"--config={ROOT}/data.py"], "get_config"),
        ([f"--config={ROOT}/README.md"], "SyntaxError"),
    ],
)
def test_a_bad_command_line_is_one_line_and_leaves_nothing(options, message, tmp_path):
    finished = run_fork("train.py", *options, cwd=tmp_path)
    assert finished.returncode == 1
    assert message in finished.stderr and finished.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [["train.py", "--config.seed=-1"], ["evaluate.py"]])
def test_a_mistake_is_answered_before_tensorflow_loads(command, tmp_path):
    program, *options = command
    command = [sys.executable, "-X", "importtime", str(ROOT / program), *options]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    modules = {line.split("|")[-1].strip() for line in finished.stderr.splitlines()}
    assert finished.returncode == 1 and "numpy" in modules
    assert "tensorflow" not in modules


def test_a_folder_that_is_no_run_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    finished = run_fork("train.py", f"--workdir={tmp_path}")
    assert finished.returncode == 1 and "no config.json of a run" in finished.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_saved_config_comes_back_whole(tmp_path):
    config = tiny_config()
    config.data.update({"source": "folder", "path": "photos", "white": 4095})
    settings.save_config(config, tmp_path)
    assert settings.load_config(tmp_path).to_dict() == config.to_dict()
    settings.check_workdir(config, tmp_path)
    config.model.dtype = "auto"  # still to be resolved: agrees with what was
    config.data.white = 0
    settings.check_workdir(config, tmp_path)
    config.num_steps = 16
    with pytest.raises(UserError, match="num_steps is 8 there, 16 now"):
        settings.check_workdir(config, tmp_path)


def test_where_files_are_may_change_and_how_they_are_read_may_not(tmp_path):
    config = tiny_config()
    config.data.update({"source": "folder", "path": "/old", "split": "disjoint", "white": 4095})
    settings.save_config(config, tmp_path)
    config.data.update({"path": "/new", "splits_of": "/run"})
    settings.check_workdir(config, tmp_path)
    config.data.white = 65535
    with pytest.raises(UserError, match=r"data.white is 4095 there, 65535 now"):
        settings.check_workdir(config, tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"seed": 0}', json.dumps(TINY), BAD_SEED])
def test_a_damaged_config_is_named(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "config.json"))):
        settings.load_config(tmp_path)


def test_the_default_workdir_is_named_after_the_config(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import command_line, train\n"
        "print(train.read_command(command_line.parse(train.define_flags))[1])"
    )
    finished = run(str(script), f"--config={ROOT}/configs/seed.py", cwd=tmp_path)
    assert finished.stdout == f"{tmp_path}/runs/seed\n", finished.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


def test_the_newest_run_is_the_one_that_began_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no run under runs/: train one"):
        settings.chosen_run(None)
    for age, name in enumerate(("new", "middle", "old")):
        (tmp_path / "runs" / name).mkdir(parents=True)
        settings.save_config(tiny_config(), tmp_path / "runs" / name)
        os.utime(tmp_path / "runs" / name / "config.json", (10_000 - age,) * 2)
        (tmp_path / "runs" / name / "evaluation").mkdir()  # of an evaluation just now
    assert settings.chosen_run(None) == tmp_path / "runs" / "new"
    settings.save_config(tiny_config(), tmp_path / "runs" / "old")  # as each start of train.py
    assert settings.chosen_run(None) == tmp_path / "runs" / "old"
    assert settings.chosen_run("runs/middle") == tmp_path / "runs" / "middle"


def test_a_kill_while_the_config_was_written_is_no_obstacle(tmp_path):
    (tmp_path / "config.json.partial").write_text('{"seed":')
    settings.check_workdir(tiny_config(), tmp_path)
    settings.save_config(tiny_config(), tmp_path)
    assert settings.load_config(tmp_path).to_dict() == tiny_config().to_dict()


@pytest.mark.parametrize("count, trained", [(60, 0), pytest.param(500, 6, marks=SLOW)])
def test_random_command_lines_are_taken_or_answered_in_one_line(count, trained):
    command = [sys.executable, str(ROOT / "tests" / "random_configs.py")]
    options = [f"--count={count}", f"--train={trained}", "--seed=0"]
    finished = subprocess.run([*command, *options], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr
