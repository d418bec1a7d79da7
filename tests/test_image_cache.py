import os
import tempfile
import threading
import time

import numpy as np
import PIL
import pytest
from conftest import photo
from PIL import Image

import images
from decoding import Form
from errors import UserError

SHAPE = (5, 4, 4, 1)
PIXELS = np.arange(80, dtype=np.uint8).reshape(SHAPE)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of kept sets, of this test alone."""
    monkeypatch.setattr(images, "cache", tmp_path / "cache" / "images")
    return images.cache


@pytest.fixture
def root(tmp_path):
    for k in range(2):
        (tmp_path / "root" / f"c{k}").mkdir(parents=True)
        for i in range(4):
            path = tmp_path / "root" / f"c{k}" / f"{i}.png"
            photo(np.random.default_rng((k, i)), k / 2).save(path)
    (tmp_path / "root" / "c1" / "z.png").write_text("no image")
    return tmp_path / "root"


def load(root, **changes):
    """What a new process loads."""
    images.load_set.cache_clear()
    return images.load_set("folder", str(root), 0, Form(16, 3)._replace(**changes))


def fill(store):
    for i, pixels in enumerate(PIXELS):
        store(i, pixels)
    return {"numbers": np.arange(3), "texts": np.array(["a", "bc"])}


def fetch(key="ab", digest="01", fill=fill):
    found, notes = images.fetch(key, digest, SHAPE, fill)
    np.testing.assert_array_equal(found, PIXELS)
    assert notes["numbers"].tolist() == [0, 1, 2] and notes["texts"].tolist() == ["a", "bc"]


def never(store):
    raise AssertionError("filled in again")


def kept(folder):
    return sorted(path.parent.name.partition("-")[0] for path in folder.glob("*/notes.npz"))


def test_a_second_start_opens_no_image(root, folder, monkeypatch, capfd):
    first = load(root)
    monkeypatch.setattr(images, "decode", None)
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("an image is opened"))
    second = load(root)
    assert isinstance(second.images, np.memmap) and not second.images.flags.writeable
    for field, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(field, other)
    assert any("1 of 9 images cannot be read" in fact for fact in second.facts)
    assert capfd.readouterr().err == ""


decode = images.decode


@pytest.mark.parametrize("change", ["content", "time", "name", "more", "less", "pillow"])
def test_a_set_that_changed_is_decoded_anew_and_replaced(change, root, folder, monkeypatch):
    before, path = load(root), root / "c0" / "2.png"
    if change == "content":
        Image.new("L", (9, 9), 3).save(path)
    elif change == "time":
        os.utime(path, ns=(1, 1))
    elif change == "name":
        path.rename(root / "c0" / "2_.png")  # in the same place
    elif change == "more":
        photo(np.random.default_rng(9), 0).save(root / "c0" / "more.png")
    elif change == "less":
        path.unlink()
    else:
        monkeypatch.setattr(PIL, "__version__", "0")
    decoded = []
    monkeypatch.setattr(images, "decode", lambda *given: decoded.append(1) or decode(*given))
    after = load(root)
    assert len(decoded) == len(after.images)
    assert (len(after.images) != len(before.images)) == (change in ("more", "less"))
    assert len(kept(folder)) == 1


def test_other_options_are_kept_beside(root, folder):
    for changes in ({}, {"image_size": 8}, {"channels": 1}, {"fit": "pad"}):
        load(root, **changes)
    assert len(set(kept(folder))) == 4


@pytest.mark.parametrize("damage", ["short", "no notes", "text", "no pixels"])
def test_a_damaged_set_is_made_anew(damage, folder):
    fetch()
    raw, notes = folder / "ab-01" / "pixels", folder / "ab-01" / "notes.npz"
    if damage == "short":
        raw.write_bytes(raw.read_bytes()[:-1])
    elif damage == "text":
        notes.write_text("no notes")
    else:
        (raw if damage == "no pixels" else notes).unlink()
    fetch()
    fetch(fill=never)


def test_nothing_is_left_of_a_set_that_failed(folder):
    def fail(store):
        store(0, PIXELS[0])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(fill=fail)
    assert [path.name for path in folder.iterdir()] == ["ab.lock"]
    (folder / "ab-killed").mkdir()  # of a process that was killed
    fetch()
    assert sorted(path.name for path in folder.iterdir()) == ["ab-01", "ab.lock"]


@pytest.mark.parametrize("broken", ["full", "closed"])
def test_without_room_images_are_not_kept(broken, folder, monkeypatch, capfd):
    write = os.pwrite
    if broken == "full":

        def refuse(*_):
            monkeypatch.setattr(os, "pwrite", write)  # in another folder there is room
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "pwrite", refuse)
    else:
        folder.parent.mkdir()
        folder.write_text("a file")
    fetch()
    assert not folder.is_dir() or not kept(folder)
    error = capfd.readouterr().err
    assert error.startswith("warning: decoded images cannot be kept in") and error.count("\n") == 1


def test_without_any_room_one_line_says_so(monkeypatch):
    monkeypatch.setattr(images, "TemporaryDirectory", lambda: open("/dev/null/x"))
    with pytest.raises(UserError, match="no room for decoded images in a temporary folder"):
        fetch()


def test_the_sets_used_least_recently_go_first(folder, monkeypatch):
    fetch("aa")
    size = sum(path.stat().st_size for path in (folder / "aa-01").iterdir())
    monkeypatch.setattr(images, "MOST_BYTES", 3 * size)
    for key in ("aa", "bb", "cc"):
        fetch(key)
    for age, key in enumerate(("bb", "aa", "cc")):
        os.utime(folder / f"{key}-01", (age, age))
    fetch("bb", fill=never)  # which is a use
    fetch("dd")
    assert kept(folder) == ["bb", "cc", "dd"]
    monkeypatch.setattr(images, "MOST_BYTES", PIXELS.size - 1)
    fetch("ee")
    assert kept(folder) == ["ee"]


def test_of_two_processes_one_decodes_and_the_other_waits(folder, capfd):
    calls = []

    def slow(store):
        calls.append(1)
        time.sleep(0.2)
        return fill(store)

    threads = [threading.Thread(target=fetch, kwargs={"fill": slow}) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fetch(fill=never)
    assert len(calls) == 1
    assert "another process decodes these images: waiting" in capfd.readouterr().err


def test_nothing_is_kept_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "cache", None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    fetch()
    assert not list(tmp_path.iterdir())
