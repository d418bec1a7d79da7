import gzip
import json
import re
import shutil
from collections import Counter

import numpy as np
import pytest
from conftest import tiny_config
from PIL import Image

import data
import fingerprint
import images
import settings
import train
from errors import UserError
from spaces import open_split
from splits import FINGERPRINT, read_fingerprint


def save_image(path, seed, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12), np.uint8)
    Image.fromarray(pixels).save(path, **options)


def config_of(path, **changes):
    """The tiny config with the data at a path: a folder, or a list of pairs."""
    config = tiny_config()
    source = "pairs" if path.suffix == ".csv" else "folder"
    config.data.update({"source": source, "path": str(path), "image_size": 12, "p_same": 0.5})
    config.data.update({"split": "classes" if source == "folder" else "disjoint"} | changes)
    settings.check(config)
    return config


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of ten classes with twenty images each, not to be written to."""
    root = tmp_path_factory.mktemp("photos")
    for i in range(200):
        save_image(root / f"class{i // 20}" / f"{i % 20}.png", i)
    return root


@pytest.fixture
def other(photos, tmp_path):
    """A copy of it, to be changed."""
    return shutil.copytree(photos, tmp_path / "other")


@pytest.fixture
def begun(photos, tmp_path):
    """A function that begins a run: its folder, with a fingerprint and a checkpoint's folder."""

    def begin(path=photos, **changes):
        config, workdir = config_of(path, **changes), tmp_path / "run"
        with train.held(config, workdir):
            (workdir / "checkpoints" / "4").mkdir(parents=True)
        return config, workdir

    return begin


def resume(config, workdir):
    with train.held(config, workdir):
        pass


def shown(config, split):
    """The names of a split's images."""
    space = open_split(config.data, split)
    return {str(name) for name in space.names[space.rows]}


@pytest.mark.parametrize("split", ["classes", "disjoint"])
def test_every_image_has_its_class_pixels_and_split(other, begun, split):
    shutil.copy(other / "class0" / "1.png", other / "class0" / "copy.png")
    config, workdir = begun(other, split=split)
    kept = json.loads(gzip.decompress((workdir / "data.json.gz").read_bytes()))
    files = {path.relative_to(other).as_posix() for path in other.rglob("*.png")}
    hashes = {name: pixels for name, (_, _, pixels) in kept["images"].items()}
    assert hashes.keys() == files
    assert hashes["class0/1.png"] == hashes["class0/copy.png"]
    assert len({*hashes.values()}) == 200
    assert [*hashes.values()] == images.load(config.data).split_hash.tolist()
    for name in data.SPLITS:
        listed = {image for image, (_, given, *_) in kept["images"].items() if given == name}
        counts = Counter(image.split("/")[0] for image in listed)  # a pair of the same takes two
        assert shown(config, name) == {i for i in listed if counts[i.split("/")[0]] > 1}
    assert all(row[0] == name.split("/")[0] for name, row in kept["images"].items())
    assert kept.keys() == {"images", "pairs"} and kept["pairs"] == {}


def test_an_image_that_cannot_be_read_is_in_no_split(other, begun):
    (other / "class2" / "3.png").write_text("no image")
    _, workdir = begun(other)
    kept = read_fingerprint(workdir)
    assert kept["images"]["class2/3.png"][:2] == [None, None]
    (other / "class2" / "3.png").unlink()
    shutil.copy(other / "class2" / "4.png", other / "class2" / "3.png")
    moved = other.rename(other.parent / "mended")
    with pytest.raises(UserError, match=r"is now: images changed: 1 \(class2/3.png\);"):
        resume(config_of(moved), workdir)


def test_data_that_moved_are_the_same(other, begun, tmp_path):
    _, workdir = begun(other)
    before = (workdir / "data.json.gz").read_bytes()
    moved = shutil.copytree(other, tmp_path / "moved", copy_function=shutil.copyfile)
    shutil.rmtree(other)
    config = config_of(moved)
    resume(config, workdir)
    assert settings.load_config(workdir).data.path == str(moved)
    assert (workdir / "data.json.gz").read_bytes() == before
    fingerprint.write(config.data, tmp_path)
    assert (tmp_path / "data.json.gz").read_bytes() == before  # no time, no place is in it


def test_a_file_written_anew_with_the_same_pixels_is_the_same(photos, other, begun):
    _, workdir = begun()
    save_image(other / "class1" / "3.png", 23, dpi=(72, 72))
    assert (other / "class1" / "3.png").stat().st_size != (
        photos / "class1" / "3.png"
    ).stat().st_size
    resume(config_of(other), workdir)


def add(root):
    for i in range(7):
        save_image(root / "class3" / f"new{i}.png", 1000 + i)


CHANGES = {
    add: "images added: 7 (" + ", ".join(f"class3/new{i}.png" for i in range(5)) + ", and 2 more)",
    lambda root: (root / "class3" / "2.png").unlink(): "images removed: 1 (class3/2.png)",
    lambda root: save_image(root / "class3" / "2.png", 999): "images changed: 1 (class3/2.png)",
    lambda root: (root / "class3" / "2.png").rename(root / "class3" / "x.png"): (
        "images added: 1 (class3/x.png), images removed: 1 (class3/2.png)"
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_does_not_resume_on_other_data(other, begun, change):
    _, workdir = begun()
    before = {path: path.read_bytes() for path in workdir.iterdir() if path.is_file()}
    change(other)
    with pytest.raises(UserError) as raised:
        resume(config_of(other), workdir)
    assert str(raised.value) == (
        f"--workdir={workdir} was trained on other data than {other} is now: {CHANGES[change]}; "
        "put them back, or name another --workdir (data.splits_of keeps the splits there)"
    )
    lock = workdir / settings.LOCK
    assert {path: path.read_bytes() for path in before if path != lock} == {
        path: text for path, text in before.items() if path != lock
    }


def test_a_run_without_a_checkpoint_begins_with_the_data_as_they_are(other, begun):
    config, workdir = begun()
    (workdir / "checkpoints" / "4").rmdir()
    add(other)
    resume(config_of(other), workdir)
    assert "class3/new0.png" in read_fingerprint(workdir)["images"]
    assert "class3/new0.png" not in fingerprint.take(config.data)["images"]


def test_an_image_in_another_split_is_named(begun):
    config, workdir = begun()
    kept = read_fingerprint(workdir)
    (name,) = (k for k in kept["images"] if k.startswith("class4/0"))
    kept["images"][name][1] = "elsewhere"
    (workdir / FINGERPRINT).write_bytes(gzip.compress(json.dumps(kept).encode()))
    with pytest.raises(UserError, match=r"is now: images changed: 1 \(class4/0.png\);"):
        resume(config, workdir)


def write_pairs(root, lines):
    path = root / "pairs.csv"
    path.write_text("\n".join(["image1,image2,label,split", *lines]) + "\n")
    return path


def pair_lines():
    names = {"train": 0, "validation": 4, "test": 7}
    return [
        f"class{k + i}/0.png,class{k + j}/1.png,{int(i == j)},{split}"
        for split, k in names.items()
        for i in range(3)
        for j in range(3)
    ]


def flip(lines):
    lines[3] = lines[3].replace(",0,train", ",1,train")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda lines: lines.pop(), "pairs removed: 1 (class9/0.png - class9/1.png)"),
        (
            lambda lines: lines.append("class0/0.png,class0/0.png,1,train"),
            "pairs added: 1 (class0/0.png - class0/0.png)",
        ),
        (lambda lines: lines.append(lines.pop(0)), "another order of its images or pairs"),
        (flip, "pairs changed: 1 (class1/0.png - class0/1.png)"),
    ],
)
def test_a_list_of_pairs_is_compared_pair_by_pair(other, begun, tmp_path, change, message):
    lines = pair_lines()
    _, workdir = begun(write_pairs(other, lines))
    kept = read_fingerprint(workdir)
    assert len(kept["pairs"]) == 27
    assert kept["pairs"]["class8/0.png - class8/1.png"] == [1, "test"]
    assert kept["images"]["class8/0.png"][:2] == [None, None]
    change(lines)
    changed = write_pairs(shutil.copytree(other, tmp_path / "changed"), lines)
    with pytest.raises(UserError, match=re.escape(f"is now: {message}")):
        resume(config_of(changed), workdir)


@pytest.mark.parametrize("split", ["classes", "disjoint"])
def test_what_was_trained_on_is_never_in_the_test_of_changed_data(other, begun, split):
    config, workdir = begun(split=split)
    before = {name: shown(config, name) for name in data.SPLITS}
    for i in range(120):  # twenty classes more, some of them in front of the others
        save_image(other / f"{'a' if i % 2 else 'k'}{i // 6}" / f"{i % 6}.png", 2000 + i)
        save_image(other / f"class{i // 2 % 10}" / f"new{i}.png", 3000 + i)
    save_image(other / sorted(before["train"])[0], 9999)
    (other / sorted(before["train"])[1]).unlink()
    config = config_of(other, split=split, splits_of=str(workdir))
    kept, now = read_fingerprint(workdir)["images"], fingerprint.take(config.data)["images"]
    assert all(now[name][1] == given for name, (_, given, *_) in kept.items() if name in now)
    for name in data.SPLITS:
        known = {image for image in shown(config, name) if image in kept}
        assert known <= {image for image, (_, given, *_) in kept.items() if given == name}
    if split == "classes":
        of_test = {name.split("/")[0] for name in shown(config, "test")}
        assert not of_test & {name.split("/")[0] for name in before["train"] | before["validation"]}
    (changed,) = fingerprint.news(config.data)
    start = f"the data have changed since {workdir} was trained: images added: 240 (a0/1.png, "
    assert changed.startswith(start)
    assert f"images removed: 1 ({sorted(before['train'])[1]})" in changed
    assert f"images changed: 1 ({sorted(before['train'])[0]})" in changed


def test_unchanged_data_are_no_news(begun):
    config, workdir = begun()
    config.data.splits_of = str(workdir)
    assert fingerprint.news(config.data) == [] != data.describe(config)
    assert data.describe(tiny_config()) == []


def test_a_class_under_another_name_is_known_by_its_pixels(photos, begun, tmp_path):
    """Its images stay where they were: else the test would show what was trained on."""
    config, workdir = begun()
    before = fingerprint.take(config.data)["images"]
    for i in range(10):
        other = shutil.copytree(photos, tmp_path / f"other{i}")
        (other / f"class{i}").rename(other / "renamed")
        now = fingerprint.take(config_of(other, splits_of=str(workdir)).data)["images"]
        assert now["renamed/0.png"][1] == before[f"class{i}/0.png"][1]


def test_other_data_altogether_are_refused(photos, begun, tmp_path):
    _, workdir = begun()
    shutil.copytree(photos, tmp_path / "deep" / "photos")
    config = config_of(tmp_path / "deep", split="disjoint", splits_of=str(workdir))
    with pytest.raises(UserError, match=r"deep: has none of the 200 images that .* \(class0/0.png"):
        fingerprint.news(config.data)


def test_the_identity_is_of_what_decides_the_pairs(begun):
    _, workdir = begun()
    kept = read_fingerprint(workdir)
    before = fingerprint.identity(kept)
    kept["images"]["class0/0.png"][0] = "class1"
    assert fingerprint.identity(kept) != before


def test_a_run_without_a_fingerprint_says_so(begun, capsys):
    config, workdir = begun()
    (workdir / FINGERPRINT).unlink()
    resume(config, workdir)
    assert "has no fingerprint of its data" in capsys.readouterr().err
    assert not (workdir / FINGERPRINT).exists()  # these may be other data


@pytest.mark.parametrize(
    "bytes_",
    [b"", b"text", gzip.compress(b"[]"), gzip.compress(b'{"a": 1}')],
    ids=["empty", "text", "list", "other keys"],
)
def test_a_damaged_fingerprint_is_one_line(begun, bytes_):
    config, workdir = begun()
    whole = (workdir / FINGERPRINT).read_bytes()
    for damaged in (bytes_, whole[: len(whole) // 2]):
        (workdir / FINGERPRINT).write_bytes(damaged)
        with pytest.raises(UserError, match=r"data.json.gz is damaged: put it back, or delete"):
            resume(config, workdir)


def test_a_fingerprint_is_whole_or_not_there(photos, tmp_path):
    (tmp_path / "run" / f"{FINGERPRINT}.partial").mkdir(parents=True)
    with pytest.raises(UserError, match=r"data.json.gz cannot be written: Is a directory"):
        fingerprint.write(config_of(photos).data, tmp_path / "run")
    assert read_fingerprint(tmp_path / "run") is None


def test_hosts_compare_what_decides_the_pairs(begun, photos, tmp_path):
    """Images at another place are alike; with one more image, or one in another class, not."""
    copies = [shutil.copytree(photos, tmp_path / name) for name in ("same", "more", "moved")]
    (copies[1] / "class0" / "new.png").write_bytes((photos / "class0" / "1.png").read_bytes())
    (copies[2] / "class0" / "1.png").rename(copies[2] / "class1" / "moved.png")
    seals = [fingerprint.seal(config_of(path).data) for path in (photos, *copies)]
    assert seals[0] == seals[1] and seals[0] not in seals[2:]
    assert fingerprint.seal(tiny_config().data) == {}


def test_drawn_shapes_have_no_fingerprint(tiny, tmp_path):
    resume(tiny, tmp_path / "run")
    assert not (tmp_path / "run" / FINGERPRINT).exists()
