import errno
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import photo, run_fork
from PIL import Image

import data
import evaluate
import images
import settings
import train
from configs import default
from decoding import Form
from errors import UserError
from listings import SPLITS
from spaces import open_split


def config_of(source, path, **changes):
    config = default.get_config()
    config.data.update(
        {"source": source, "path": str(path), "split": "disjoint", "p_same": 0.5} | changes
    )
    settings.check(config)
    return config


def load(config):
    return images.load(config.data)


def test_a_folder_is_its_classes(photos):
    config = config_of("folder", photos, channels=3, image_size=24)
    files = load(config)
    assert files.class_names == tuple(f"class{k}" for k in range(6))
    assert np.bincount(files.classes).tolist() == [41, 40, 40, 40, 40, 40]
    assert files.images.shape == (241, 24, 24, 3)
    file = sorted((photos / "class2").rglob("*.png"))[3]
    index = np.flatnonzero(files.classes == 2)[3]
    expected = np.asarray(Image.open(file).resize((24, 24), Image.Resampling.BILINEAR))
    assert (files.images[index] == expected).all()


def test_images_are_decoded_once_whatever_else_the_config_says(photos, monkeypatch):
    decoded = []

    def count(open_image, form):
        decoded.append(form)
        return decode(open_image, form)

    decode = images.decode
    monkeypatch.setattr(images, "decode", count)
    images.load_set.cache_clear()
    data.check_splits(config_of("folder", photos, image_size=24))
    assert decoded == [Form(24, 1)] * 241
    for changes in ({"p_same": 0.2}, {"split": "classes"}, {"split": "shared", "p_same": 0.0}):
        config = config_of("folder", photos, image_size=24, **changes)
        data.check_splits(config)
        data.make_batch(config, "train", 0)
        assert data.class_names(config.data, [1]) == ["class1"]
    assert len(decoded) == 241
    data.check_splits(config_of("folder", photos, image_size=24, channels=3))
    assert decoded[241:] == [Form(24, 3)] * 241


def test_pairs_of_files_are_two_images_and_their_label_is_the_class(photos):
    config = config_of("folder", photos, p_same=0.6)
    config.batch_size = 4000
    files = load(config)
    class_of = {x.tobytes(): c for x, c in zip(files.images, files.classes, strict=True)}
    seen = {}
    for split in SPLITS:
        batch = data.make_batch(config, split, 0)
        pairs = [[class_of[x.tobytes()] for x in both] for both in batch[:2]]
        assert (np.equal(*pairs) == batch.label).all()
        assert batch.label.mean() == pytest.approx(0.6, abs=0.04)
        if split != "train":  # which has an image and its copy
            assert not (batch.image1 == batch.image2).all(axis=(1, 2, 3)).any()
        seen[split] = {x.tobytes() for both in batch[:2] for x in both}
        _, first, second, label, weight = data.enumerate_pairs(config.data, split, 10**6)[:5]
        assert weight.sum() == pytest.approx(1) and (weight * label).sum() == pytest.approx(0.6)
        assert (first != second).all()
    assert not seen["train"] & seen["test"] and not seen["train"] & seen["validation"]


def test_classes_can_be_kept_apart(photos):
    config = config_of("folder", photos, split="classes")
    parts = [set(open_split(config.data, s).class_ids) for s in SPLITS]
    assert [len(part) for part in parts] == [2, 2, 2] and set.union(*parts) == set(range(6))


def test_what_cannot_be_read_is_named_counted_and_left_out(tmp_path):
    for k in range(2):
        (tmp_path / f"c{k}").mkdir()
        for i in range(12):
            photo(np.random.default_rng(i), k).save(tmp_path / f"c{k}" / f"{i}.png")
    whole = (tmp_path / "c0" / "0.png").read_bytes()
    (tmp_path / "c0" / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c0" / "empty.png").touch()
    (tmp_path / "c1" / "text.jpg").write_text("not an image")
    config = config_of("folder", tmp_path, split="shared")
    files = load(config)
    text = files.facts[-1]
    assert text.startswith("3 of 27 images cannot be read and are left out: ")
    assert all(name in text for name in ("half.png", "empty.png", "text.jpg"))
    assert np.bincount(files.classes + 1).tolist() == [3, 12, 12]
    assert len(open_split(config.data, "train").rows) == 24


def test_what_the_machine_cannot_read_now_is_no_damaged_image(photos, monkeypatch):
    """And is not kept: the next start reads it."""
    before, config = images.decode, config_of("folder", photos, image_size=11)

    def fail_once(open_image, form):
        monkeypatch.setattr(images, "decode", before)
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(images, "decode", fail_once)
    with pytest.raises(UserError, match=r"png cannot be read now: Too many open files"):
        load(config)
    assert (load(config).classes >= 0).all()


def test_a_refusal_is_led_by_what_is_known_of_the_images(tmp_path, capsys):
    for k in range(2):
        (tmp_path / f"c{k}").mkdir()
        for i in range(9):
            Image.fromarray(np.zeros((5, 5), np.float32)).save(tmp_path / f"c{k}" / f"{i}.tif")
    with pytest.raises(UserError, match="0 of 2 classes have two images or more in train"):
        data.check_splits(config_of("folder", tmp_path))
    assert "warning: 18 of 18 images cannot be read" in capsys.readouterr().err


def refusal(options, tmp_path):
    finished = run_fork("train.py", *options, "--workdir=w", cwd=tmp_path)
    assert finished.returncode == 1 and "Traceback" not in finished.stderr
    assert not (tmp_path / "w").exists()
    return finished.stderr.strip().splitlines()[-1]


def folder_options(path, split="disjoint"):
    options = {"source": "folder", "path": path, "split": split, "p_same": 0.5}
    return [f"--config.data.{key}={value}" for key, value in options.items()]


def test_a_folder_without_pairs_says_why(photos, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    assert "0 of 0 classes" in refusal(folder_options(root), tmp_path)
    (root / "only").mkdir()
    for i in range(3):
        photo(np.random.default_rng(i), 0).save(root / "only" / f"{i}.png")
    assert "1 of 1 classes" in refusal(folder_options(root, "shared"), tmp_path)
    (root / "single").mkdir()
    photo(np.random.default_rng(9), 0).save(root / "single" / "0.png")
    assert "1 of 2 classes have two images or more" in refusal(folder_options(root), tmp_path)
    assert "none: is no folder of images in folders" in refusal(
        folder_options(tmp_path / "none"), tmp_path
    )


@pytest.mark.slow
@pytest.mark.parametrize("source", ["folder", "tfds"])
def test_real_images_go_through_training_and_evaluation(
    source, photos, prepared, tmp_path, tiny, capsys
):
    path = photos if source == "folder" else prepared
    tiny.data.update({"source": source, "path": str(path), "channels": 3, "p_same": 0.5})
    train.train_and_evaluate(tiny, tmp_path)
    trained = capsys.readouterr().out
    options = {"step": "best", "split": "test", "threshold": None, "images": None}
    asked = SimpleNamespace(**options, way=None, gallery=None)
    evaluate.evaluate_run(settings.load_config(tmp_path), tmp_path, asked)
    assert capsys.readouterr().out.splitlines()[-2:] == trained.splitlines()[-2:]
    assert "every ordered pair" in trained
    image = np.asarray(Image.open(tmp_path / "evaluation" / "pairs.png").convert("RGB"))
    assert np.ptp(image.astype(int), axis=-1).mean() > 10  # in colour


def test_named_images_are_two_files_or_a_folder_of_them(photos, tmp_path, capsys):
    for name, source in (("a.png", "0.png"), ("b.png", "2.png")):
        (tmp_path / name).write_bytes((photos / "class0" / source).read_bytes())
    (tmp_path / "empty.png").touch()
    (tmp_path / "notes.txt").touch()
    two = [str(tmp_path / name) for name in ("a.png", "b.png")]
    for given in (two, [str(tmp_path)]):
        names, read = images.open_images(given, Form(24, 3))
        assert names == two and read.dtype == np.uint8
        for name, image in zip(names, read, strict=True):
            expected = Image.open(name).resize((24, 24), Image.Resampling.BILINEAR)
            np.testing.assert_array_equal(image, expected)
    skipped, left_out = capsys.readouterr().err.splitlines()
    assert skipped.endswith("files and folders that are no images by name: 1 .txt")
    assert "1 of 3 images cannot be read" in left_out and "empty.png" in left_out
    with pytest.raises(UserError, match=r"^--images=.*a.png: wanted are two files"):
        images.open_images(two[:1], Form(24, 3))
    with pytest.raises(UserError, match=r"^--images=.*1 of 2 .* are left out: .*empty.png .canno"):
        images.open_images([two[0], str(tmp_path / "empty.png")], Form(24, 3))
    with pytest.raises(UserError, match=r"2 of 3 images .*: none.png .No such file or dir"):
        images.open_images(["none.png", two[0], "other.png"], Form(24, 3))


def deep(path, most, size=8):
    values = np.arange(size * size).reshape(size, size) * most // (size * size - 1)
    Image.fromarray(values.astype(np.uint16)).save(path)
    return values


def test_a_set_has_one_white(tmp_path):
    for k in range(2):
        (tmp_path / f"c{k}").mkdir()
    values = {f"c{k}/{i}.png": deep(tmp_path / f"c{k}" / f"{i}.png", most)
              for i, most in enumerate((100, 900, 3000)) for k in range(2)}  # fmt: skip
    eight = np.round(values["c0/2.png"] * 255 / 4095).astype(np.uint8)  # the same in 8 bits
    Image.fromarray(eight).save(tmp_path / "c1" / "eight.png")
    config = config_of("folder", tmp_path, image_size=8)
    files = load(config)
    by_name = dict(zip(files.names, files.images[..., 0], strict=True))
    for name, expected in values.items():
        np.testing.assert_array_equal(by_name[name], np.floor(expected * 255 / 4095 + 0.5))
    assert np.abs(by_name["c1/eight.png"].astype(int) - by_name["c0/2.png"]).max() <= 1
    assert files.white == 4095
    assert "images of over 8 bits have values of 12 bits: white is 4,095" in files.facts
    config.data.white = 4095  # as a run writes it into its config
    assert load(config) is files
    config.data.white = 65535
    assert load(config).white == 65535
    both = [str(tmp_path / "c0" / f"{i}.png") for i in (0, 2)]
    read = images.open_images(both, Form(8, 1))[1]
    assert (read[:, ..., 0] == [by_name["c0/0.png"], by_name["c0/2.png"]]).all()


def test_images_of_8_bits_have_no_white(photos):
    assert load(config_of("folder", photos)).white == 0


def test_the_folder_and_the_form_decide_what_is_decoded(photos):
    first = load(config_of("folder", photos, image_size=24))
    padded = load(config_of("folder", photos, image_size=24, fit="pad"))
    assert padded.class_names == first.class_names and (padded.images != first.images).any()
    with pytest.raises(UserError, match=r"data.class_level=1: must be 0 unless data.source=folder"):
        config_of("tfds", "omniglot", class_level=1)
    for key, value in (("fit", "stretch"), ("white", 99)):
        with pytest.raises(UserError, match=f"data.{key}={value}: must be"):
            config_of("folder", photos, **{key: value})


def test_what_is_left_to_the_images_is_found_and_what_is_given_stays(photos):
    left = config_of("folder", photos, image_size=0, channels=0).data
    images.resolve(left)  # photos of 56 x 40 pixels, in colour
    assert (left.image_size, left.channels, left.white) == (32, 3, 0)
    given = config_of("folder", photos, image_size=0, channels=1).data
    images.resolve(given)
    assert (given.image_size, given.channels) == (32, 1)
