import io
import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import run
from PIL import Image
from tensorflow_datasets.image_classification import omniglot

import images
from decoding import Form
from errors import UserError, first_five
from listings import SPLITS, list_folder, list_tfds


def fill(root, *names):
    """Makes small files of these names below a folder; images are all different."""
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".png", ".pgm", ".jp2"):
            Image.new("L", (4, 4), i).save(path)
        else:
            path.write_text(name)
    return root


def several(folder, count=2, suffix=".png"):
    return [f"{folder}/{i}{suffix}" for i in range(count)]


def found(listing):
    """{name of an image: (name of its class, its split)}."""
    given = [None] * len(listing.names)
    if listing.given is not None:
        given = [SPLITS[i] for i in listing.given]
    classes = [listing.class_names[i] for i in listing.classes]
    return dict(zip(listing.names.tolist(), zip(classes, given, strict=True), strict=True))


def test_the_class_is_the_folder_that_holds_the_image(tmp_path):
    classes = ("Greek/character01", "Greek/character02", "Korean/character01")
    fill(tmp_path, *several(classes[0], 4), *several(classes[1]), *several(classes[2], 3))
    listing = list_folder(tmp_path)
    assert found(listing) == {
        f"{c}/{i}.png": (c, None) for c, n in zip(classes, (4, 2, 3), strict=True) for i in range(n)
    }
    assert listing.facts == (
        "9 images of 3 classes (Greek/character01, Greek/character02, Korean/character01), "
        "2 in the smallest class and 4 in the largest",
    )
    for name, item in zip(listing.names, listing.items, strict=True):
        status = (tmp_path / name).stat()
        assert item.stamp == (status.st_size, status.st_ctime_ns)
        with item.open() as image:
            assert image.size == (4, 4)
    listing = list_folder(tmp_path, class_level=1)
    assert listing.class_names == ("Greek", "Korean") and np.bincount(listing.classes)[0] == 6
    assert list_folder(tmp_path, class_level=9).class_names == classes


@pytest.mark.parametrize("wrapper", ["", "faces/"])
def test_a_set_in_a_folder_of_its_own_is_as_one_without(wrapper, tmp_path):
    names = [f"{wrapper}s{k}/{i}.pgm" for k in range(3) for i in range(2)]
    listing = list_folder(fill(tmp_path, *names))
    assert found(listing) == {name: (name[: name.rindex("/")], None) for name in names}


def test_folders_of_splits_are_the_splits(tmp_path):
    names = [f"{s}/{c}/{i}.png" for s in ("Train", "val", "test") for c in "ab" for i in range(2)]
    fill(tmp_path, *names, "Train/loose.png", ".git/config")
    listing = list_folder(fill(tmp_path, "top.png"))
    meant = {"Train": "train", "val": "validation", "test": "test"}
    expected = {n: (n.split("/")[1], meant[n.split("/")[0]]) for n in names}
    assert found(listing) == expected
    assert listing.facts[1:] == (
        "the folders Train, test, val are the splits",
        "skipped files and folders that are no images by name: 1 with a dot in front",
        "left out: images in no class: 2 (Train/loose.png, top.png)",
    )


def test_a_split_that_is_missing_stays_empty(tmp_path):
    names = [f"{s}/{c}/{i}.png" for s in ("training", "eval") for c in "ab" for i in range(2)]
    listing = list_folder(fill(tmp_path, *names))
    assert sorted(set(listing.given)) == [0, 2] and listing.class_names == ("a", "b")


def test_names_of_splits_beside_other_names_are_classes(tmp_path):
    fill(tmp_path, *several("train"), *several("car"))  # vehicles
    listing = list_folder(tmp_path)
    assert listing.class_names == ("car", "train") and len(listing.facts) == 1
    listing = list_folder(fill(tmp_path, *several("test/x")))
    assert listing.class_names == ("car", "test/x", "train")
    assert listing.facts[1].startswith("the folders test, train are taken for (parts of) classes:")


def test_splits_below_classes_are_said_and_can_be_joined(tmp_path):
    names = [f"{c}/{s}/{i}.png" for s in ("train", "test") for c in "ab" for i in range(2)]
    listing = list_folder(fill(tmp_path, *names))
    assert len(listing.class_names) == 4
    assert listing.facts[1].startswith("the folders test, train are taken for (parts of) classes:")
    assert list_folder(tmp_path, class_level=1).class_names == ("a", "b")


def test_splits_without_train_are_classes(tmp_path):
    listing = list_folder(fill(tmp_path, *several("val"), *several("test")))
    assert listing.class_names == ("test", "val") and listing.given is None


def test_what_is_skipped_is_counted_and_named(tmp_path):
    fill(tmp_path, *several("a", 3), *several("b", 3, ".jp2"), "loose.png", "README", "a/x.txt")
    fill(tmp_path, "a/y.TXT", "b/z.json", "a/._0.png", ".ipynb_checkpoints/0.png", "b/.x/c/0.png")
    listing = list_folder(tmp_path)
    assert listing.class_names == ("a", "b") and len(listing.items) == 6
    assert listing.facts[1:] == (
        "skipped files and folders that are no images by name: "
        "3 with a dot in front, 2 .txt, 1 without a suffix, 1 .json",
        "left out: images in no class: 1 (loose.png)",
    )


def test_links_are_followed_once(tmp_path):
    fill(tmp_path / "far", *several("a"))
    root = fill(tmp_path / "root", *several("b"))
    (root / "a").symlink_to(tmp_path / "far" / "a")
    (root / "b" / "back").symlink_to(root)
    (root / "c").symlink_to(root / "b")
    listing = list_folder(root)
    assert set(found(listing)) == {"a/0.png", "a/1.png", "b/0.png", "b/1.png"}
    assert listing.facts[1].endswith(": 2 links to folders that are listed")


def test_a_name_in_another_encoding_can_be_printed():
    assert first_five([os.fsdecode(b"caf\xe9")] * 6) == r"caf\udce9, " * 5 + "and 1 more"


def test_people_with_one_image_are_left_out(tmp_path):
    fill(tmp_path, *(f"person{k:03}/0.png" for k in range(210)), *several("x"), *several("y"))
    listing = list_folder(tmp_path)
    assert listing.class_names == ("x", "y") and len(listing.items) == 4
    first = ", ".join(f"person{k:03}" for k in range(5))
    assert listing.facts[1] == f"left out: 210 of 212 classes have one image: {first}, and 205 more"


@pytest.mark.parametrize(
    "names, text",
    [
        ((), "0 of 0 classes have two images or more; pairs take two such classes .in a folder: "),
        (("a/x.txt", "a/y.txt"), "0 of 0 classes.*skipped files.*2 .txt"),
        (("0.png", "1.png"), "0 of 0 classes.*left out: images in no class: 2 .0.png"),
        (("a/0.png", "a/1.png", "b/0.png"), "1 of 2 classes have two images or more.*image: b$"),
    ],
)
def test_a_folder_without_two_classes_says_what_was_found(names, text, tmp_path):
    with pytest.raises(UserError, match=text) as raised:
        list_folder(fill(tmp_path, *names))
    assert len(str(raised.value)) < 500 + len(str(tmp_path))


def prepare(folder, examples, image=None, label=None):
    """A set of tensorflow_datasets in array_record; `examples` are [(image, label)] by split."""

    def info(self):
        features = {"image": image or tfds.features.Image(shape=(None, None, 3))}
        features["label"] = label or tfds.features.ClassLabel(num_classes=9)
        features["mask"] = tfds.features.Image(shape=(None, None, 1))  # never decoded
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def generate(self, split):
        for i, (image, label) in enumerate(examples[split]):
            yield i, {"image": image, "label": label, "mask": b"no image"}

    methods = {"VERSION": tfds.core.Version("1.0.0"), "_info": info}
    methods["_split_generators"] = lambda self, _: {s: generate(self, s) for s in examples}
    methods["_generate_examples"] = generate
    with tfds.core.registered.skip_registration():
        toy = type("Toy", (tfds.core.GeneratorBasedBuilder,), methods)
        toy(data_dir=folder, file_format="array_record").download_and_prepare()
    return str(folder / "toy" / "1.0.0")


def encoded(image, form="PNG"):
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def examples(count, first=0):
    shades = [Image.fromarray(np.arange(16 * 16).reshape(16, 16).astype(np.uint8) // 2 + i)
              for i in range(first, first + count)]  # fmt: skip
    return [(encoded(image), i % 3) for i, image in enumerate(shades)]


def test_files_in_a_prepared_set_are_decoded_as_files_are(tmp_path):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 2, (105, 105)).astype(bool)
    kinds = {
        "bits": Image.fromarray(pixels),
        "palette": Image.fromarray(
            random.integers(0, 256, (20, 30, 3)).astype(np.uint8)
        ).quantize(),
        "deep": Image.fromarray(random.integers(0, 4096, (20, 30)).astype(np.uint16)),
    }
    given = [(encoded(image), k) for k, image in enumerate(kinds.values()) for _ in range(2)]
    files = images.load_set("tfds", prepare(tmp_path, {"train": given}), 0, Form(32, 3))
    for k, image in enumerate(kinds.values()):
        for i in range(2):
            (tmp_path / f"root/{k}").mkdir(parents=True, exist_ok=True)
            image.save(tmp_path / f"root/{k}/{i}.png")
    folder = images.load_set("folder", str(tmp_path / "root"), 0, Form(32, 3))
    assert files.white == folder.white == 4095 and not any("cannot" in f for f in files.facts)
    for k, name in enumerate(kinds):
        a, b = (one.images[one.classes == k] for one in (files, folder))
        np.testing.assert_array_equal(a, b, err_msg=name)
    assert np.ptp(files.images[files.classes == 0]) > 100


def test_all_splits_are_put_together_and_named(tmp_path):
    given = {"dev": examples(9), "full": examples(12), "train": examples(3, 50)}
    listing = list_tfds(prepare(tmp_path, given))
    assert len(listing.items) == 15 and listing.given is None
    assert {name.split()[0] for name in listing.names} == {"dev", "full", "train"}
    assert len({*listing.names}) == len({item.stamp for item in listing.items}) == 15
    sizes = "dev (9), full (12), train (3)"
    assert f"the splits of the set are put together, and divided anew: {sizes}" in listing.facts
    assert "taken once: images in two splits of the set: 9" in listing.facts


def test_images_without_a_label_are_left_out(tmp_path):
    given = [*examples(6), *((image, -1) for image, _ in examples(5, 100))]
    listing = list_tfds(prepare(tmp_path, {"train": given}))
    assert listing.class_names == ("0", "1", "2") and len(listing.items) == 6
    assert any(fact.startswith("left out: images in no class: 5 (") for fact in listing.facts)


@pytest.mark.parametrize("kind", ["array", "vector", "format", "gone"])
def test_a_prepared_set_that_cannot_be_read_says_why(kind, tmp_path):
    given, changes = {"train": examples(6)}, {}
    if kind == "vector":
        given = {"train": [(image, [1, 0]) for image, _ in given["train"]]}
        changes = {"label": tfds.features.Tensor(shape=(2,), dtype=np.int64)}
    if kind == "array":
        given = {"train": [(np.full((8, 8, 1), i), i % 2) for i in range(6)]}
        changes = {"image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.int64)}
    path = prepare(tmp_path, given, **changes)
    if kind == "format":
        about = Path(path) / "dataset_info.json"
        about.write_text(about.read_text().replace("array_record", "tfrecord"))
    if kind == "gone":
        next(Path(path).glob("*.array_record*")).unlink()
    text = {
        "array": "wanted is a set of image and label",
        "vector": "wanted is a set of image and label.* number or text; it has image, label, ",
        "format": "TFRECORD is not supported.*; configs/omniglot.py says how to prepare a set",
        "gone": "cannot be read by tensorflow_datasets: ",
    }[kind]
    with pytest.raises(UserError, match=f"^data.path={re.escape(path)}: .*{text}"):
        list_tfds(path)


def test_a_set_that_is_not_prepared_is_answered_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match=r"not prepared; configs/omniglot.py says how to prepare"):
        list_tfds("omniglot")
    with pytest.raises(UserError, match="cannot be read by tensorflow_datasets: Dataset no_such"):
        list_tfds("no_such_set")


def test_a_prepared_set_is_read_without_tensorflow(prepared, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys; sys.path.insert(0, sys.argv[1]); import decoding, images\n"
        "files = images.load_set('tfds', sys.argv[2], 0, decoding.Form(32, 1))\n"
        "print(files.images.shape, files.class_names, 'tensorflow' in sys.modules)"
    )
    finished = run(str(script), str(images.__file__).rsplit("/", 1)[0], str(prepared))
    names = tuple(f"hue{k}" for k in range(6))
    assert finished.stdout == f"(60, 32, 32, 1) {names} False\n", finished.stderr


def test_omniglot_as_a_folder_and_as_its_builder_prepares_it(tmp_path, monkeypatch):
    """The builder of tensorflow_datasets itself; small folders stand for what it downloads."""
    folders = {}
    for name in ("train", "eval", "small1", "small2"):
        root = tmp_path / name / f"images_{name}"
        for k, alphabet in enumerate(("Greek", "Korean")):
            for character in range(2):
                number = 2 * k + character + (4 if name == "eval" else 0)
                folder = root / f"{alphabet}{'_new' * (name == 'eval')}/character{character + 1:02}"
                folder.mkdir(parents=True)
                for i in range(3 if name in ("train", "eval") else 2):
                    strokes = np.random.default_rng((number, i)).integers(0, 2, (105, 105))
                    Image.fromarray(strokes.astype(bool)).save(
                        folder / f"{number + 1:04}_{i + 1:02}.png"
                    )
        folders[name] = str(root.parent)
    monkeypatch.setattr(
        tfds.download.DownloadManager, "download_and_extract", lambda self, urls: folders
    )
    tensorflow = SimpleNamespace(io=SimpleNamespace(gfile=os))  # whose import takes seconds
    monkeypatch.setattr(omniglot, "tf", tensorflow)
    monkeypatch.setattr(omniglot, "_NUM_ALPHABETS", 4)
    monkeypatch.setattr(omniglot, "_NUM_CLASSES", 8)
    builder = omniglot.Omniglot(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    files = images.load_set("tfds", str(builder.data_path), 0, Form(32, 1))
    for name in ("train", "eval"):
        (tmp_path / "all" / name).parent.mkdir(exist_ok=True)
        Path(folders[name]).rename(tmp_path / "all" / name)
    folder = images.load_set("folder", str(tmp_path / "all"), 0, Form(32, 1))
    assert len(files.images) == len(folder.images) == 24 and np.ptp(files.images) > 200
    assert {x.tobytes() for x in files.images} == {x.tobytes() for x in folder.images}
    assert "taken once: images in two splits of the set: 16" in files.facts
