import csv
import io
import json
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import run, run_fork, tiny_config
from PIL import Image

import data
import evaluate
import fingerprint
import images
import metrics
import scoring
import settings
from decoding import Form
from errors import UserError
from model import create_model, init_variables
from splits import FINGERPRINT, read_fingerprint


@pytest.fixture(scope="module")
def scored():
    """(config, variables, apply, score) of an untrained network."""
    config = tiny_config()
    model = create_model(config)
    return config, init_variables(model, config), jax.jit(model.apply), scoring.make_scorer(model)


def test_every_ordered_pair_is_evaluated_with_its_probability(scored):
    config, variables, apply, score = scored
    found = scoring.evaluate(config, score, variables, "validation")
    assert found.metrics["pairs"] == 9216 and found.metrics["exact"]
    shown, shapes, probabilities = data.enumerate_images(config.data, "validation")
    pairs = {}
    for i, j, p, w in zip(
        found.pairs.first, found.pairs.second, found.scores.logits, found.pairs.weight, strict=True
    ):
        pairs[i, j] = pairs[j, i] = 1 / (1 + np.exp(-p))
        assert w == pytest.approx(probabilities[i] * probabilities[j] * (1 if i == j else 2))
    assert len(pairs) == 9216
    rng = np.random.default_rng(0)
    i, j = rng.integers(96, size=(2, 64))
    logits = apply(variables, shown[i], shown[j])
    expected = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    np.testing.assert_allclose(
        [pairs[a, b] for a, b in zip(i, j, strict=True)], expected, rtol=1e-4
    )
    wrong = sum((p >= 0.5) != (shapes[a] == shapes[b]) for (a, b), p in pairs.items())
    assert found.metrics["wrong"] == wrong
    assert sum(map(sum, found.metrics["confusion"])) == 9216


def test_a_space_too_large_to_enumerate_is_sampled(scored):
    _, variables, _, score = scored
    config = tiny_config()
    config.data.placement = "inside"
    config.eval.num_pairs = 1001
    assert len(data.enumerate_images(config.data, "test")[0]) ** 2 > 2 * scoring.MOST_WHILE_TRAINING
    found = scoring.evaluate(config, score, variables, "test")
    assert found.metrics["pairs"] == 1001 and not found.metrics["exact"]
    again = scoring.evaluate(config, score, variables, "test")
    other = scoring.evaluate(config, score, variables, "validation")
    assert found.metrics == again.metrics != other.metrics
    drawn = data.make_batch(config, "test", 0)  # the sample is what the test's stream begins with
    np.testing.assert_array_equal(found.pairs.images[found.pairs.first[:8]], drawn.image1)
    np.testing.assert_array_equal(found.pairs.images[found.pairs.second[:8]], drawn.image2)
    np.testing.assert_array_equal(found.pairs.label[:8], drawn.label)


def test_blocks_compute_every_row_once_and_in_order():
    """In the fewest blocks, of one size; one block has no row to spare."""
    for n in (1, 7, 16, 17, 40, 100):
        sizes = []

        def double(rows, sizes=sizes):
            sizes.append(len(rows))
            return 2 * rows

        found = scoring.in_blocks(double, 16, np.arange(n))
        np.testing.assert_array_equal(found, 2 * np.arange(n))
        assert len(sizes) == -(-n // 16) and set(sizes) == {min(n, 16)}


def test_evaluate_takes_the_newest_run_and_writes_the_report(whole_run, tmp_path):
    workdir, printed = whole_run
    shutil.copytree(workdir, tmp_path / "runs" / "mine")
    shutil.rmtree(tmp_path / "runs" / "mine" / "evaluation")
    finished = run("evaluate.py", cwd=tmp_path)
    assert finished.returncode == 0 and finished.stderr == "", finished.stderr
    assert str(tmp_path / "runs" / "mine") in finished.stdout
    folder = tmp_path / "runs" / "mine" / "evaluation"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics == json.loads((workdir / "evaluation" / "metrics.json").read_text())
    names = "loss accuracy precision recall f1 roc_auc pairs wrong exact step split threshold"
    assert set(names.split()) <= metrics.keys()
    assert metrics["exact"] is True and metrics["pairs"] == 9216 and metrics["threshold"] == 0.5
    assert (folder / "report.html").exists()
    assert f"{metrics['loss']:.6f}" in printed


@pytest.mark.parametrize(
    "options, message",
    [
        (["--step=6"], "no checkpoint 6"),
        (["--step=first"], "no checkpoint first in"),
        (["--split=exam"], "train|validation|test"),
        (["--workdir=nowhere"], "no run there"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(whole_run, options, message):
    finished = run_fork("evaluate.py", f"--workdir={whole_run[0]}", *options)
    assert finished.returncode == 1
    assert message in finished.stderr and finished.stderr.count("\n") == 1


def test_no_run_at_all_is_one_line(tmp_path):
    finished = run_fork("evaluate.py", cwd=tmp_path)
    assert finished.returncode == 1 and finished.stderr.count("\n") == 1
    assert "no run under" in finished.stderr and not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def scratch_run(whole_run, tmp_path_factory):
    """A copy of the run, to be written to."""
    workdir = tmp_path_factory.mktemp("scratch") / "run"
    shutil.copytree(whole_run[0], workdir)
    return workdir


def call(workdir, **changes):
    """What evaluate.py does with one run."""
    options = {"step": "best", "split": "test", "threshold": None, "images": None}
    options |= {"way": None, "gallery": None} | changes
    config = settings.load_config(workdir)
    evaluate.evaluate_run(config, workdir, SimpleNamespace(**options))


@pytest.mark.slow
def test_a_fitted_threshold_is_kept_for_its_step(scratch_run, capsys):
    call(scratch_run, threshold="far:0.2")
    kept = json.loads((scratch_run / "threshold.json").read_text())
    metrics = json.loads((scratch_run / "evaluation" / "metrics.json").read_text())
    different, _ = metrics["confusion"]
    assert 0 < different[1] / sum(different) <= 0.2  # validation's pairs are the test's
    assert metrics["threshold"] == kept["probability"] != 0.5
    call(scratch_run)
    again = json.loads((scratch_run / "evaluation" / "metrics.json").read_text())
    assert again == metrics
    other = str({4, 8}.difference({metrics["step"]}).pop())
    call(scratch_run, step=other)
    values = json.loads((scratch_run / "evaluation" / "metrics.json").read_text())
    assert values["threshold"] == 0.5
    call(scratch_run, threshold="0.3")
    values = json.loads((scratch_run / "evaluation" / "metrics.json").read_text())
    assert values["threshold"] == pytest.approx(0.3)
    assert json.loads((scratch_run / "threshold.json").read_text()) == kept
    (scratch_run / "threshold.json").unlink()


def test_two_images_and_a_folder_of_them(scratch_run, tmp_path, capsys):
    config = settings.load_config(scratch_run)
    shown = data.enumerate_images(config.data, "test")[0][[0, 20, 60]]
    for i, pixels in enumerate(shown):
        Image.fromarray(pixels[..., 0]).save(tmp_path / f"{i}.png")
    names = [str(tmp_path / f"{i}.png") for i in range(3)]
    model = create_model(config)
    _, variables = scoring.load_variables(config, scratch_run, model, "best")
    i, j = np.indices((3, 3)).reshape(2, -1)
    logits = np.float64(jax.jit(model.apply)(variables, shown[i], shown[j])).reshape(3, 3)
    expected = 1 / (1 + np.exp(-logits))
    call(scratch_run, images=images.open_images(names[:2], Form(32, 1)))
    answer = "same" if expected[0, 1] >= 0.5 else "different"
    printed = capsys.readouterr().out
    assert printed.startswith(f"{answer}: probability of same {expected[0, 1]:.4f}"[:-1])
    call(scratch_run, images=images.open_images([str(tmp_path)], Form(32, 1)))
    header, *rows = csv.reader(io.StringIO(capsys.readouterr().out))
    assert header == ["", *names] and [row[0] for row in rows] == names
    np.testing.assert_allclose([[float(p) for p in row[1:]] for row in rows], expected, atol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--threshold=2"], "a number between 0 and 1, accuracy, or far:RATE"),
        (["--threshold=far:-1"], "a number between 0 and 1, accuracy, or far:RATE"),
        (
            ["--images=nothing.png,other.png"],
            "2 of 2 images cannot be read and are left out: nothing",
        ),
        (["--images=nothing.png"], "nothing.png (No such file or directory)"),
        (["--images=."], "two files, or a folder of two images or more"),
    ],
)
def test_what_cannot_be_compared_is_one_line(scratch_run, options, message, tmp_path):
    finished = run_fork("evaluate.py", f"--workdir={scratch_run}", *options, cwd=tmp_path)
    assert finished.returncode == 1
    assert message in finished.stderr and finished.stderr.count("\n") == 1


class Options(SimpleNamespace):
    """The options of evaluate.py, as absl has them."""

    def __init__(self, **given):
        names = ("workdir", "threshold", "data", "images", "way", "gallery", "query")
        values = dict.fromkeys(names) | {"step": "best", "split": "test"}
        values |= {"shot": 1, "within": False, "nearest": 5, "enroll": False}
        super().__init__(**(values | given))

    def __getitem__(self, name):
        return SimpleNamespace(value=getattr(self, name))


def folder_run(root, name, path, seed=0, split="disjoint"):
    """The folder of a run on files, without its checkpoints."""
    workdir = root / name
    workdir.mkdir()
    config = tiny_config()
    config.seed = seed
    config.data.update({"source": "folder", "path": str(path), "split": split, "p_same": 0.5})
    settings.save_config(config, workdir)
    if path.exists():
        fingerprint.write(config.data, workdir)
    return workdir


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of three classes with seventy images each."""
    root, random = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    for i in range(210):
        (root / f"class{i % 3}").mkdir(exist_ok=True)
        pixels = random.integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(pixels).save(root / f"class{i % 3}" / f"{i}.png")
    return root


def test_files_that_have_moved_are_named_with_an_option(files, tmp_path, capsys):
    old = shutil.copytree(files, tmp_path / "old")
    workdir = folder_run(tmp_path, "run", old)
    new = old.rename(tmp_path / "new")
    with pytest.raises(UserError) as raised:
        evaluate.read_command(Options(workdir=str(workdir)))
    text = f"its images are not at {old}: name where they are now with --data=PATH"
    assert str(raised.value) == f"--workdir={workdir}: {text}"
    before = (workdir / "config.json").read_bytes()
    config, _, _ = evaluate.read_command(Options(workdir=str(workdir), data=str(new)))
    assert (config.data.path, config.data.splits_of) == (str(new), str(workdir))
    assert capsys.readouterr() == ("", "") and (workdir / "config.json").read_bytes() == before


def test_what_has_changed_since_training_is_told_by_an_evaluation(files, tmp_path):
    workdir, other = folder_run(tmp_path, "run", files), shutil.copytree(files, tmp_path / "other")
    name = next(k for k, v in read_fingerprint(workdir)["images"].items() if v[1] == "train")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(other / name)
    (other / "class1" / "1.png").unlink()
    Image.fromarray(np.full((8, 8), 7, np.uint8)).save(other / "class1" / "more.png")
    config, _, asked = evaluate.read_command(Options(workdir=str(workdir), data=str(other)))
    assert asked.facts[0].startswith("210 images of 3 classes")
    assert asked.facts[-1] == (
        f"the data have changed since {workdir} was trained: images added: 1 "
        f"(class1/more.png), images removed: 1 (class1/1.png), images changed: 1 ({name})"
    )
    assert name not in data.enumerate_pairs(config.data, "test", 10**6).names


def test_a_run_whose_splits_share_their_images_is_evaluated_on_all(files, tmp_path):
    workdir = folder_run(tmp_path, "run", files, split="shared")
    config, _, asked = evaluate.read_command(Options(workdir=str(workdir)))
    assert len(asked.facts) == 2 and len(data.open_split(config.data, "test").rows) == 210


def test_a_run_of_before_has_no_fingerprint_and_says_so(files, tmp_path):
    workdir = folder_run(tmp_path, "run", files)
    (workdir / FINGERPRINT).unlink()
    config, _, asked = evaluate.read_command(Options(workdir=str(workdir)))
    assert config.data.splits_of == ""
    assert asked.facts[-1].startswith(f"{workdir} has no fingerprint of its data")


@pytest.mark.parametrize("process", [0, 1])
def test_what_the_data_are_is_said_by_one_process(process, files, tmp_path, monkeypatch, capsys):
    workdir = folder_run(tmp_path, "run", files)
    monkeypatch.setattr(evaluate, "evaluate_run", lambda *_: None)
    monkeypatch.setattr(evaluate.runtime, "prepare", lambda _: None)
    monkeypatch.setattr(evaluate.hosts, "read_cluster", lambda _: None)
    monkeypatch.setattr(evaluate.hosts, "joined", lambda *_: nullcontext())
    monkeypatch.setattr(evaluate.signal, "signal", lambda *_: None)
    monkeypatch.setattr(jax, "process_index", lambda: process)
    evaluate.main(Options(workdir=str(workdir), cache=""))
    shown = capsys.readouterr()
    facts = data.describe(settings.load_config(workdir))
    assert shown.out.splitlines() == ([] if process else facts) and shown.err == ""


def test_images_are_compared_without_the_data_of_the_run(files, tmp_path):
    workdir = str(folder_run(tmp_path, "run", tmp_path / "gone"))
    names = [str(path) for path in sorted((files / "class0").iterdir())[:2]]
    config, _, asked = evaluate.read_command(
        Options(workdir=workdir, images=names, threshold="0.4")
    )
    assert config.data.path == str(tmp_path / "gone") and asked.images[0] == names
    with pytest.raises(UserError, match="--images and --gallery read no data: leave it out"):
        evaluate.read_command(Options(workdir=workdir, images=names, data="new"))
    with pytest.raises(UserError, match="gone: name where they are now with --data"):
        evaluate.read_command(Options(workdir=workdir, images=names, threshold="far:0.1"))


def test_few_shot_answers_are_those_of_the_images_in_the_episodes(files, tmp_path):
    workdir, settled = folder_run(tmp_path, "run", files, split="shared"), np.arange(210) % 7
    config = settings.load_config(workdir)
    shown = {image.tobytes(): i for i, image in enumerate(images.load(config.data).images)}

    def score(_, pairs):
        places = np.array([shown[image.tobytes()] for image in pairs.images])
        both = (settled[places[i]] for i in (pairs.first, pairs.second))
        return -np.abs(np.subtract(*both)).astype(float)

    found = []
    for within in (False, True):  # all classes are in one folder
        asked = SimpleNamespace(split="test", way=3, shot=2, within=within)
        found.append(evaluate.few_shot(config, score, None, asked))
    assert {**found[0], "within": True} == found[1] and found[0]["facts"] == []
    low, high = found[0]["interval"]
    assert low < found[0]["error"] < high and found[0]["way"] == 3
    assert found[0]["error"] == pytest.approx(2 / 3, abs=0.05)  # what is settled is not the class


@pytest.mark.parametrize(
    "options, message",
    [
        ({"shot": 2}, "--shot and --within are about few-shot answers: name --way, too"),
        ({"way": 5, "images": ["a.png"]}, "--way is about the data of the run: leave out --images"),
        ({"way": 5}, "--way=5: for runs on images in classes (data.source folder or tfds), not sh"),
    ],
)
def test_few_shot_answers_are_refused_where_there_are_none(whole_run, options, message):
    with pytest.raises(UserError) as raised:
        evaluate.read_command(Options(workdir=str(whole_run[0]), **options))
    assert str(raised.value).startswith(message)


def test_a_run_of_drawn_shapes_takes_no_data(whole_run):
    with pytest.raises(UserError, match=r"^--data=new: .* draws its images, it reads no files"):
        evaluate.read_command(Options(workdir=str(whole_run[0]), data="new"))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"placement": "inside", "split": "disjoint"},
        {"p_same": 0.3, "shapes": ("circle", "cross", "ring"), "min_sizes": (4, 4, 5)},
    ],
)
def test_all_pairs_and_a_sample_of_them_agree_within_the_interval(scored, changes):
    config, variables, _, score = scored
    config = config.copy_and_resolve_references()
    config.data.update(changes)
    settings.check(config)
    whole = scoring.evaluate(config, score, variables, "test", scoring.MOST_PAIRS)
    sampled = scoring.evaluate(config, score, variables, "test", most=1)
    assert whole.metrics["exact"] and not sampled.metrics["exact"]
    bounds = metrics.intervals(*sampled.scores)
    for name in ("loss", "accuracy", "precision", "recall", "f1", "far", "roc_auc", "eer", "brier"):
        low, high = bounds[name]
        margin = 0.6 * (high - low)  # 9 x 3 intervals of 95 %: widened to 99.9 %
        assert low - margin <= whole.metrics[name] <= high + margin, name


def test_answers_that_are_not_finite_are_refused(scored):
    config, _, _, _ = scored
    pairs = data.enumerate_pairs(config.data, "test", 10**6)
    logits = np.ones(len(pairs.label))
    logits[3] = np.nan
    with pytest.raises(UserError, match="not finite"):
        scoring.evaluate_pairs(config, lambda *_: logits, None, pairs)


def test_a_kept_threshold_that_cannot_be_read_is_one_line(scratch_run):
    config = settings.load_config(scratch_run)
    for text in ("no json", "[1]", '{"step": 8}', '{"step": 8, "logit": "high"}'):
        (scratch_run / "threshold.json").write_text(text)
        with pytest.raises(UserError, match=r"threshold.json is damaged: delete it"):
            scoring.kept_threshold(config, scratch_run, 8)
    (scratch_run / "threshold.json").unlink()
