import csv

import numpy as np
import pytest
from PIL import Image

import data
import images
import settings
import splits
from configs import default
from errors import UserError
from listings import SPLITS
from pair_lists import list_pairs
from spaces import open_split


def write_pairs(path, rows, header=("image1", "image2", "label")):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def config_of(path, **changes):
    config = default.get_config()
    given = {"source": "pairs", "path": str(path), "split": "disjoint", "p_same": 0.5}
    config.data.update(given | changes)
    settings.check(config)
    return config


def load(path):
    return images.load(config_of(path).data)


def save(folder, *names):
    """A grey image for each name, none like another."""
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), i).save(folder / name)
    return names


def as_text(listing):
    """The pairs of a listing by the names of their images."""
    return [(str(listing.names[a]), str(listing.names[b]), int(k)) for a, b, k in listing.pairs]


def test_a_list_of_pairs_is_drawn_as_it_stands(photos):
    names = [f"class{k}/{i}.png" for k in range(6) for i in range(0, 20, 2)]
    rows = [
        (names[i], names[(7 * i + k) % 60], str((i + k) % 3 == 0).lower(), split)
        for i in range(60)
        for k, split in enumerate(("train", "train", "validation", "test"))
    ]
    path = write_pairs(photos / "split.csv", rows, ("image1", "image2", "label", "split"))
    config = config_of(path, p_same=0.0)
    index = {}
    for name in names:
        image = Image.open(photos / name).convert("L").resize((32, 32), Image.Resampling.BILINEAR)
        index[np.asarray(image).tobytes()] = name
    for split in SPLITS:
        listed = {(a, b): float(c == "true") for a, b, c, s in rows if s == split}
        config.batch_size = 2000
        image1, image2, label, _ = data.make_batch(config, split, 3)
        drawn = [[index[x.tobytes()] for x in both] for both in (image1, image2)]
        found = dict(zip(zip(*drawn, strict=True), label.tolist(), strict=True))
        assert found == listed
        pairs = data.enumerate_pairs(config.data, split, 10**6)
        assert len(pairs.first) == len(listed)
        assert pairs.weight == pytest.approx(1 / len(listed))
        assert sorted(pairs.label) == sorted(listed.values()) and len(pairs.images) <= 60


def test_backslashes_are_slashes_and_counted(tmp_path):
    save(tmp_path, "a/1.png", "a/2.png", "b/1.png")
    rows = [(r"a\1.png", "a/2.png", 1), ("a/1.png", r"b\1.png", 0), (r"a\1.png", r"b\1.png", 0)]
    listing = list_pairs(write_pairs(tmp_path / "pairs.csv", rows))
    assert as_text(listing) == [
        ("a/1.png", "a/2.png", 1), ("a/1.png", "b/1.png", 0), ("a/1.png", "b/1.png", 0)
    ]  # fmt: skip
    assert listing.facts == (
        "3 pairs of 3 images, 1 of them the same",
        "backslashes in 2 paths are taken for slashes",
    )


def test_every_word_for_a_label_is_read_in_any_case(photos):
    words = [("1", 1), ("Same", 1), ("TRUE", 1), ("0", 0), ("different", 0), ("False", 0)]
    names = [f"class0/{i}.png" for i in range(7)]
    rows = [(names[i], names[i + 1], word) for i, (word, _) in enumerate(words)]
    files = load(write_pairs(photos / "words.csv", rows))
    assert files.pairs.tolist() == [[i, i + 1, label] for i, (_, label) in enumerate(words)]


def test_given_pairs_of_an_image_that_cannot_be_read_are_left_out(photos, tmp_path):
    (tmp_path / "bad.png").touch()
    good = [str(photos / f"class{k}" / "0.png") for k in range(3)]
    rows = [(good[0], good[1], 0), (good[1], good[2], 1), ("bad.png", good[2], 1)]
    rows = [(*row, split) for row in rows for split in SPLITS]
    path = write_pairs(tmp_path / "pairs.csv", rows, ("image1", "image2", "label", "split"))
    config = config_of(path)
    names = load(path).names
    pairs = open_split(config.data, "train").pairs
    assert [[names[i] for i in pair[:2]] for pair in pairs] == [good[:2], good[1:]]


@pytest.mark.parametrize(
    "rows, header, text",
    [
        ([], ("image1", "image2"), "lacks the column label"),
        ([], ("image1", "image2", "label"), "no pairs there"),
        (
            [("a.png", "b.png", "maybe")],
            ("image1", "image2", "label"),
            "line 2: ['a.png', 'b.png'], label 'maybe', ",
        ),
        (
            [("a.png", "b.png", 1)],
            ("image1", "image2", "label"),
            "none of 2 images found; paths are relative to",
        ),
        (
            [("class0/0.png", f"class{k}/4.png", 0) for k in range(3)],
            ("image1", "image2", "label"),
            "train has 0 pairs of the same and 3 different: too few",
        ),
        (
            [("class0/0.png", "class1/4.png", 0), ("a.png", "class0/0.png", 1)],
            ("image1", "image2", "label"),
            "train has 0 pairs of the same and 1 different: too few (1 of 2 are in none); more",
        ),
        ([("a.png", "", 1)], ("image1", "image2", "label"), "line 2: ['a.png', ''], label '1'"),
        ([("a.png",)], ("image1", "image2", "label"), "line 2: ['a.png', ''], label ''"),
        ([], (), "lacks the column"),
        (
            [("class0/0.png", "class0/2.png", 1, "deviation")],
            ("image1", "image2", "label", "split"),
            "line 2: ['class0/0.png', 'class0/2.png'], label '1', split 'deviation'; must be two",
        ),
        (
            [("class0/0.png", f"class{k}/4.png", 1 - k, "train ") for k in (0, 1)],
            ("image1", "image2", "label", "split"),
            "validation has 0 pairs of the same and 0 different: too few",
        ),
    ],
)
def test_a_bad_list_of_pairs_says_what_is_wrong(photos, rows, header, text):
    path = write_pairs(photos / "bad.csv", rows, header)
    images.load_set.cache_clear()
    splits.assign.cache_clear()
    with pytest.raises(UserError) as raised:
        data.check_splits(config_of(path, p_same=0.0))
    assert str(raised.value).startswith(f"data.path={path}: {text}")


def test_a_list_of_pairs_must_be_a_file(tmp_path):
    for path in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(
            UserError, match=r"^data.path=.*: is no CSV file or pairs.txt; have your"
        ):
            data.check_splits(config_of(path))
    with pytest.raises(UserError, match="Is a directory"):  # as of any file that cannot be read
        list_pairs(tmp_path)


def test_paths_of_another_folder_are_answered_with_the_folder(tmp_path):
    names = save(tmp_path / "pictures", *(f"{i}.png" for i in range(200)))
    path = write_pairs(tmp_path / "pairs.csv", [(a, b, 1) for a in names[:1] for b in names])
    with pytest.raises(UserError) as raised:
        data.check_splits(config_of(path))
    text = f"none of 200 images found; paths are relative to {tmp_path}; the first is 0.png"
    assert str(raised.value) == f"data.path={path}: {text}"


@pytest.mark.parametrize(
    "text",
    ["a.png,b.png,1\nc.png,d.png,0\n", "image1;image2;label\na.png;b.png;1\n", "a.png b.png 1\n",
     "a.png\tb.png\t1\n", "image1\timage2\tlabel\na.png\tb.png\t1\n"],
)  # fmt: skip
def test_a_list_without_a_header_or_of_another_form_is_refused(tmp_path, text):
    save(tmp_path, *(f"{name}.png" for name in "abcd"))
    (tmp_path / "pairs.txt").write_text(text)
    with pytest.raises(UserError, match="lacks the column image1, image2, label"):
        list_pairs(tmp_path / "pairs.txt")


def lfw(folds, each, first_line=None, between="\t"):
    """(text of a pairs.txt, its pairs): in each fold people of its own, the same before others."""
    lines, pairs = [] if first_line is None else [first_line], []
    for fold in range(folds):
        for i in range(each):
            lines.append(between.join((f"Ann_{fold}", str(i + 1), str(i + 12))))
            pairs.append((f"Ann_{fold}", i + 1, f"Ann_{fold}", i + 12, 1))
        for i in range(each):
            lines.append(between.join((f"Bo_{fold}", str(i + 1), f"Cy_{fold}", "1")))
            pairs.append((f"Bo_{fold}", i + 1, f"Cy_{fold}", 1, 0))
    pairs = [(f"{a}/{a}_{i:04d}.jpg", f"{b}/{b}_{j:04d}.jpg", k) for a, i, b, j, k in pairs]
    return "\n".join(lines) + "\n", pairs


@pytest.mark.parametrize("between", ["\t", "  "])
@pytest.mark.parametrize("first_line", ["10\t3", None])
def test_the_list_of_lfw_is_read_as_it_is_with_its_folds(tmp_path, first_line, between):
    text, pairs = lfw(10, 3, first_line, between)
    save(tmp_path, *sorted({name for pair in pairs for name in pair[:2]}))
    (tmp_path / "pairs.txt").write_text(text)
    listing = list_pairs(tmp_path / "pairs.txt")
    assert as_text(listing) == pairs
    assert (listing.given - len(SPLITS)).tolist() == [k // 6 for k in range(60)]
    assert listing.facts == ("60 pairs of 100 images, 30 of them the same",)
    for split, count in zip(SPLITS, (48, 6, 6), strict=True):
        assert len(open_split(config_of(tmp_path / "pairs.txt").data, split).pairs) == count


def test_a_column_names_the_folds_of_a_list(tmp_path):
    names, header = save(tmp_path, "a.png", "b.png", "c.png"), ("image1", "image2", "label", "fold")
    rows = [(names[i % 2], names[2], i % 2, k) for i, k in enumerate([3, 0, 2, 2, 1, 11])]
    rows += [(names[0], names[1], 1, k) for k in range(12)]
    listing = list_pairs(write_pairs(tmp_path / "pairs.csv", rows, header))
    assert (listing.given - len(SPLITS)).tolist() == [row[3] for row in rows]
    both = [(*row, "test") for row in rows]
    listing = list_pairs(write_pairs(tmp_path / "pairs.csv", both, (*header, "split")))
    assert {*listing.given} == {SPLITS.index("test")}
    for wrong, text in ((12, "three folds or more: 0, 1, 2 and so on"), ("x", "fold 'x'; must be")):
        chosen = [row for row in rows if row[3] != 5] + [(*rows[0][:3], wrong)]
        with pytest.raises(UserError, match=text):
            list_pairs(write_pairs(tmp_path / "pairs.csv", chosen, header))
    with pytest.raises(UserError, match="three folds or more"):
        list_pairs(
            write_pairs(
                tmp_path / "pairs.csv", [(*r[:3], i % 2) for i, r in enumerate(rows)], header
            )
        )


def test_a_list_of_lfw_without_folds_has_no_splits(tmp_path):
    text, pairs = lfw(1, 40, "40")
    save(tmp_path, *sorted({name for pair in pairs for name in pair[:2]}))
    one, two = text.splitlines()[1], text.splitlines()[41]
    turns = f"{one}\n{two}\n"  # too many, or of unequal length
    for lines in (text, text.removeprefix("40\n"), turns * 40, turns * 9 + two):
        (tmp_path / "pairs.txt").write_text(lines)
        listing = list_pairs(tmp_path / "pairs.txt")
        assert listing.given is None and len(listing.facts) == 1
        assert as_text(listing)[0] == pairs[0]


@pytest.mark.parametrize(
    "text, message",
    [
        ("10\t300\n", "no pairs there"),
        (
            "Ann\t1\t2\nAnn\t1\tBo\t1\nAnn\tBo\n",
            r"line 3: 'Ann\\tBo'; must be name n1 n2,",
        ),
        ("Ann\t1\t2\n", "none of 2 images found; .*; the first is Ann/Ann_0001.jpg"),
    ],
)
def test_a_bad_list_of_lfw_says_what_is_wrong(tmp_path, text, message):
    path = tmp_path / "pairs.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=f"^data.path={path}: {message}"):
        list_pairs(path)


def test_names_with_spaces_are_read_from_a_list_of_lfw(tmp_path):
    save(tmp_path, "[Lee] 2/[Lee] 2_0001.jpg")
    (tmp_path / "pairs.txt").write_text("[Lee] 2\t1\t2\n\n[Lee] 2\t3\tBo 7\t10\n")
    assert as_text(list_pairs(tmp_path / "pairs.txt")) == [
        ("[Lee] 2/[Lee] 2_0001.jpg", "[Lee] 2/[Lee] 2_0002.jpg", 1),
        ("[Lee] 2/[Lee] 2_0003.jpg", "Bo 7/Bo 7_0010.jpg", 0),
    ]
