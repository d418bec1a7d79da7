from types import SimpleNamespace

import numpy as np
import pytest
from conftest import photo, run, run_fork
from PIL import Image

import data
import evaluate
import images
import settings
import spaces
import train
from configs import default
from decoding import Form, form_of, read_image
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
    assert decoded == [(24, 1)] * 241
    for changes in ({"p_same": 0.2}, {"split": "classes"}, {"split": "shared", "p_same": 0.0}):
        config = config_of("folder", photos, image_size=24, **changes)
        data.check_splits(config)
        data.make_batch(config, "train", 0)
        assert data.class_names(config.data, [1]) == ["class1"]
    assert len(decoded) == 241
    data.check_splits(config_of("folder", photos, image_size=24, channels=3))
    assert decoded[241:] == [(24, 3)] * 241


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


def test_any_mode_and_size_becomes_what_the_config_says(tmp_path):
    base = photo(np.random.default_rng(0), 0.5)
    deep = Image.fromarray(np.asarray(base.convert("L")).astype(np.uint16) * 257)
    files = {
        "rgb.png": base,
        "cmyk.jpg": base.convert("CMYK"),
        "palette.gif": base.quantize(64),
        "alpha.png": base.convert("RGBA"),
        "deep.png": deep,
        "one.bmp": base.convert("1"),
        "tiny.png": base.resize((1, 1)),
    }
    (tmp_path / "a").mkdir()
    for name, image in files.items():
        image.save(tmp_path / "a" / name)
    turned = base.copy()
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned.rotate(180).save(tmp_path / "a" / "turned.png", exif=exif)
    clear = Image.new("RGBA", (50, 50), (0, 0, 0, 0))
    clear.paste((0, 0, 0, 255), (10, 10, 40, 40))  # black on nothing, as icons are
    clear.save(tmp_path / "a" / "zclear.png")
    for channels in (1, 3):
        config = config_of("folder", tmp_path, channels=channels)
        loaded = load(config)
        assert loaded.images.shape == (9, 32, 32, channels) and (loaded.classes == 0).all()
        by_name = dict(
            zip(
                sorted([*files, "turned.png", "zclear.png"]), loaded.images.astype(int), strict=True
            )
        )
        assert np.ptp(by_name["zclear.png"]) == 255
        for name in ("deep.png", "turned.png", "alpha.png"):
            if channels == 1 or name != "deep.png":
                assert np.abs(by_name[name] - by_name["rgb.png"]).max() <= 2, name


def test_what_cannot_be_read_is_named_counted_and_left_out(photos, tmp_path, capsys):
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
    text = capsys.readouterr().err
    assert "3 of 27 images cannot be read" in text and text.count("\n") == 1
    assert all(name in text for name in ("half.png", "empty.png", "text.jpg"))
    assert np.bincount(files.classes + 1).tolist() == [3, 12, 12]
    assert len(open_split(config.data, "train").rows) == 24


def test_a_set_beyond_the_budget_is_kept_in_a_file(photos, monkeypatch):
    config = config_of("folder", photos)
    config.batch_size = 50
    expected = data.make_batch(config, "train", 0)
    monkeypatch.setattr(images, "KEEP_BYTES", 1000)
    for function in (images.load_set, spaces.open_frozen):
        function.cache_clear()
    assert isinstance(load(config).images, np.memmap)
    for field, other in zip(expected, data.make_batch(config, "train", 0), strict=True):
        assert (field == other).all()
    for function in (images.load_set, spaces.open_frozen):
        function.cache_clear()


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
    assert "no images there" in refusal(folder_options(root), tmp_path)
    (root / "only").mkdir()
    for i in range(3):
        photo(np.random.default_rng(i), 0).save(root / "only" / f"{i}.png")
    assert "1 of 1 classes" in refusal(folder_options(root, "shared"), tmp_path)
    (root / "single").mkdir()
    photo(np.random.default_rng(9), 0).save(root / "single" / "0.png")
    assert "class single has one image" in refusal(folder_options(root), tmp_path)
    assert "must be a folder" in refusal(folder_options(tmp_path / "none"), tmp_path)


def test_a_set_that_is_not_prepared_is_answered_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    config = config_of("tfds", "omniglot")
    with pytest.raises(UserError, match=r"prepare it: .*builder.'omniglot', file_format"):
        load(config)
    with pytest.raises(UserError, match="no set of tensorflow_datasets"):
        load(config_of("tfds", "no_such_set"))


def test_a_prepared_set_is_read_without_tensorflow(prepared, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys; sys.path.insert(0, sys.argv[1]); import decoding, images\n"
        "files = images.load_set('tfds', sys.argv[2], decoding.Form(32, 1))\n"
        "print(files.images.shape, files.class_names, 'tensorflow' in sys.modules)"
    )
    finished = run(str(script), str(images.__file__).rsplit("/", 1)[0], str(prepared))
    names = tuple(f"hue{k}" for k in range(6))
    assert finished.stdout == f"(60, 32, 32, 1) {names} False\n", finished.stderr


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
    asked = SimpleNamespace(**options, robustness=False)
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
            np.testing.assert_array_equal(image, read_image(name, Form(24, 3)))
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: left out: --images: {tmp_path / 'empty.png'} cannot")
    assert warning.count("\n") == 1
    with pytest.raises(UserError, match=r"^--images=.*a.png: wanted are two files"):
        images.open_images(two[:1], Form(24, 3))
    with pytest.raises(UserError, match=r"^--images: .*empty.png cannot be read: cannot identify"):
        images.open_images([*two, str(tmp_path / "empty.png")], Form(24, 3))
    with pytest.raises(UserError, match=r"^--images: no such file or folder: none.png, other.png$"):
        images.open_images(["none.png", two[0], "other.png"], Form(24, 3))


def odd_files(folder, random):
    """Yields images, and files that only look like one: (path, whether it is an image)."""
    pixels = random.integers(0, 256, (24, 40, 3)).astype(np.uint8)
    plain = Image.fromarray(pixels)
    whole = {
        "grey.png": plain.convert("L"),
        "one.png": Image.new("RGB", (1, 1), "red"),
        "deep.png": Image.fromarray(pixels[..., 0].astype(np.uint16) << 8),
        "print.jpg": plain.convert("CMYK"),
        "clear.png": plain.convert("RGBA"),
        "palette.gif": plain.convert("P"),
        "bits.tiff": plain.convert("1"),
        "wide.png": Image.new("L", (20_000, 3), 9),
        "photo.webp": plain,
        "plain.bmp": plain,
    }
    for name, image in whole.items():
        image.save(folder / name)
        yield folder / name, True
    frames = [plain, plain.rotate(90)]
    plain.save(folder / "moving.gif", save_all=True, append_images=frames)
    yield folder / "moving.gif", True
    for name in list(whole):
        (folder / f"empty {name}").write_bytes(b"")
        yield folder / f"empty {name}", False
        (folder / f"text {name}").write_text("no image\n" * random.integers(1, 99))
        yield folder / f"text {name}", False
        content = (folder / name).read_bytes()
        for i in range(45):
            cut = content[: random.integers(1, len(content))]
            (folder / f"cut {i} {name}").write_bytes(cut)
            yield folder / f"cut {i} {name}", None  # what is left may be enough
            flipped = bytearray(content)
            for at in random.integers(0, len(content), 3):
                flipped[at] ^= 1 << random.integers(8)
            (folder / f"flipped {i} {name}").write_bytes(flipped)
            yield folder / f"flipped {i} {name}", None
    for side in (10_000, 20_000):  # Pillow warns of the first and refuses the second
        Image.new("1", (side, side)).save(folder / f"bomb {side}.png")
        yield folder / f"bomb {side}.png", False
    (folder / "folder.png").mkdir()
    yield folder / "folder.png", False


def test_a_thousand_odd_files_are_each_read_or_named_in_one_line(tmp_path):
    config, count = default.get_config(), 0
    for path, good in odd_files(tmp_path, np.random.default_rng(0)):
        count += 1
        try:
            read = read_image(path, form_of(config.data))
        except UserError as stopped:
            assert not good and str(path) in str(stopped) and "\n" not in str(stopped)
        else:
            assert good is not False and read.shape == (32, 32, 1)
    assert count > 900
