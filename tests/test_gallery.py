import csv
import itertools
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ENVIRONMENT, ROOT, run_fork, write_photos
from PIL import Image

import decoding
import gallery
import scoring
import settings
from errors import UserError
from model import create_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A gallery of 24 photos in two classes, one file that is none, and one that is skipped."""
    root = write_photos(tmp_path_factory.mktemp("gallery"), 2, 12)
    (root / "bad.png").write_text("no image")
    (root / "notes.txt").write_text("no image by name")
    return root


@pytest.fixture(scope="module")
def trained(whole_run, tmp_path_factory):
    """The folder of a run whose threshold is 0.6, to be written to."""
    workdir = shutil.copytree(whole_run[0], tmp_path_factory.mktemp("trained") / "run")
    config = json.loads((workdir / "config.json").read_text())
    config["eval"]["threshold"] = 0.6
    (workdir / "config.json").write_text(json.dumps(config))
    shutil.rmtree(workdir / "evaluation")
    return workdir


def oracle(workdir, query, paths, white=0):
    """The probability of each path with the query, compared one by one by the whole network."""
    config = settings.load_config(workdir)
    model, form = create_model(config), decoding.form_of(config.data)._replace(white=white)
    _, variables = scoring.load_variables(config, workdir, model, "best")
    compare, found = jax.jit(model.apply), {}
    first = decoding.decode(lambda: Image.open(query), form)[0][None]
    for path in paths:
        second = decoding.decode(lambda path=path: Image.open(path), form)[0][None]
        logit = float(compare(variables, first, second)[0])
        found[str(path)] = 1 / (1 + np.exp(-logit))
    return found


def search(workdir, *options):
    return run_fork("evaluate.py", f"--workdir={workdir}", *options)


def rows(workdir):
    with open(workdir / "evaluation" / "matches.csv", newline="") as file:
        return [*csv.DictReader(file)]


def check(found, expected):
    """That rows of the CSV file have the order and the answers of one by one."""
    assert {row["image"] for row in found} == expected.keys()
    given = [expected[row["image"]] for row in found]
    np.testing.assert_allclose([float(row["probability"]) for row in found], given, atol=2e-6)
    assert all(a >= b - 1e-6 for a, b in itertools.pairwise(given))
    assert [row["answer"] == "same" for row in found] == [p >= 0.6 for p in given]
    assert [int(row["rank"]) for row in found] == [*range(1, len(found) + 1)]


def test_all_of_a_gallery_are_in_the_order_of_comparing_one_by_one(trained, folder):
    query = folder / "class1" / "3.png"
    ended = search(trained, f"--gallery={folder}", f"--query={query}", "--nearest=100")
    assert ended.returncode == 0, ended.stderr
    expected = oracle(trained, query, sorted(folder.glob("class*/*.png")))
    found = rows(trained)
    assert len(found) == 24 and {row["threshold"] for row in found} == {"0.600000"}
    check(found, expected)
    for row in found:
        assert f"{row['probability']}  {row['answer']:<9}  {row['image']}\n" in ended.stdout
    assert "1 of 25 images cannot be read and are left out" in ended.stderr
    assert "skipped files and folders that are no images by name: 1 .txt" in ended.stderr
    assert not (folder / "embeddings.npz").exists()


def test_an_enrolled_gallery_answers_alike_and_decodes_only_the_query(trained, folder, tmp_path):
    db, queries = shutil.copytree(folder, tmp_path / "db"), tmp_path / "queries"
    queries.mkdir()
    for i, name in enumerate(("class0/0.png", "class1/5.png")):
        shutil.copy(folder / name, queries / f"q{i}.png")
    options = f"--gallery={db}", "--nearest=4"
    assert search(trained, *options, f"--query={queries}").returncode == 0
    first = rows(trained)
    ended = search(trained, f"--gallery={db}", "--enroll")
    assert ended.returncode == 0 and ended.stdout == f"wrote {db / 'embeddings.npz'}: 24 images\n"
    ended = search(trained, *options, f"--query={queries}")
    assert (ended.returncode, ended.stderr) == (0, "") and rows(trained) == first
    assert ".npz" not in search(trained, f"--gallery={db}", "--enroll").stderr
    with np.load(db / "embeddings.npz", allow_pickle=False) as file:
        kept = dict(file)
    assert len(kept["embeddings"]) == len(kept["names"]) == 24 and kept["step"] in (4, 8)
    for name in ("class0/0.png", "class0/1.png"):  # no pixel is needed, but it is said
        (db / name).write_bytes(b"")
    ended = search(trained, *options, f"--query={queries}")
    assert rows(trained) == first and ended.stderr.count("\n") == 1
    assert (
        "images were added, removed or changed since then; --enroll makes it anew" in ended.stderr
    )


def test_the_weights_of_a_gallery_are_all_variables_but_the_heads():
    def digest(encoder=0, whitening=0, head=0):
        statistics = {"encoder": {"mean": encoder}, "whitening": {"matrix": whitening}}
        variables = {"params": {"head": {"scale": head}}, "batch_stats": statistics}
        return gallery.digest("grey", variables)

    assert digest(head=1) == digest()
    assert len({digest(), digest(encoder=1), digest(whitening=1)}) == 3


def test_a_gallery_of_other_weights_or_a_damaged_one_is_refused(trained, folder, tmp_path):
    db, query = shutil.copytree(folder, tmp_path / "db"), f"--query={folder / 'class1' / '3.png'}"
    assert search(trained, f"--gallery={db}", "--enroll").returncode == 0
    path, kept = db / "embeddings.npz", (db / "embeddings.npz").read_bytes()
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    objects = np.array([{"a": 1}], object)
    for changes, message in (
        ({"weights": "0" * 64}, "(weights 00000000), the run's is step"),
        ({"step": 3}, "it is of step 3 (weights"),
        ({"names": objects}, "cannot be read (Object arrays cannot be loaded"),
    ):
        np.savez(path, **(arrays | changes))
        ended = search(trained, f"--gallery={db}", query)
        assert ended.returncode == 1 and message in ended.stderr, ended.stderr
        assert ended.stderr.endswith("--enroll makes it anew\n") and ended.stderr.count("\n") == 1
    for content in (kept[:1000], b"", b"no zip"):
        path.write_bytes(content)
        ended = search(trained, f"--gallery={db}", query)
        assert ended.returncode == 1 and ended.stderr.count("\n") == 1
        assert f"{path} cannot be read (" in ended.stderr


@pytest.mark.parametrize(
    "options, message",
    [
        (["--query=a.png"], "are about a gallery: name --gallery=FOLDER, too"),
        (["--enroll"], "are about a gallery: name --gallery=FOLDER, too"),
        (["--nearest=3"], "are about a gallery: name --gallery=FOLDER, too"),
        (["--gallery={db}"], "name --query=FILE, or --enroll"),
        (["--gallery={db}", "--query={q}", "--nearest=0"], "0 is not a positive integer"),
        (["--gallery={db}", "--query={q}", "--images=a.png,b.png"], "leave out --images and --way"),
        (["--gallery={db}", "--query={q}", "--data=new"], "--images and --gallery read no data"),
        (["--gallery=nowhere", "--query={q}"], "--gallery=nowhere: no such folder; wanted is"),
        (["--gallery={q}", "--query={q}"], "no such folder; wanted is a folder of images"),
        (["--gallery={empty}", "--query={q}"], "--gallery={empty}: no images there"),
        (["--gallery={empty}", "--enroll"], "--gallery={empty}: no images there"),
        (["--gallery={db}", "--query={empty}"], "--query={empty}: no images there"),
        (["--gallery={db}", "--query=nothing.png"], "nothing.png (No such file or directory)"),
        (["--gallery={db}", "--query={db}/bad.png", "--enroll"], "bad.png (cannot identify image"),
        (
            ["--images={q},{db}"],
            "name files, or one folder alone; to look one image up in a folder",
        ),
    ],
)
def test_what_cannot_be_looked_up_is_one_line(options, message, trained, folder, tmp_path):
    workdir, named = shutil.copytree(trained, tmp_path / "run"), {"db": folder}
    shutil.rmtree(workdir / "evaluation", ignore_errors=True)
    named |= {"q": folder / "class0" / "1.png", "empty": tmp_path / "empty"}
    (tmp_path / "empty").mkdir()
    ended = search(workdir, *(text.format(**named) for text in options))
    assert ended.returncode == 1 and ended.stdout == "" and ended.stderr.count("\n") == 1
    assert message.format(**named) in ended.stderr
    assert not (workdir / "evaluation").exists() and not (folder / "embeddings.npz").exists()


def test_names_of_any_bytes_are_printed_and_written(trained, folder, tmp_path):
    db = tmp_path / "db"
    db.mkdir()
    shutil.copy(folder / "class0" / "1.png", db / "b\udcff,$.png")
    ended = search(trained, f"--gallery={db}", f"--query={db}", "--enroll")
    assert ended.returncode == 0 and "b\\udcff,$.png" in ended.stdout, ended.stderr
    written = (trained / "evaluation" / "matches.csv").read_bytes()
    assert f'"{db}/b'.encode() + b'\xff,$.png"' in written
    assert search(trained, f"--gallery={db}", f"--query={db}").returncode == 0
    for i in (2, 3):
        shutil.copy(folder / "class0" / f"{i}.png", db)
    command = [sys.executable, ROOT / "evaluate.py", f"--workdir={trained}", f"--images={db}"]
    ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True)
    assert ended.returncode == 0 and b"/b\xff,$.png" in ended.stdout


def test_the_sheet_frames_what_is_the_same_green_and_all_else_red():
    form, random = decoding.Form(32, 3), np.random.default_rng(0)
    pixels = random.integers(0, 256, (2, 32, 32, 3), np.uint8)
    answers = [[("gone1", 2.0), ("gone2", 0.5)], [("gone3", 0.49), ("gone4", -1.0)]]
    sheet = gallery.draw(["q1", "q2"], pixels, answers, 0.5, form)
    axes = np.reshape(sheet.axes, (2, 3))
    colors = [[place.spines["left"].get_edgecolor()[:3] for place in row] for row in axes]
    green = [[two[1] > two[0] for two in row[1:]] for row in colors]
    assert green == [[True, True], [False, False]]
    for row, image in zip(axes, pixels, strict=True):
        np.testing.assert_array_equal(row[0].images[0].get_array(), image)
        assert not row[1].images[0].get_array().any()
    assert [place.get_title() for place in axes[0]] == ["query", "0.881", "0.622"]


def test_equal_answers_are_in_the_order_of_the_gallery_and_nan_is_refused():
    embeddings = np.float32([[1], [3], [2], [3], [1]])
    chosen, logits = gallery.nearest(lambda rows: rows[:, 0], embeddings, 4)
    assert chosen.tolist() == [1, 3, 2, 0] and logits.tolist() == [3, 3, 2, 1]
    with pytest.raises(UserError, match="not finite"):
        gallery.nearest(lambda rows: rows[:, 0] * np.nan, embeddings, 4)


def test_deep_images_have_one_white_in_the_gallery_and_in_the_query(trained, tmp_path):
    """Where the run has none, that of the gallery, which is kept, too."""
    db, query, random = tmp_path / "db", tmp_path / "query.png", np.random.default_rng(0)
    db.mkdir()
    for name, top in (("a", 4000), ("b", 900), ("c", 2000)):
        deep = random.integers(0, top, (32, 32)).astype(np.uint16)
        Image.fromarray(deep).save(db / f"{name}.png")
    shutil.copy(db / "b.png", query)
    expected = oracle(trained, query, sorted(db.glob("*.png")), white=4095)
    for options in (["--enroll"], []):
        ended = search(trained, f"--gallery={db}", f"--query={query}", *options)
        assert ended.returncode == 0, ended.stderr
        check(rows(trained), expected)
