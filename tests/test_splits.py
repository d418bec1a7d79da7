import gzip
import hashlib
import json

import numpy as np
import pytest

import data
import images
import settings
import spaces
import splits
from configs import default
from errors import UserError
from listings import SPLITS, Files
from spaces import open_split
from splits import assign_splits, split_facts

TRAIN, VALIDATION, TEST = range(3)


@pytest.fixture
def give(monkeypatch):
    """give(files, **changes of config.data) -> config.data, of a set that is these Files."""

    def give(files, **changes):
        for function in (splits.assign, spaces.open_frozen):
            function.cache_clear()
        monkeypatch.setattr(images, "load", lambda _: files)
        config = default.get_config().data
        given = {"path": "given", "split": "disjoint", "p_same": 0.5}
        config.update({"source": "folder" if files.pairs is None else "pairs"} | given | changes)
        return config

    yield give
    for function in (splits.assign, spaces.open_frozen):
        function.cache_clear()


def folder(classes, names=None, seed=0, image_splits=None):
    """Files of one pixel, in classes."""
    classes = np.array(classes)
    names = tuple(names or (f"class{k}" for k in range(classes.max() + 1)))
    hashes, own = np.random.default_rng(seed).random(len(classes)), image_splits
    paths = np.array([f"{names[k]}/{i}.png" for i, k in enumerate(classes)])
    own = own if own is None else np.array(own, np.int8)
    pixels = np.zeros((len(classes), 1, 1, 1), np.uint8)
    return Files(paths, None, classes, names, own, None, (), pixels, hashes, 0)


def listed(pairs, names=None, hashes=None, pair_splits=None):
    """Files of a list of pairs."""
    pairs = np.array(pairs)
    count = pairs[:, :2].max() + 1
    names = np.array([f"{i:05d}.png" for i in range(count)]) if names is None else names
    hashes = np.random.default_rng(1).random(count) if hashes is None else hashes
    pixels, classes = np.zeros((count, 1, 1, 1), np.uint8), np.arange(count)
    return Files(names, None, classes, tuple(names), pair_splits, pairs, (), pixels, hashes, 0)


def fingerprint(workdir, images=None, classes=None, pairs=None, split="groups"):
    """A folder as of a run with data.split=split, whose fingerprint is of these."""
    workdir.mkdir(exist_ok=True)
    config = default.get_config()
    config.data.update({"source": "folder", "path": "a", "split": split})
    settings.save_config(config, workdir)
    images = {name: [None, split, 2] for name, split in (images or {}).items()}
    images |= {f"{k}/0.png": [k, split, 2] for k, split in (classes or {}).items()}
    pairs = {name: [1, split] for name, split in (pairs or {}).items()}
    with gzip.open(workdir / "data.json.gz", "wt") as file:
        json.dump({"images": images, "pairs": pairs}, file)
    return str(workdir)


def literal_hash(name):
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53


def literal_split(number):
    return TRAIN if number < 0.8 else VALIDATION if number < 0.8 + 0.1 else TEST


def test_pixels_or_the_name_of_the_class_decide_and_nothing_else_does(give):
    files = folder(np.repeat(range(100), 3))
    by_pixels = [literal_split(number) for number in files.split_hash]
    assert assign_splits(give(files)).tolist() == by_pixels
    assert splits.by_hash([0.0, 0.8, 0.8 + 0.1]).tolist() == [TRAIN, VALIDATION, TEST]
    counts = ", ".join(f"{by_pixels.count(k)} {split}" for k, split in enumerate(SPLITS))
    assert split_facts(give(files))[0] == f"images are split by data.split=disjoint: {counts}"
    by_name = np.array([literal_split(literal_hash(name)) for name in files.class_names])
    assert min(np.bincount(by_name)) >= 2
    found = assign_splits(give(files, split="classes"))
    assert found.tolist() == by_name[files.classes].tolist()
    assert assign_splits(give(files, split="shared")) is None
    assert assign_splits(default.get_config().data) is None  # drawn shapes


def test_an_added_class_moves_no_other(give):
    names = [f"person{k:03d}" for k in range(0, 120, 2)]
    before = assign_splits(give(folder(np.repeat(range(60), 2), names), split="classes"))
    more = [*names[:30], "person001", "another", *names[30:]]
    after = assign_splits(give(folder(np.repeat(range(62), 2), more), split="classes"))
    assert after.tolist() == [*before[:60], *after[60:64], *before[60:]]


def test_a_split_of_too_few_classes_takes_those_nearest_to_its_bounds(give, monkeypatch):
    hashes = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4, "e": 0.5, "f": 0.85}
    monkeypatch.setattr(splits, "hash_name", hashes.get)
    asked = give(folder(np.repeat(range(6), 2), hashes), split="classes")
    expected = {"a": 0, "b": 0, "e": 1, "f": 1, "c": 2, "d": 2}
    assert assign_splits(asked)[::2].tolist() == [expected[name] for name in hashes]
    hashes["g"] = 0.79  # of one image: it is in no pair of the same, and moves nothing
    asked = give(folder([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6], hashes), split="classes")
    assert assign_splits(asked)[:-1:2].tolist() == [expected[name] for name in list(hashes)[:6]]
    assert assign_splits(asked)[-1] == TRAIN
    assert split_facts(asked)[1:] == (
        "1 of 7 classes have fewer than two images in train and are left out of it: g",
    )


def test_classes_of_a_set_with_a_test_are_divided_between_the_others(give, monkeypatch):
    hashes = {"a": 0.91, "b": 0.96, "c": 0.97, "d": 0.98, "e": 0.99}  # those of the test
    monkeypatch.setattr(splits, "hash_name", hashes.get)
    files = folder([0, 0, 1, 1, 2, 2, 3, 3, 4, 4], hashes, image_splits=[0] * 8 + [2] * 2)
    assert assign_splits(give(files, split="classes"))[::2].tolist() == [1, 1, 0, 0, 2]


@pytest.mark.parametrize("case", range(40))
def test_six_classes_are_always_enough(case, give):
    random = np.random.default_rng(case)
    names = [f"{case} {k}" for k in range(random.integers(6, 20))]
    asked = give(folder(np.repeat(range(len(names)), 2), names), split="classes")
    found = assign_splits(asked)[::2]
    assert np.bincount(found, minlength=3).min() >= 2
    for split in SPLITS:
        data.open_split(asked, split)


def test_too_few_classes_or_images_are_refused_with_what_would_do(give, capsys):
    five = folder(np.repeat(range(6), [2, 2, 2, 2, 2, 1]))
    with pytest.raises(UserError) as raised:
        assign_splits(give(five, split="classes"))
    text = "data.split=classes leaves a split, or a fold, fewer than two of 5 classes of two images"
    text += " or more: add classes, or say data.split=disjoint"
    assert str(raised.value) == f"data.path=given: {text}"
    with pytest.raises(UserError, match=r"take two such classes: more images are needed, or"):
        open_split(give(folder(np.repeat(range(5), 2))), "validation")
    small = folder(np.repeat(range(40), 2))  # of images: no split but train has two of a class
    small = small._replace(split_hash=np.tile([0.1, 0.85], 40))
    text = "0 of 40 classes have two images or more in validation; pairs of same and different "
    text += "take two such classes: more images are needed, or data.split=classes, which leaves "
    text += "classes whole"
    with pytest.raises(UserError) as raised:
        open_split(give(small), "validation")
    assert str(raised.value) == f"data.path=given: {text}"
    for split in SPLITS:
        open_split(give(small, split="classes"), split)
    assert capsys.readouterr() == ("", "")


def test_what_cannot_be_read_is_in_no_split(give):
    files = folder(np.repeat(range(10), 10))
    files.classes[[3, 50]] = -1
    for split in ("disjoint", "classes"):
        assert np.flatnonzero(assign_splits(give(files, split=split)) < 0).tolist() == [3, 50]


def test_classes_of_one_image_in_a_split_are_said_once_each(give):
    files = folder(np.repeat(range(9), 5))
    files = files._replace(split_hash=np.tile([0.1, 0.2, 0.85, 0.86, 0.95], 9))
    files.split_hash[4::5][:3] = 0.1  # none in the test
    text = "9 of 9 classes have fewer than two images in test and are left out of it"
    named = ", ".join(f"class{k}" for k in range(5))
    assert split_facts(give(files))[1:] == (f"{text}: {named}, and 4 more",)
    files.classes[:4] = -1
    text = "1 of 9 classes have fewer than two images in every split and are left out of it"
    assert split_facts(give(files, split="shared")) == (f"{text}: class0",)
    space = open_split(give(files, split="shared"), "train")
    assert space.class_ids.tolist() == [*range(1, 9)] and len(space.rows) == 40


@pytest.mark.parametrize("missing", [1, 2])
@pytest.mark.parametrize("split", ["shared", "disjoint", "classes"])
def test_a_split_that_a_set_does_not_name_is_made_of_train(give, split, missing):
    own = [s for s in (TRAIN, VALIDATION, TEST) for _ in range(400) if s != missing]
    files = folder(np.tile(np.repeat(range(100), 4), 2), image_splits=own)
    numbers = files.split_hash
    if split == "classes":
        numbers = [literal_hash(files.class_names[k]) for k in files.classes]
    expected = [
        missing if one == TRAIN and literal_split(number) == missing else one
        for one, number in zip(own, numbers, strict=True)
    ]
    assert assign_splits(give(files, split=split)).tolist() == expected
    text = "images are split by the set itself (data.split moves none); "
    text += f"{SPLITS[missing]} is a tenth of train: "
    assert split_facts(give(files, split=split))[0].startswith(text)


def test_the_splits_of_a_set_come_before_those_of_the_config(give):
    own = np.random.default_rng(0).integers(0, 3, 300)
    files = folder(np.repeat(range(10), 30), image_splits=own)
    for split in ("shared", "disjoint", "classes"):
        asked = give(files, split=split)
        assert assign_splits(asked).tolist() == own.tolist()
        rows = open_split(asked, "test").rows
        assert sorted(rows) == np.flatnonzero(own == TEST).tolist()


def test_a_run_keeps_its_images_and_classes_where_they_were(give, tmp_path):
    names = [f"c{k}" for k in range(40)]
    files = folder(np.repeat(range(40), 3), names)
    tests = [n for n in names if literal_split(literal_hash(n)) == TEST]
    known = {n: SPLITS[literal_split(literal_hash(n))] for n in names[:-1]} | {tests[0]: "train"}
    assert tests[0] != names[-1]
    run = fingerprint(tmp_path / "run", classes=known)
    found = assign_splits(give(files, split="classes", splits_of=run))[::3]
    expected = [literal_split(literal_hash(n)) for n in names]
    expected[names.index(tests[0])] = TRAIN
    assert found.tolist() == expected
    run = fingerprint(tmp_path / "run", images={files.names[7]: "test", files.names[8]: None})
    expected = [literal_split(number) for number in files.split_hash]
    assert expected[7] != TEST
    expected[7] = TEST
    assert assign_splits(give(files, splits_of=run)).tolist() == expected


def test_a_class_that_a_run_knows_is_not_taken_for_a_poor_split(give, tmp_path, monkeypatch):
    hashes = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.7, "e": 0.85, "f": 0.86, "g": 0.95, "h": 0.4}
    monkeypatch.setattr(splits, "hash_name", hashes.get)
    known = dict.fromkeys("abcd", "train") | dict.fromkeys("ef", "validation") | {"g": "test"}
    run = fingerprint(tmp_path / "run", classes=known | {"removed": "test"})
    files = folder(np.repeat(range(8), 2), hashes)
    found = assign_splits(give(files, split="classes", splits_of=run))[::2]
    assert found.tolist() == [0, 0, 0, 0, 1, 1, 2, 0]  # h, which is new, goes where its hash says


def test_a_run_whose_splits_keep_less_apart_is_refused(give, tmp_path):
    given = {"class1/9.png": "train", "class1/10.png": "test", "class2/18.png": "train"}
    files = folder(np.repeat(range(8), 9))
    for kept, asked in (("shared", "disjoint"), ("disjoint", "classes"), ("classes", "groups")):
        run = fingerprint(tmp_path / "run", images=given, split=kept)
        with pytest.raises(UserError, match=rf"data.split={kept} was all that run kept apart: say"):
            assign_splits(give(files, split=asked, splits_of=run))
    run = fingerprint(tmp_path / "run", images=given, split="disjoint")
    assert assign_splits(give(files, splits_of=run))[[9, 10, 18]].tolist() == [0, 2, 0]


def save_fingerprint(workdir, files, found, split):
    """The fingerprint of a run that had these Files in the splits `found`."""
    fingerprint(workdir, split=split)
    classes = [files.class_names[k] for k in files.classes]
    rows = zip(classes, [SPLITS[k] for k in found], files.split_hash.tolist(), strict=True)
    images = dict(zip(files.names.tolist(), map(list, rows), strict=True))
    with gzip.open(workdir / "data.json.gz", "wt") as file:
        json.dump({"images": images, "pairs": {}}, file)
    return str(workdir)


@pytest.mark.parametrize("split", ["disjoint", "classes", "groups"])
@pytest.mark.parametrize("renamed", [False, True])
def test_an_image_moved_into_another_class_splits_no_class(give, tmp_path, split, renamed):
    names = [f"{k // 10}/{k % 10}" for k in range(60)]
    files = folder(np.repeat(range(60), 9), names)
    before = assign_splits(give(files, split=split))
    run = save_fingerprint(tmp_path / "run", files, before, split)
    classes, paths = files.classes.copy(), files.names.copy()
    moved = [0, 1, 180, 400]
    for i in moved:  # into the next class that is in another split
        other = np.flatnonzero(before != before[i])
        classes[i] = files.classes[other[other > i][0]]
        paths[i] = f"{names[classes[i]]}/{i}.png" if renamed else paths[i]
    asked = give(files._replace(classes=classes, names=paths), split=split, splits_of=run)
    found = assign_splits(asked)
    text = f"images that follow their class into another split: {len(moved)} ({paths[0]}, "
    assert any(fact.startswith(text) for fact in split_facts(asked)) == (split != "disjoint")
    if split == "disjoint":
        assert found.tolist() == before.tolist()
    else:
        of_class = before.reshape(60, 9)[:, 0]
        assert found.tolist() == of_class[classes].tolist()
        assert (found[moved] != before[moved]).all()


def test_two_classes_of_a_run_that_became_one_are_in_training(give, tmp_path):
    files = folder(np.repeat(range(40), 3))
    before = assign_splits(give(files, split="classes"))
    run = save_fingerprint(tmp_path / "run", files, before, "classes")
    classes, names = files.classes.copy(), (*files.class_names, "joined")
    one, other = before.tolist().index(TRAIN), before.tolist().index(TEST)
    for k in (files.classes[one], files.classes[other]):
        classes[classes == k] = 40
    files = files._replace(classes=classes, class_names=names)
    found = assign_splits(give(files, split="classes", splits_of=run))
    assert (found[classes == 40] == TRAIN).all() and np.sum(classes == 40) == 6
    assert found[classes < 40].tolist() == before[classes < 40].tolist()


def test_a_class_that_a_set_itself_divides_stays_divided(give, tmp_path):
    files = folder(np.repeat(range(4), 9), image_splits=np.tile([0, 0, 0, 1, 1, 1, 2, 2, 2], 4))
    before = assign_splits(give(files, split="classes"))
    assert before.tolist() == files.given.tolist()
    run = save_fingerprint(tmp_path / "run", files, before, "classes")
    files.given[0] = TEST  # it was trained on
    asked = give(files, split="classes", splits_of=run)
    assert assign_splits(asked).tolist() == before.tolist()


def test_new_images_follow_their_class_and_new_classes_their_group(give, tmp_path):
    names = [f"{group}/{k}" for group in "abc" for k in range(4)]
    known = {name: "test" if name[0] == "b" else "train" for name in names if name[2] != "3"}
    run = fingerprint(tmp_path / "run", classes=known)
    files = folder(np.repeat(range(12), 3), names)  # 0.png of each class was there
    found = assign_splits(give(files, split="groups", splits_of=run)).reshape(12, 3)
    assert (found == found[:, :1]).all()
    assert (found[:, 0] == TEST).tolist() == [name[0] == "b" for name in names]


def test_a_run_without_a_fingerprint_is_refused(give, tmp_path):
    with pytest.raises(UserError, match=rf"^data.splits_of={tmp_path}: data.json.gz is missing"):
        assign_splits(give(folder(np.repeat(range(6), 9)), splits_of=str(tmp_path)))


def fold_of(names, count):
    """The fold of each name, from 0: equal parts of the names in the order of their hashes."""
    ranked = sorted({*names}, key=literal_hash)
    return [ranked.index(name) * count // len(ranked) for name in names]


@pytest.mark.parametrize("count", [2, 5, 7])
def test_each_class_is_in_the_test_of_one_fold(give, count):
    names = [f"person{k}" for k in range(40)]
    files = folder(np.append(np.repeat(range(40), 2), 40), [*names, "one image"])
    for fold in range(count):
        asked = give(files, split="classes", folds=count, fold=fold)
        found = assign_splits(asked)[:80:2]
        assert (found == TEST).tolist() == [k == fold for k in fold_of(names, count)]
        rest = (found != TEST).sum()
        assert np.sum(found == VALIDATION) >= min(max(rest // 5, 2), 6)
        assert np.sum(found == TRAIN) >= rest * 0.7
        text = f"data.split=classes (fold {fold} of {count} is the test, a tenth of the rest valid"
        assert text in split_facts(asked)[0]
        for split in SPLITS:
            open_split(asked, split)


def test_a_tenth_of_the_classes_outside_of_a_fold_is_its_validation(give):
    names = [f"{k}" for k in range(2000)]
    asked = give(folder(np.repeat(range(2000), 2), names), split="classes", folds=4, fold=1)
    found = assign_splits(asked)[::2]
    assert np.bincount(found).tolist()[TEST] == 500
    assert np.sum(found == VALIDATION) == pytest.approx(150, abs=4 * (1500 * 0.1 * 0.9) ** 0.5)


def test_folds_of_images_are_equal_and_equal_pixels_are_in_one(give):
    files = folder(np.repeat(range(10), 60))
    files = files._replace(split_hash=np.repeat(files.split_hash[::2], 2))
    tested = np.zeros(600, int)
    for fold in range(3):
        found = assign_splits(give(files, folds=3, fold=fold))
        assert (found[::2] == found[1::2]).all()
        expected = np.argsort(np.argsort(files.split_hash[::2])) // 100 == fold
        assert (found[::2] == TEST).tolist() == expected.tolist()
        bits = files.split_hash * 2**20 % 1  # the lower ones: independent of the order
        expected = (bits >= 0.8) & (bits < 0.9) & (found != TEST)
        assert (found == VALIDATION).tolist() == expected.tolist() and expected.any()
        tested += found == TEST
    assert (tested == 1).all()


ALPHABETS = {"Greek": 24, "Latin": 26, "old/Korean": 40, "Balinese": 24, "Braille": 26}
LETTERS = [f"{alphabet}/{k}" for alphabet, count in ALPHABETS.items() for k in range(count)]
ALPHABET = np.array([name.rpartition("/")[0] for name in LETTERS])


@pytest.mark.parametrize("changes", [{}, {"folds": 5}, {"folds": 2}])
def test_no_group_of_the_test_is_in_another_split(give, changes):
    files, tested = folder(np.repeat(range(len(LETTERS)), 3), LETTERS), []
    for fold in range(changes.get("folds", 1)):
        asked = give(files, split="groups", fold=fold, **changes)
        found = assign_splits(asked).reshape(-1, 3)
        assert (found == found[:, :1]).all()  # each class is whole
        found = found[:, 0]
        groups = {*ALPHABET[found == TEST]}
        assert (found == TEST).tolist() == np.isin(ALPHABET, [*groups]).tolist()
        assert 6 <= np.sum(found == VALIDATION) <= 30 and {*found} == {TRAIN, VALIDATION, TEST}
        assert {*ALPHABET[found == TRAIN]} == {*ALPHABETS} - groups  # all are learnt from
        named = ", ".join(sorted(groups))
        text = f"the test is {len(groups)} of 5 groups of classes ({named})"
        assert split_facts(asked)[1] == text
        tested.append(groups)
    if changes:
        of_group = dict(zip(ALPHABET, fold_of(ALPHABET.tolist(), changes["folds"]), strict=True))
        assert tested == [{g for g in of_group if of_group[g] == k} for k in range(len(tested))]


def test_the_hash_of_a_group_decides_and_a_group_is_moved_where_none_is_the_test(give, monkeypatch):
    hashes = {"a": 0.1, "b": 0.95, "c": 0.85, "d": 0.7}
    names = [f"{group}/{k}" for group in "abcd" for k in range(4)]
    monkeypatch.setattr(splits, "hash_name", lambda name: hashes.get(name, 0.5))
    asked = give(folder(np.repeat(range(16), 2), names), split="groups")
    assert np.flatnonzero(assign_splits(asked)[::2] == TEST).tolist() == [4, 5, 6, 7]  # of b
    hashes["b"] = 0.2
    asked = give(folder(np.repeat(range(16), 2), names), split="groups")
    assert np.flatnonzero(assign_splits(asked)[::2] == TEST).tolist() == [8, 9, 10, 11]  # of c


def test_a_test_of_groups_is_made_of_the_train_of_a_set(give):
    own = np.where(np.arange(len(LETTERS)) % 9, TRAIN, VALIDATION)
    files = folder(np.repeat(range(len(LETTERS)), 2), LETTERS, image_splits=np.repeat(own, 2))
    found = assign_splits(give(files, split="groups"))[::2]
    assert (found == VALIDATION).tolist() == (own == VALIDATION).tolist()
    assert {*ALPHABET[found == TEST]} and not {*ALPHABET[found == TEST]} & {
        *ALPHABET[found == TRAIN]
    }


def test_a_run_of_a_fold_keeps_its_test_where_images_were_added(give, tmp_path):
    asked = give(folder(np.repeat(range(len(LETTERS)), 2), LETTERS), split="groups", folds=5)
    before = assign_splits(asked)[::2].tolist()
    known = {name: SPLITS[k] for name, k in zip(LETTERS, before, strict=True)}
    run = fingerprint(tmp_path / "run", classes=known)
    test = ALPHABET[before.index(TEST)]
    more = [
        *LETTERS,
        f"{test}/new",
        "Greek/new",
        "Latin/new",
        *(f"{a}/{k}" for a in "uvw" for k in "01"),
    ]
    grown = folder(np.repeat(range(len(more)), 2), more)
    found = assign_splits(give(grown, split="groups", folds=5, splits_of=run))[::2].tolist()
    assert found[: len(before)] == before
    for name, split in zip(more, found, strict=True):
        group = name.rpartition("/")[0]
        assert group not in ALPHABETS or (split == TEST) == (group == test)
    less = folder(np.repeat(range(6), 2), LETTERS[:6])  # of one group: too few for a new run
    found = assign_splits(give(less, split="groups", folds=5, splits_of=run))[::2]
    assert found.tolist() == before[:6]


@pytest.mark.parametrize(
    "names, changes, remedy",
    [
        (["a", "b", "c"] * 2, {}, "data.split=classes"),
        (["a/0", "a/1", "b/0", "b/1", "b/2"], {}, "data.split=classes"),
        (["a/0", "a/1", "b/0", "b/1", "c/0"], {"folds": 3}, "fewer data.folds"),
        (["a/0", "b/1", "c/0"] * 3, {"folds": 4}, "fewer data.folds"),
        (["a/0"] * 3 + ["b/1"] * 20, {"folds": 2}, "fewer data.folds"),
        (range(9), {"folds": 5, "split": "classes"}, "fewer data.folds"),
        (range(6), {"folds": 2, "split": "classes"}, "fewer data.folds"),
    ],
)
def test_too_few_groups_or_classes_for_folds_are_refused_in_every_fold(
    give, names, changes, remedy
):
    names, asked = [f"{name}{k}" for k, name in enumerate(names)], {"split": "groups"} | changes
    text = f"data.split={asked['split']} leaves a split, or a fold, fewer than two of {len(names)}"
    text += f" classes of two images or more: add classes, or say {remedy}"
    for fold in range(asked.get("folds", 1)):
        files = folder(np.repeat(range(len(names)), 2), names)
        with pytest.raises(UserError) as raised:
            assign_splits(give(files, **asked, fold=fold))
        assert str(raised.value) == f"data.path=given: {text}"


def test_folds_are_refused_where_something_else_says_the_test(give):
    files = folder(np.repeat(range(9), 2), image_splits=[0, 2] * 9)
    with pytest.raises(UserError, match=r"^data.folds=3: the set itself has 0 folds: leave the"):
        assign_splits(give(files, folds=3))
    given = listed([(0, 1, 1), (1, 2, 0)] * 3, pair_splits=np.array([0, 0, 1, 1, 2, 2]))
    for pairs in (given, given._replace(given=None)):
        with pytest.raises(
            UserError, match=r"^data.folds=3: the set itself has 0 folds: leave the"
        ):
            assign_splits(give(pairs, folds=3))


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"folds": 1}, "data.folds=1: must be 0 (none), or 2 and more"),
        ({"folds": 3, "fold": 3}, "data.fold=3: must be below data.folds=3"),
        ({"fold": 1}, "data.fold=1: must be below data.folds=0, or 0"),
        ({"folds": 3, "split": "shared"}, "data.folds=3: must be 0 with data.split=shared"),
        ({"folds": 3, "splits_of": "a"}, "data.folds=3: must be 0 with data.split=shared, or with"),
        ({"source": "pairs", "split": "groups"}, "data.split=groups: must be shared or disjoint"),
        ({"source": "shapes", "path": "", "split": "groups"}, "data.split=groups: must be shared"),
        ({"source": "shapes", "path": "", "folds": 3}, "data.folds=3: must be left out: it has"),
    ],
)
def test_folds_and_groups_that_make_no_sense_are_refused(changes, text):
    config = default.get_config()
    config.data.update({"source": "folder", "path": "a", "split": "disjoint"} | changes)
    with pytest.raises(UserError) as raised:
        settings.check(config)
    assert str(raised.value).startswith(f"config.{text}")


@pytest.mark.parametrize("count", [3, 10])
def test_each_fold_of_a_list_is_the_test_once(give, count):
    pairs, fold = people(20, np.random.default_rng(0)), np.random.default_rng(1)
    fold = np.append(np.arange(count), fold.integers(0, count, len(pairs) - count))
    files = listed(pairs, pair_splits=(3 + fold).astype(np.int8))
    wanted = [{i: TEST, (i + 1) % count: VALIDATION} for i in range(count)]
    wanted.append({count - 1: TEST, count - 2: VALIDATION})  # without data.folds
    for i, splits_of_folds in enumerate(wanted):
        chosen = {"folds": count, "fold": i} if i < count else {}
        asked = give(files, **chosen)
        assert assign_splits(asked).tolist() == [splits_of_folds.get(k, TRAIN) for k in fold]
        test, validation = splits_of_folds
        text = f"{count} folds (fold {test} is the test, fold {validation} the validation): "
        assert f"pairs are split by the list's {text}" in split_facts(asked)[0]
    with pytest.raises(UserError, match=f"^data.folds=7: the set itself has {count} folds: "):
        assign_splits(give(files, folds=7))


def people(count, random):
    """Pairs of groups of images that have none in common, of one to nine pairs of both kinds."""
    pairs, first = [], 0
    for _ in range(count):
        size = int(random.integers(3, 6))
        every = [(first + i, first + j) for i in range(size) for j in range(i)]
        chain = [(first + i, first + i + 1) for i in range(size - 1)]
        more = [every[i] for i in random.integers(0, len(every), random.integers(0, 6))]
        pairs += [(*pair, int(random.integers(2))) for pair in chain + more]
        first += size
    return np.array(pairs)


def shares(found, pairs, label):
    return np.bincount(found[pairs[:, 2] == label], minlength=3) / (pairs[:, 2] == label).sum()


@pytest.mark.parametrize("count", [30, 300])
def test_groups_of_pairs_are_dealt_whole_and_by_their_shares(give, count):
    files = listed(people(count, np.random.default_rng(count)))
    asked = give(files)
    found = assign_splits(asked)
    assert (found >= 0).all()
    used = [{*files.pairs[found == split, :2].ravel()} for split in range(3)]
    assert not used[0] & used[1] and not used[0] & used[2] and not used[1] & used[2]
    assert np.bincount(found) / len(found) == pytest.approx([0.8, 0.1, 0.1], abs=1 / count)
    for label in (0, 1):
        assert shares(found, files.pairs, label) == pytest.approx([0.8, 0.1, 0.1], abs=0.05)
    counts = ", ".join(f"{n:,} {s}" for n, s in zip(np.bincount(found), SPLITS, strict=True))
    fact, *more = split_facts(asked)
    assert fact == f"pairs are split by connected groups of images: {counts}"
    few = "fewer than 20 pairs of validation or test say little about a network; a column split "
    assert more == ([f"{few}can give them more"] if count == 30 else [])


def test_neither_the_order_of_lines_and_images_nor_the_size_of_images_matters(give):
    random = np.random.default_rng(5)
    files = listed(people(60, random))
    found = assign_splits(give(files))
    order = random.permutation(len(files.pairs))
    turned = files._replace(pairs=files.pairs[order][:, [1, 0, 2]])
    turned = turned._replace(split_hash=random.random(len(files.names)))  # of another image_size
    assert assign_splits(give(turned)).tolist() == found[order].tolist()


def test_images_of_equal_pixels_are_in_one_split(give):
    pairs = np.array([(2 * i, 2 * i + 1, i % 3 > 0) for i in range(200)])
    hashes = np.random.default_rng(0).random(400)
    hashes[1:-1:4] = hashes[2:-1:4]  # the second image of each other pair is the next pair's first
    found = assign_splits(give(listed(pairs, hashes=hashes)))
    assert (found >= 0).all() and (found[::2] == found[1::2]).all()
    alone = assign_splits(give(listed(pairs)))
    assert (alone[::2] != alone[1::2]).any()


def test_one_piece_is_cut_by_the_pixels_and_what_is_lost_is_counted(give):
    random = np.random.default_rng(0)
    pairs = np.concatenate(
        [random.integers(0, 200, (1500, 2)), random.integers(0, 2, (1500, 1))], 1
    )
    files = listed(pairs)
    side = np.array([literal_split(number) for number in files.split_hash])[pairs[:, :2]]
    expected = np.where(side[:, 0] == side[:, 1], side[:, 0], -1)
    asked = give(files)
    assert assign_splits(asked).tolist() == expected.tolist()
    lost = int((expected < 0).sum())
    text = f"{lost} of 1,500 pairs join images of two splits and are left out; "
    text += "a column split (train, validation, test) would keep them"
    assert lost > 400 and split_facts(asked)[1] == text


def test_the_largest_piece_alone_is_cut_where_a_split_lacks_a_kind(give):
    random = np.random.default_rng(0)
    ring = [(i, int(random.integers(100)), i % 2) for i in range(100) for _ in range(15)]
    far = [(100 + i, 110 + i, 1) for i in range(9)]  # small pieces, all of the same
    files = listed([*ring, *far])
    found = assign_splits(give(files))
    assert (found[1500:] >= 0).all()
    assert {*found[1500:]} <= {VALIDATION, TEST}  # which are poor in pairs of the same
    assert all((found[:1500] == split).any() for split in range(3))


def test_a_list_keeps_its_own_splits_or_has_none_where_all_are_shared(give):
    pairs = people(20, np.random.default_rng(0))
    own = np.random.default_rng(1).integers(0, 3, len(pairs)).astype(np.int8)
    for split in ("shared", "disjoint"):
        files = listed(pairs, pair_splits=own)
        files.classes[pairs[4, 0]] = -1
        asked = give(files, split=split)
        bad = (pairs[:, :2] == pairs[4, 0]).any(axis=1)
        assert assign_splits(asked).tolist() == np.where(bad, -1, own).tolist()
        text = f"{bad.sum()} of {len(pairs)} pairs have an image that cannot be read"
        assert split_facts(asked)[1:] == (f"{text} and are left out",)
    asked = give(files._replace(given=None), split="shared")
    assert assign_splits(asked) is None
    assert len(open_split(asked, "test").pairs) == (~bad).sum()


def test_a_run_keeps_its_pairs_and_what_is_connected_with_them(give, tmp_path):
    files = listed(people(50, np.random.default_rng(3)))
    before = assign_splits(give(files))
    other = (before + 1) % 3  # not what is dealt
    names = [" - ".join(files.names[pair[:2]]) for pair in files.pairs]
    known = {name: SPLITS[k] for name, k in zip(names, other, strict=True)}
    run = fingerprint(tmp_path / "run", pairs=known)
    assert assign_splits(give(files, splits_of=run)).tolist() == other.tolist()
    used = {*files.pairs[other == TEST, :2].ravel()}
    one, two = next(iter(used)), files.pairs[other == TRAIN, 0][0]
    count = len(files.names)
    more = [(one, count, 1), (count, count + 1, 0), (count + 2, count + 3, 1), (one, two, 0)]
    grown = listed([*files.pairs, *more])
    found = assign_splits(give(grown, splits_of=run))
    assert found[: len(other)].tolist() == other.tolist()
    joined = literal_split(grown.split_hash[count])  # one of a piece that is in two splits now
    assert found[len(other)] == (TEST if joined == TEST else -1)
    assert found[len(other) + 2] >= 0 and found[len(other) + 3] == -1
    without = assign_splits(give(listed([*files.pairs, *more[:3]]), splits_of=run))
    assert without[len(other) : len(other) + 2].tolist() == [TEST, TEST]
