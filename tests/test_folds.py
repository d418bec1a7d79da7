import json
import signal
import statistics
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT, run, tiny_options

import command_line
import folds
import hosts
from configs import folder
from errors import UserError

# In the place of train.py: notes its options and writes the metrics of a test; fold 2 may fail.
STAND_IN = """
import json, pathlib, sys
given = dict(option.removeprefix("--").split("=", 1) for option in sys.argv[1:])
fold, workdir = int(given["config.data.fold"]), pathlib.Path(given["workdir"])
(workdir / "evaluation").mkdir(parents=True, exist_ok=True)
(workdir / "given.json").write_text(json.dumps(sys.argv[1:]))
metrics = {"accuracy": [0.5, 0.75, 0.875][fold], "eer": 0.25 * fold, "pairs": 9, "threshold": 0.5}
metrics |= {"tar_at_far_0.01": None if fold else 0.5, "intervals": {"eer": [0.0, 1.0]}}
metrics |= {"map": 0.5, "exact": True, "split": "test"}
(workdir / "evaluation" / "metrics.json").write_text(json.dumps(metrics))
sys.exit(int(given.get("fails", 0)) * (fold == 2))
"""


@pytest.fixture
def start(monkeypatch, tmp_path):
    """start(options, **changes of config.data): calls folds.main with a stand-in for train.py."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setattr(folds, "TRAIN", tmp_path / "stand_in.py")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def start(*options, **changes):
        config = folder.get_config()
        config.data.update({"path": str(tmp_path), "folds": 3} | changes)
        monkeypatch.setattr(command_line, "read_config", lambda _: (config, "folder"))
        monkeypatch.setattr(hosts, "read_cluster", lambda _: None)
        monkeypatch.setattr(sys, "argv", ["folds.py", *options])
        folds.main(SimpleNamespace(workdir=str(tmp_path / "runs")))

    yield start
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_each_fold_is_trained_and_the_tests_are_summed_up(start, tmp_path, capfd):
    start("--workdir=elsewhere", "--config.seed=3")
    for fold in range(3):
        run = tmp_path / "runs" / f"fold-{fold}"
        given = json.loads((run / "given.json").read_text())
        assert given[:2] == ["--workdir=elsewhere", "--config.seed=3"]
        assert given[2:] == [f"--workdir={run}", f"--config.data.fold={fold}"]  # the last counts
    kept = json.loads((tmp_path / "runs" / "folds.json").read_text())
    assert list(kept) == ["fold 0", "fold 1", "fold 2", "mean", "standard deviation"]
    assert kept["fold 1"] == {"accuracy": 0.75, "eer": 0.25, "map": 0.5}
    for name, values in (("accuracy", [0.5, 0.75, 0.875]), ("eer", [0.0, 0.25, 0.5])):
        assert kept["mean"][name] == pytest.approx(statistics.mean(values))
        assert kept["standard deviation"][name] == pytest.approx(statistics.stdev(values))
    *_, lost, head, accuracy, eer, _, last = capfd.readouterr().out.splitlines()
    assert lost == "left out, unknown in a fold: 1 (tar_at_far_0.01)"
    assert head.split() == ["3", "tests", "mean", "deviation"]
    assert accuracy.split() == ["accuracy", "0.708333", "0.190941"]
    assert eer.split() == ["eer", "0.250000", "0.250000"] and last.startswith("wrote ")


def test_a_fold_that_fails_ends_the_command_with_its_exit_code(start, tmp_path, capfd):
    with pytest.raises(SystemExit) as raised:
        start("--fails=7")

    assert raised.value.code == 7 and not (tmp_path / "runs" / "folds.json").exists()
    text = "error: fold 2 of 3 ended with exit code 7; the same command continues"
    assert capfd.readouterr().err.splitlines()[-1] == text


@pytest.mark.parametrize("changes", [{"folds": 0}, {"fold": 1}])
def test_no_folds_or_one_of_them_is_refused(start, changes):
    with pytest.raises(UserError, match=r"^folds.py divides the data into folds: say in how many"):
        start(**changes)


def test_the_folder_of_another_run_is_refused(start, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "config.json").touch()
    with pytest.raises(UserError, match=r"runs: a run of train.py is there; name another folder$"):
        start()


def test_several_hosts_are_refused(tmp_path):
    options = ["--coordinator=10.0.0.1:4321", "--num_processes=2", "--process_id=0"]
    refused = run("folds.py", *options, cwd=tmp_path)
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1
    assert refused.stderr.startswith("error: folds.py trains on one host")


@pytest.mark.slow
def test_folds_are_runs_of_train(photos, tmp_path):
    options = [f"--config={ROOT}/configs/folder.py", f"--workdir={tmp_path / 'runs'}"]
    options += tiny_options(data__path=photos, data__folds=2, data__image_size=8, num_steps=4)
    ended = run("folds.py", *options)
    assert ended.returncode == 0, ended.stderr
    tests = []
    for fold in range(2):
        workdir = tmp_path / "runs" / f"fold-{fold}"
        metrics = json.loads((workdir / "evaluation" / "metrics.json").read_text())
        assert metrics["split"] == "test"
        kept = json.loads((tmp_path / "runs" / "folds.json").read_text())[f"fold {fold}"]
        assert kept["roc_auc"] == metrics["roc_auc"]
        tests.append(metrics["pairs"])
    before = (tmp_path / "runs" / "folds.json").read_text()
    assert run("folds.py", *options).returncode == 0  # nothing is left to train
    assert (tmp_path / "runs" / "folds.json").read_text() == before
    ended = run("evaluate.py", f"--workdir={tmp_path / 'runs' / 'fold-1'}")
    assert ended.returncode == 0, ended.stderr
    assert f"{tests[1]:,} pairs" in ended.stdout
